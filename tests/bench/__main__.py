"""``just bench``: every speed that the project claims, as a ratio, in one run on one core.

    python -m tests.bench [--only PART ...] [--quick] [--out FILE.md]

``memory`` (on all cores) and ``scale`` take long: they are left out unless named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

# Before numpy and torch read them: one thread for both sides of every ratio.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"


@dataclass(frozen=True)
class Table:
    """One result table and what to know when reading it."""

    title: str
    columns: list[str]
    rows: list[list[object]]
    notes: str = ""

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [f"## {self.title}", ""]
        if self.notes:
            lines += [self.notes, ""]
        lines += ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def render(quick: bool) -> list[Table]:
    """The renderer against rays and VTK."""
    from tests.bench.bench_render import tables

    return [Table(*table) for table in tables(quick)]


def stages(quick: bool) -> list[Table]:
    """Stages of the CPU pool."""
    from tests.bench.bench_stages import run

    rows = run(step=100 if quick else 20)
    columns = ["stage", "median ms", "p95 ms", "mean ms", "objects/s, median", "objects/s, mean"]
    notes = (
        "Real CC0 assets, 12 views of 224 px, 10,000 points, processor time of one core. `shrink` "
        "makes the views ready for a teacher of 96 px; one of 224 px needs none of it. `keep` is "
        "an option (WebP, quality 90) and not in the total. Targets, objects/s per core: 4 for "
        "load, render and sample; 6 for the median asset with pictures ready to encode."
    )
    return [Table("Load, render and sample", columns, rows, notes)]


def shards(quick: bool) -> list[Table]:
    """Reading."""
    from tests.bench.bench_shards import run

    rows: list[list[object]] = [
        [r.case, float(r.clouds_per_s), float(r.clock_clouds_per_s), float(r.ratio), r.kb_per_cloud]
        for r in run(count=256 if quick else 1024, rounds=3 if quick else 7)
    ]
    columns = ["case", "clouds/s (CPU)", "clouds/s (clock)", "times pickled .npy", "kB/cloud"]
    notes = (
        "Clouds of 10,000 points. Targets: at least 15,000 decoded clouds/s and 4 times the "
        "pickled .npy of one file per object."
    )
    return [Table("Reading shards", columns, rows, notes)]


def imports(quick: bool) -> list[Table]:
    """The import of released embeddings."""
    from tests.bench.bench_import import run

    rows = run(count=64 if quick else 512)
    columns = ["stage", "ms an object", "objects/s", "hours for 876,000"]
    notes = (
        "Archives in the release's format: 10,000 points, 12 views and 17 more vectors of 1,280 "
        "numbers. Processes share archives out among themselves, so the hours divide by the cores."
    )
    return [Table("Importing the OpenShape release", columns, rows, notes)]


def encode(quick: bool) -> list[Table]:
    """The teacher against open_clip's own loop, and against a card's matrix product."""
    from tests.bench.bench_encode import tables

    return [Table(*table) for table in tables(quick)]


def train(quick: bool) -> list[Table]:
    """A training step against its bare transformer and against a plain implementation."""
    from tests.bench.bench_train import tables

    return [Table(*table) for table in tables(quick)]


def evaluation(quick: bool) -> list[Table]:
    """Search, indexes, metrics and encoding."""
    from tests.bench.bench_evaluation import tables

    return [Table(*table) for table in tables(quick)]


def job(quick: bool) -> list[Table]:
    """Ray against a plain loop."""
    from tests.bench.bench_job import run

    found = run(count=200 if quick else 2000)
    rows: list[list[object]] = [[key, float(value)] for key, value in found.items()]
    notes = (
        "Procedural objects, 12 views of 224 px, 10,000 points, demo teacher, the same stages in "
        "both arms, which take turns of 5 s. Target: an overhead of at most 0.15."
    )
    return [Table("The Ray job against a plain loop", ["", "value"], rows, notes)]


def cores(quick: bool) -> list[Table]:
    """Ray against plain loops, on all cores."""
    from tests.bench.bench_job import all_cores

    found = all_cores(200 if quick else 2000)
    rows: list[list[object]] = [[key, float(value)] for key, value in found.items()]
    notes = "The same work with every core busy in both arms."
    return [Table("The Ray job against plain loops on all cores", ["", "value"], rows, notes)]


def scale(quick: bool) -> list[Table]:
    """The job with workers that only wait."""
    from tests.bench.bench_scale import tables

    return [Table(*table) for table in tables(quick)]


def memory(quick: bool) -> list[Table]:
    """Peak memory against the number of objects."""
    from tests.bench.bench_memory import run

    rows = run((100, 400) if quick else (2000, 8000))
    columns = ["objects", "peak MiB", "s", "to the first"]
    notes = (
        "Resident memory of the whole process tree, shared pages counted once; 2 views of 64 px."
    )
    return [Table("Memory of `pipeline embed`", columns, rows, notes)]


PARTS: dict[str, Callable[[bool], list[Table]]] = {
    "render": render,
    "stages": stages,
    "shards": shards,
    "imports": imports,
    "encode": encode,
    "train": train,
    "evaluation": evaluation,
    "job": job,
    "cores": cores,
    "scale": scale,
    "memory": memory,
}


def pin() -> None:
    """Keep this process and its children on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


UNPINNED = ("cores", "memory")
LONG = ("scale", "memory")  # left out unless named


def run_part(name: str, quick: bool, folder: str) -> list[Table]:
    """One part in a process of its own, so that libraries of one cannot disturb another."""
    path = Path(folder) / f"{name}.json"
    arguments = [sys.executable, "-m", "tests.bench", "--only", name, "--part-json", str(path)]
    subprocess.run([*arguments, *(["--quick"] if quick else [])], check=True)
    return [Table(**table) for table in json.loads(path.read_text())]


def main() -> None:
    """Run the parts, print them, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=None)
    parser.add_argument("--quick", action="store_true", help="small samples, to try it out")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file to write")
    parser.add_argument("--part-json", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    from pipeline.common import atomic_path
    from pipeline.console import note, print_table

    if args.part_json:
        if args.only[0] not in UNPINNED:
            pin()
        tables = PARTS[args.only[0]](args.quick)
        args.part_json.write_text(json.dumps([asdict(table) for table in tables]))
        return
    chosen = args.only or [name for name in PARTS if name not in LONG]
    found: list[Table] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            note(f"bench: {name}")
            for table in run_part(name, args.quick, folder):
                print_table(table.title, table.columns, table.rows)
                found.append(table)
    if args.out:
        command = "python -m tests.bench" + (f" --only {' '.join(chosen)}" if args.only else "")
        head = (
            f"# Benchmarks\n\nOne run of `{command}` on {processor()}, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}. All but `cores` and `memory` are pinned to "
            "one core.\n\n"
        )
        with atomic_path(args.out) as temporary:
            temporary.write_text(head + "\n".join(table.markdown() for table in found))


if __name__ == "__main__":
    main()
