"""Peak memory of ``pipeline embed`` against the number of objects: it must not grow with it.

Run as ``python -m tests.bench.bench_memory``. The command is run as users run it; the resident
memory of its whole process tree (driver, Ray, workers and their children) is sampled twice a
second. Memory that processes share is counted once: it is the proportional set size (PSS).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipeline.console import print_table

MIB = 1 << 20


def peak_memory(count: int, views: int, image_size: int, points: int) -> tuple[int, float]:
    """Peak PSS in bytes of one run over ``count`` procedural objects, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            *(sys.executable, "-c", "from pipeline.cli import main; main()"),
            *("embed", "--dataset", "procedural", "--count", str(count), "--seed", "9"),
            *("--views", str(views), "--image-size", str(image_size), "--points", str(points)),
            *("--out", str(Path(folder) / "shards")),
        ]
        start = time.monotonic()
        peak = 0
        with subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as job:
            while job.poll() is None:
                peak = max(peak, tree_memory(job.pid))
                time.sleep(0.5)
        if job.returncode:
            raise RuntimeError(f"pipeline embed ended with exit code {job.returncode}")
        return peak, time.monotonic() - start


def tree_memory(pid: int) -> int:
    """PSS in bytes of a process and all its descendants. Ray's daemons are descendants too."""
    total = 0
    try:
        root = psutil.Process(pid)
        members = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in members:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def run(
    counts: tuple[int, ...] = (2000, 8000), views: int = 2, image_size: int = 64, points: int = 2048
) -> list[list[object]]:
    """Rows of (objects, peak MiB, seconds, peak relative to the first)."""
    rows: list[list[object]] = []
    first = 0
    for count in counts:
        peak, seconds = peak_memory(count, views, image_size, points)
        first = first or peak
        rows.append([count, round(peak / MIB), round(seconds, 1), round(peak / first, 3)])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 8000])
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--points", type=int, default=2048)
    args = parser.parse_args()
    rows = run(tuple(args.counts), args.views, args.image_size, args.points)
    print_table("peak memory of pipeline embed", ["objects", "MiB", "s", "to the first"], rows)


if __name__ == "__main__":
    main()
