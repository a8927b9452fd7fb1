"""Ray's overhead: the job against the same stages called in a plain loop, equal work and cores."""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from pipeline.cameras import ring
from pipeline.datasets.base import Record
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.encode import Encoder
from pipeline.isolated import IsolatedProcessor
from pipeline.job import EmbedOptions, build_manifest, embed, for_teachers
from pipeline.objects import ObjectSettings, Processed, process
from pipeline.renderers.base import RenderConfig
from pipeline.shards import Failure, create_or_open, write_part
from pipeline.stages import turn_objects
from pipeline.teacher import load_teacher


def options(out: Path, count: int, image_size: int, views: int) -> EmbedOptions:
    """The work of both arms."""
    objects = ObjectSettings(
        dataset=ProceduralDataset(count=count, seed=5),
        cameras=ring(views),
        render=RenderConfig(image_size=image_size),
    )
    return EmbedOptions(objects=objects, out=str(out), workers=1, device="cpu")


def plain_loop(work: EmbedOptions, isolated: bool) -> tuple[float, dict[str, float]]:
    """Seconds of the stages one after another, and their split.

    ``isolated`` runs load, render and sample in a child process with a time limit per object, as
    the job does; otherwise everything happens in this process.
    """
    torch.set_num_threads(1)
    teacher = load_teacher(work.teachers[0], batch_size=32, fixed_batch=True)
    manifest = create_or_open(work.out, build_manifest(work, teacher.info))
    encoder = Encoder(teacher, work.templates)
    work = replace(work, objects=for_teachers(work.objects, teacher.info))
    records = list(work.objects.dataset.records())
    turn = turn_objects(work.objects)
    processor = IsolatedProcessor(work.objects) if isolated else None

    def processed(chunk: Sequence[Record]) -> Iterable[Processed | Failure]:
        return processor(chunk) if processor else (process(r, work.objects) for r in chunk)

    list(processed(records[:1]))  # start and compile before the clock does
    seconds: defaultdict[str, float] = defaultdict(float)
    start = time.perf_counter()
    for begin in range(0, len(records), work.rows_per_part):
        rows = []
        part = records[begin : begin + work.rows_per_part]
        for first in range(0, len(part), turn):
            done = list(processed(part[first : first + turn]))
            good = [item for item in done if isinstance(item, Processed)]
            for item in good:
                for stage, value in item.seconds.items():
                    seconds[stage] += value
            begun = time.perf_counter()
            rows += encoder.encode(good)
            seconds["encode"] += time.perf_counter() - begun
        begun = time.perf_counter()
        write_part(work.out, manifest, rows)
        seconds["write"] += time.perf_counter() - begun
    total = time.perf_counter() - start
    if processor:
        processor.close()
    return total, seconds


def _one_core(work: EmbedOptions, core: int) -> float:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    return plain_loop(work, False)[0]


def all_cores(count: int, image_size: int, views: int) -> dict[str, float]:
    """The same with every core at work: as many bare loops side by side as there are cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    small = max(1, count // 10)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with ProcessPoolExecutor(len(cores), get_context("spawn")) as pool:
            share = count // len(cores)
            works = [options(root / f"plain-{core}", share, image_size, views) for core in cores]
            plain = max(pool.map(_one_core, works, cores)) / (share * len(cores))
        seconds = {}
        for size in (small, count):
            work = options(root / f"ray-{size}", size, image_size, views)
            seconds[size] = embed(replace(work, workers=len(cores))).seconds
    per_object = (seconds[count] - seconds[small]) / (count - small)
    return {
        "cores": len(cores),
        "objects": count,
        "bare loops side by side, ms/object": 1e3 * plain,
        "Ray job, ms/object": 1e3 * per_object,
        "overhead of Ray and isolation": per_object / plain - 1,
        "start-up of the job, s (not counted)": seconds[count] - per_object * count,
    }


def run(count: int = 2000, image_size: int = 224, views: int = 12) -> dict[str, float]:
    """Both arms, one after the other, pinned to one core by the caller.

    Start-up (Ray, its workers, imports, loading the teacher) is taken out by a second, smaller run
    of the job: what counts is the time that the further objects take.
    """
    small = max(1, count // 10)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bare, split = plain_loop(options(root / "bare", count, image_size, views), False)
        plain, _ = plain_loop(options(root / "plain", count, image_size, views), True)
        seconds = {
            size: embed(options(root / f"ray-{size}", size, image_size, views)).seconds
            for size in (small, count)
        }
    per_object = (seconds[count] - seconds[small]) / (count - small)
    return {
        "objects": count,
        "plain loop in one process, ms/object": 1e3 * bare / count,
        "plain loop, objects isolated in a child, ms/object": 1e3 * plain / count,
        "Ray job, ms/object": 1e3 * per_object,
        "overhead of Ray over the isolated loop": per_object / (plain / count) - 1,
        "overhead of Ray and isolation over the bare loop": per_object / (bare / count) - 1,
        "start-up of the job, s (not counted)": seconds[count] - per_object * count,
        **{f"plain {stage}, ms/object": 1e3 * s / count for stage, s in split.items()},
    }
