"""Ray's overhead: the job against the same stages called in a plain loop, equal work and cores.

On a shared machine neighbours make the same loop 10 to 30 % slower for minutes at a time, more than
what is to be measured. So the arms take turns of a few seconds: the processes of all but one are
stopped. Every arm writes the same parts; what counts is the time in which it ran between two of
them.
"""

from __future__ import annotations

import argparse
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch

from pipeline.cameras import ring
from pipeline.common import cores
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.encode import Encoder
from pipeline.job import EmbedOptions, build_manifest, embed, for_teachers
from pipeline.objects import ObjectSettings, Processed, process
from pipeline.renderers.base import RenderConfig
from pipeline.shards import create_or_open, write_part
from pipeline.stages import turn_objects
from pipeline.teacher import load_teacher

_TURN_S = 5.0  # below the ten seconds that Ray's daemons wait for one another
_START = 0.25  # of the objects are start-up: with the first part comes a worker that writes


def options(out: Path, count: int, workers: int = 1) -> EmbedOptions:
    """The work of an arm."""
    objects = ObjectSettings(
        dataset=ProceduralDataset(count=count, seed=5),
        cameras=ring(12),
        render=RenderConfig(image_size=224),
    )
    rows = min(256, count // 8)
    return EmbedOptions(
        objects=objects, out=str(out), workers=workers, device="cpu", rows_per_part=rows
    )


def plain_loop(work: EmbedOptions) -> None:
    """The stages one after another, in this process."""
    torch.set_num_threads(1)
    teacher = load_teacher(work.teachers[0], batch_size=32, fixed_batch=True)
    manifest = create_or_open(work.out, build_manifest(work, teacher.info))
    encoder = Encoder(teacher, work.templates)
    objects = for_teachers(work.objects, teacher.info)
    records = list(objects.dataset.records())
    turn = turn_objects(objects)
    for begin in range(0, len(records), work.rows_per_part):
        rows = []
        part = records[begin : begin + work.rows_per_part]
        for first in range(0, len(part), turn):
            done = [process(record, objects) for record in part[first : first + turn]]
            rows += encoder.encode([item for item in done if isinstance(item, Processed)])
        write_part(work.out, manifest, rows)


@dataclass
class Arm:
    """Processes that do the same share of the work each, and when they were let run."""

    outs: list[Path]
    processes: list[subprocess.Popen[bytes]]
    turns: list[tuple[float, float]] = field(default_factory=list)  # begin and end, of the epoch

    @property
    def running(self) -> bool:
        """Whether a process is left. Raises ``RuntimeError`` where one failed."""
        codes = [driver.poll() for driver in self.processes]
        if any(codes):
            raise RuntimeError(f"an arm of the benchmark ended with exit codes {codes}")
        return None in codes

    def members(self) -> list[psutil.Process]:
        """All processes; Ray's daemons are descendants of the driver."""
        found = []
        for driver in self.processes:
            with suppress(psutil.NoSuchProcess):
                root = psutil.Process(driver.pid)
                found += [root, *root.children(recursive=True)]
        return found

    def signal(self, number: signal.Signals) -> None:
        """Stop all processes, or let them go on, or end them; those too that start meanwhile."""
        told: set[psutil.Process] = set()
        while new := [member for member in self.members() if member not in told]:
            for member in new:
                with suppress(psutil.NoSuchProcess):
                    member.send_signal(number)
            told.update(new)

    def run(self, seconds: float = math.inf, parts: float = math.inf) -> None:
        """Let the arm run until its time is up, so many parts are there or it has ended."""
        self.signal(signal.SIGCONT)
        begin = time.time()
        while self.running and time.time() < begin + seconds and len(self.parts()) < parts:
            time.sleep(0.05)
        self.turns.append((begin, time.time()))
        if self.running:
            self.signal(signal.SIGSTOP)

    def parts(self) -> list[Path]:
        """What is written."""
        return [path for out in self.outs for path in out.glob("part-*.parquet")]

    def pace(self) -> tuple[float, float, int]:
        """Seconds an object once the arm is at work, seconds before, and how many objects."""
        parts = sorted(
            (path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in self.parts()
        )
        done = np.cumsum([rows for _, rows in parts])
        times = [
            sum(max(0.0, min(end, at) - begin) for begin, end in self.turns) for at, _ in parts
        ]
        first = int(np.searchsorted(done, _START * done[-1]))
        pace = (times[-1] - times[first]) / float(done[-1] - done[first])
        return pace, times[-1] - pace * float(done[-1]), int(done[-1])


def alternate(arms: Sequence[Arm]) -> None:
    """Let the arms run by turns until all have ended."""
    while any(arm.running for arm in arms):
        for arm in arms:
            if arm.running:
                arm.run(_TURN_S)


def compare(count: int, workers: int) -> dict[str, dict[str, float]]:
    """For each kind of arm: ms an object once it runs, and the seconds before.

    ``workers`` is how many workers the job has, and how many plain loops run side by side, each
    with its share of the objects.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        arms = {}
        for kind in ("bare", "ray"):
            loops = 1 if kind == "ray" else workers
            outs = [Path(folder) / f"{kind}-{number}" for number in range(loops)]
            arguments = [f"--count={count // loops}", f"--workers={workers // loops}"]
            started = [
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-m", __spec__.name, kind, str(out), *arguments],
                        stderr=subprocess.DEVNULL,
                    )
                )
                for out in outs
            ]
            arms[kind] = Arm(outs, started)
            stack.callback(arms[kind].signal, signal.SIGKILL)
            # Its start is no part of what is compared, and must not disturb what is.
            arms[kind].run(parts=loops)
        alternate(list(arms.values()))
        found = {}
        for kind, arm in arms.items():
            pace, start, rows = arm.pace()
            if rows != count:
                raise RuntimeError(f"{kind}: {rows} of {count} objects")
            found[kind] = {"ms": 1e3 * pace, "start": start}
        return found


def run(count: int = 2000) -> dict[str, float]:
    """The job on one core, which the caller has chosen."""
    found = compare(count, 1)
    ray, bare = found["ray"], found["bare"]
    return {
        "objects": count,
        "plain loop, ms/object": bare["ms"],
        "Ray job, ms/object": ray["ms"],
        "overhead of Ray and isolation": ray["ms"] / bare["ms"] - 1,
        "start-up of the job, s (not counted)": ray["start"],
    }


def all_cores(count: int = 2000) -> dict[str, float]:
    """The same with every core at work: as many bare loops side by side as there are cores."""
    found = compare(count, cores())
    return {
        "cores": cores(),
        "objects": count,
        "bare loops side by side, ms/object": found["bare"]["ms"],
        "Ray job, ms/object": found["ray"]["ms"],
        "overhead of Ray and isolation": found["ray"]["ms"] / found["bare"]["ms"] - 1,
        "start-up of the job, s (not counted)": found["ray"]["start"],
    }


def main() -> None:
    """One arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("bare", "ray"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    work = options(args.out, args.count, args.workers)
    if args.kind == "ray":
        embed(work)
    else:
        plain_loop(work)


if __name__ == "__main__":
    main()
