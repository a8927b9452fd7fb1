"""Reading speed of shards on one core, against the formats that others use for the same data.

Run as ``python -m tests.bench.bench_shards``. Every case reads the same clouds from a warm cache
in interleaved rounds; the median round counts. Speeds are per second of processor time, which on
an idle machine is the time on the clock (shown beside) and which other programs do not disturb.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.console import print_json, print_table
from pipeline.shards import Manifest, Row, ShardSet, TeacherInfo, create_or_open, write_part

N_POINTS, N_VIEWS, WIDTH, N_TEXTS = 10_000, 12, 512, 3
TARGET_CLOUDS_PER_S = 15_000
TARGET_RATIO = 4.0
TARGET_CASE = "shards: xyz, rgb as stored"
PICKLED = "pickled .npy per object: all it holds"


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    case: str
    clouds_per_s: float  # of processor time; median over the rounds
    clock_clouds_per_s: float  # by the clock
    ratio: float  # of processor time, to the pickled .npy files
    kb_per_cloud: float  # on disk, 1 kB = 1000 bytes


def make_rows(count: int, seed: int = 0) -> tuple[Manifest, list[Row]]:
    """Clouds on ellipsoids; a quarter grey, a quarter of one colour, half textured."""
    rng = np.random.default_rng(seed)

    def unit(*shape: int) -> Any:
        values = rng.standard_normal(shape, np.float32)
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    first = unit(WIDTH).tolist()
    manifest = Manifest(
        teacher=TeacherInfo("bench", "", {}, WIDTH, 100.0, first, first),
        dataset={"name": "bench", "options": {}},
        n_points=N_POINTS,
        n_fps=2048,
        n_views=N_VIEWS,
        sampling_seed=seed,
        renderer={"name": "none"},
        cameras={"name": "none"},
        templates=["{}"],
    )
    rows = []
    for i in range(count):
        rgb = np.empty((N_POINTS, 3), np.uint8)
        if i % 4 == 0:
            rgb[:] = 102
        elif i % 4 == 1:
            rgb[:] = rng.integers(0, 256, 3)
        else:
            rgb[:] = rng.integers(0, 256, (N_POINTS, 3))
        rows.append(
            Row(
                uid=f"bench/{i:06d}",
                dataset="bench",
                source=f"{i}.glb",
                category=f"class {i % 50}",
                split=None,
                xyz=unit(N_POINTS, 3) * rng.uniform(0.2, 1, 3).astype(np.float32),
                rgb=rgb,
                has_color=i % 4 != 0,
                image_embeds=unit(N_VIEWS, WIDTH),
                texts=[f"caption {k} of object {i}" for k in range(N_TEXTS)],
                text_sources=["caption"] * N_TEXTS,
                text_embeds=unit(N_TEXTS, WIDTH),
                sha256="0" * 64,
                n_faces=1000,
                n_vertices=500,
                n_bytes=10_000,
            )
        )
    return manifest, rows


def write_formats(folder: Path, rows: list[Row], manifest: Manifest) -> None:
    """The rows as shards, as one pickled ``.npy`` per object and as Parquet lists."""
    create_or_open(folder / "shards", manifest)
    for start in range(0, len(rows), 512):
        write_part(folder / "shards", manifest, rows[start : start + 512])
    for name in ("pickled", "pickled_clouds"):
        (folder / name).mkdir()
    for row in rows:
        cloud = {"xyz": row.xyz, "rgb": row.rgb.astype(np.float32) / 255}
        others = {
            "image_feat": row.image_embeds,
            "text_feat": row.text_embeds,
            "text": list(row.texts),
        }
        name = f"{row.uid.split('/')[1]}.npy"
        np.save(folder / "pickled" / name, np.array({**cloud, **others}), allow_pickle=True)
        np.save(folder / "pickled_clouds" / name, np.array(cloud), allow_pickle=True)
    table = pa.table(
        {
            "xyz": pa.array([_quantised(row).ravel() for row in rows], pa.list_(pa.int16())),
            "rgb": pa.array([row.rgb.ravel() for row in rows], pa.list_(pa.uint8())),
        }
    )
    pq.write_table(table, folder / "lists.parquet", row_group_size=64, compression="lz4")


def _quantised(row: Row) -> Any:
    return np.rint(row.xyz * 32767).astype(np.int16)


def read_shards(folder: Path, columns: list[str], *, floats: bool, warm: bool) -> Callable[[], int]:
    """A pass over the set. ``warm``: the checksums were compared in an earlier pass."""
    kept = ShardSet.open(folder / "shards")
    if warm:
        for _ in kept.batches(columns):
            pass
    buffer = np.empty((64, N_POINTS, 3), np.float32)

    def read() -> int:
        shards = kept if warm else ShardSet.open(folder / "shards")
        count = 0
        for batch in shards.batches(columns):
            if floats:
                batch.xyz_float(buffer[: len(batch)])
            count += len(batch)
        return count

    return read


def read_pickled(folder: Path) -> Callable[[], int]:
    """A pass over one pickled file per object, each a dict of float32 arrays."""
    paths = sorted(folder.glob("*.npy"))

    def read() -> int:
        count = 0
        for path in paths:
            item = np.load(path, allow_pickle=True).item()
            count += item["xyz"].shape == (N_POINTS, 3) and item["rgb"].shape == (N_POINTS, 3)
        return count

    return read


def read_lists(path: Path) -> Callable[[], int]:
    """A pass over Parquet lists, decoded to (B, N, 3) arrays."""

    def read() -> int:
        count = 0
        with pq.ParquetFile(path, memory_map=True) as file:
            for index in range(file.num_row_groups):
                table = file.read_row_group(index, use_threads=False)
                for name in ("xyz", "rgb"):
                    flat = table.column(name).combine_chunks().flatten().to_numpy()
                    cloud = flat.reshape(table.num_rows, N_POINTS, 3)
                count += len(cloud)
        return count

    return read


def run(count: int = 1024, rounds: int = 7) -> list[Result]:
    """Time every case over ``count`` clouds, pinned to one core. Reads ``rounds`` times each."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if affinity:
        os.sched_setaffinity(0, {min(affinity)})
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            manifest, rows = make_rows(count)
            write_formats(folder, rows, manifest)
            del rows
            return _time(folder, count, rounds)
    finally:
        if affinity:
            os.sched_setaffinity(0, affinity)


def _time(folder: Path, count: int, rounds: int) -> list[Result]:
    clouds, everything = ["xyz", "rgb"], ["xyz", "rgb", "image_embeds", "texts", "text_embeds"]
    shards, npy = folder / "shards", folder / "pickled"
    cases: dict[str, tuple[Callable[[], int], Path]] = {
        TARGET_CASE: (read_shards(folder, clouds, floats=False, warm=True), shards),
        "shards: xyz as float32, rgb": (
            read_shards(folder, clouds, floats=True, warm=True),
            shards,
        ),
        "shards: xyz as float32, rgb, embeddings, texts": (
            read_shards(folder, everything, floats=True, warm=True),
            shards,
        ),
        "shards: xyz, rgb as stored, first pass (open, checksums)": (
            read_shards(folder, clouds, floats=False, warm=False),
            shards,
        ),
        PICKLED: (read_pickled(npy), npy),
        "pickled .npy per object: xyz, rgb float32 alone": (
            read_pickled(folder / "pickled_clouds"),
            folder / "pickled_clouds",
        ),
        "Parquet lists: xyz int16, rgb uint8": (
            read_lists(folder / "lists.parquet"),
            folder / "lists.parquet",
        ),
    }
    seconds: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    for round_ in range(rounds + 1):
        for case, (read, _) in cases.items():
            clock, processor = time.perf_counter(), time.process_time()
            if read() != count:
                raise RuntimeError(f"{case}: did not read {count} clouds")
            if round_:  # the first one warms the cache
                spent = (time.process_time() - processor, time.perf_counter() - clock)
                seconds[case].append(spent)
    results = []
    for case, (_, path) in cases.items():
        speed, clock_speed = (
            count / statistics.median(column) for column in zip(*seconds[case], strict=True)
        )
        results.append(Result(case, speed, clock_speed, 0.0, _size(path) / count / 1000))
    (base,) = (result.clouds_per_s for result in results if result.case == PICKLED)
    return [replace(result, ratio=result.clouds_per_s / base) for result in results]


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [child for child in path.iterdir() if child.is_file()]
    return sum(file.stat().st_size for file in files)


def main() -> None:
    """Print the table and whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1024, help="clouds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = run(options.count, options.rounds)
    if options.json:
        print_json([asdict(result) for result in results])
        return
    print_table(
        f"reading {options.count} clouds of {N_POINTS} points, one core, warm cache",
        ["case", "clouds/s", "by the clock", "ratio", "kB/cloud"],
        [
            [r.case, round(r.clouds_per_s), round(r.clock_clouds_per_s), r.ratio, r.kb_per_cloud]
            for r in results
        ],
    )
    target = next(result for result in results if result.case == TARGET_CASE)
    goals = [
        ("clouds/s", TARGET_CLOUDS_PER_S, round(target.clouds_per_s)),
        ("times the pickled .npy", TARGET_RATIO, target.ratio),
    ]
    print_table(
        f"{TARGET_CASE}: targets",
        ["what", "asked", "reached", "met"],
        [[what, asked, got, "yes" if got >= asked else "no"] for what, asked, got in goals],
    )


if __name__ == "__main__":
    main()
