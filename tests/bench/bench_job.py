"""Ray's overhead: the job against the same stages called in a plain loop, equal work and cores."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

from pipeline.cameras import ring
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.encode import Encoder
from pipeline.job import EmbedOptions, build_manifest, embed
from pipeline.objects import ObjectSettings, Processed, process
from pipeline.renderers.base import RenderConfig
from pipeline.shards import create_or_open, write_part
from pipeline.teacher import load_teacher


def options(out: Path, count: int, image_size: int, views: int) -> EmbedOptions:
    """The work of both arms."""
    objects = ObjectSettings(
        dataset=ProceduralDataset(count=count, seed=5),
        cameras=ring(views),
        render=RenderConfig(image_size=image_size),
    )
    return EmbedOptions(objects=objects, out=str(out), workers=1, device="cpu")


def plain_loop(work: EmbedOptions) -> tuple[float, dict[str, float]]:
    """Seconds of the stages in one process, one after another, and their split."""
    torch.set_num_threads(1)
    teacher = load_teacher(work.teacher, batch_size=32, fixed_batch=True)
    manifest = create_or_open(work.out, build_manifest(work, teacher.info))
    encoder = Encoder(teacher, work.templates)
    records = list(work.objects.dataset.records())
    process(records[0], work.objects)  # compile before the clock starts
    seconds: defaultdict[str, float] = defaultdict(float)
    start = time.perf_counter()
    for begin in range(0, len(records), work.rows_per_part):
        rows = []
        part = records[begin : begin + work.rows_per_part]
        for first in range(0, len(part), work.chunk):
            done = [process(r, work.objects) for r in part[first : first + work.chunk]]
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
    return time.perf_counter() - start, seconds


def run(count: int = 2000, image_size: int = 224, views: int = 12) -> dict[str, float]:
    """Both arms, one after the other, pinned to one core by the caller."""
    with tempfile.TemporaryDirectory() as folder:
        plain, split = plain_loop(options(Path(folder) / "plain", count, image_size, views))
        summary = embed(options(Path(folder) / "ray", count, image_size, views))
    return {
        "objects": count,
        "plain loop, s": plain,
        "Ray job, s": summary.seconds,
        "overhead": summary.seconds / plain - 1,
        "Ray start-up, s (not counted)": summary.start_seconds,
        **{f"plain {stage}, ms/object": 1e3 * s / count for stage, s in split.items()},
    }
