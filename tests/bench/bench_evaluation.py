"""Search, indexes and metrics at the sizes of a whole catalogue, and encoding.

Each case of search and metrics runs in a process of its own, so that its peak memory is its own.
Vectors are of 2,000 kinds with noise, as embeddings of things lie: uniform ones have no neighbours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.bench_train import matmul_rate, peak_mib
from tests.bench.train_sides import TableParts, make_clouds

F32 = NDArray[np.float32]
KINDS = 2000
QUERIES = 64
K = 10


def unit(count: int, width: int, seed: int) -> F32:
    """(count, width) unit vectors around ``KINDS`` centres."""
    centres = np.random.default_rng(99).normal(size=(KINDS, width)).astype(np.float32)
    rng = np.random.default_rng(seed)
    found = np.empty((count, width), np.float32)
    for start in range(0, count, 20_000):
        part = slice(start, min(count, start + 20_000))
        size = part.stop - part.start
        found[part] = centres[rng.integers(KINDS, size=size)]
        found[part] += 0.7 * rng.standard_normal((size, width), np.float32)
        found[part] /= np.linalg.norm(found[part], axis=1, keepdims=True)
    return found


def write_vectors(path: Path, count: int, width: int) -> None:
    """float16 vectors as a .npy file."""
    out = np.lib.format.open_memmap(path, "w+", np.float16, (count, width))
    for start in range(0, count, 50_000):
        size = min(50_000, count - start)
        out[start : start + size] = unit(size, width, start)
    out.flush()


# The cases; each returns its seconds.


def blocks(path: Path, queries: F32) -> float:
    """Ours: block by block from the file."""
    from evaluation.exact import top_k

    vectors = np.load(path, mmap_mode="r")
    begun = time.perf_counter()
    top_k(queries, vectors, K)
    return time.perf_counter() - begun


def at_once(path: Path, queries: F32) -> float:
    """The obvious version: all as float32, one product, then the best of each row."""
    vectors = np.load(path)
    begun = time.perf_counter()
    scores = queries @ vectors.astype(np.float32).T
    best = np.argpartition(-scores, K, axis=1)[:, :K]
    np.take_along_axis(scores, best, 1)
    return time.perf_counter() - begun


def classify(count: int, classes: int, width: int) -> float:
    """Ranks of the true class."""
    from trainer.metrics import class_ranks_chunked

    embeds, texts = unit(count, width, 1), unit(classes, width, 2)
    labels = np.arange(count) % classes
    begun = time.perf_counter()
    class_ranks_chunked(embeds, texts, labels)
    return time.perf_counter() - begun


def retrieve(count: int, width: int) -> float:
    """Every row asks for its pair."""
    from trainer.metrics import rank_pairs

    queries, gallery = unit(count, width, 1), unit(count, width, 2)
    begun = time.perf_counter()
    rank_pairs(queries, gallery)
    return time.perf_counter() - begun


CASES: dict[str, Callable[..., float]] = {
    "blocks": blocks,
    "at_once": at_once,
    "classify": classify,
    "retrieve": retrieve,
}


def run_case(name: str, *numbers: object) -> tuple[float, float]:
    """Seconds and peak MiB of a case in its own process."""
    arguments = [sys.executable, "-m", "tests.bench.bench_evaluation", name, *map(str, numbers)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


# The tables.


def tables(quick: bool) -> list[TableParts]:
    """Title, columns, rows and notes of each table."""
    return [search(quick), indexes(quick), figures(quick), encoding(quick)]


def search(quick: bool) -> TableParts:
    """Exact search among vectors in a file."""
    count, width = (20_000, 256) if quick else (1_000_000, 1_280)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        write_vectors(path, count, width)
        found = {name: run_case(name, path) for name in ("blocks", "at_once")}
    flops = 2 * QUERIES * count * width
    import torch

    rate = matmul_rate(torch.float32)
    names = {"blocks": "`evaluation.exact.top_k`, in blocks", "at_once": "numpy, all at once"}
    rows: list[list[object]] = [
        [
            names[key],
            round(seconds, 2),
            round(QUERIES / seconds, 1),
            round(peak / 1024, 2),
            f"{flops / seconds / rate:.0%}",
        ]
        for key, (seconds, peak) in found.items()
    ]
    columns = ["case", "s", "queries/s", "peak GiB", "of the matrix product"]
    notes = (
        f"The best {K} of {count:,} vectors of {width:,} float16 numbers in a file, {QUERIES} "
        "queries together. The peak counts the mapped file too. Target: within 6 GiB."
    )
    return "Exact search", columns, rows, notes


def indexes(quick: bool) -> TableParts:
    """Single queries to an index that has a recall of 0.95, against the flat one."""
    from evaluation.index_choice import Wanted, choose

    count, width = (10_000, 64) if quick else (50_000, 256)
    vectors, queries = unit(count, width, 1), unit(500, width, 2)
    samples = {"shape": queries}
    flat = choose(vectors, samples, Wanted("flat"))
    rows: list[list[object]] = []
    for kind in ("flat", "hnsw", "ivfpq"):
        begun = time.perf_counter()
        built = flat if kind == "flat" else choose(vectors, samples, Wanted(kind))
        seconds = time.perf_counter() - begun
        times: dict[str, list[float]] = {"flat": [], kind: []}
        for _ in range(5):  # in turns
            for name, engine in (("flat", flat.engine), (kind, built.engine)):
                begun = time.perf_counter()
                for query in queries[:100]:
                    engine.search(np.ascontiguousarray(query[None]), K)
                times[name].append((time.perf_counter() - begun) / 100)
        recall: Any = built.recall["shape"]["recall"] if built.recall else 1.0
        rows.append(
            [
                built.plan.told(),
                round(float(recall), 3),
                round(1 / median(times[kind]), 1),
                round(median(times["flat"]) / median(times[kind]), 1),
                round(built.plan.memory / 1e6),
                "" if kind == "flat" else round(seconds, 1),
            ]
        )
    columns = ["index", f"recall@{K}", "queries/s", "times flat", "MB", "made in s"]
    notes = (
        f"{count:,} vectors of {width} numbers, 500 queries for the recall, single queries "
        "one after another for the time, in turns with the flat index. The time "
        "of making one includes plans that did not reach a recall of 0.95."
    )
    return "Indexes at a recall of 0.95", columns, rows, notes


def figures(quick: bool) -> TableParts:
    """Metrics over whole benchmarks."""
    sizes = (2_000, 200, 64) if quick else (46_205, 1_156, 1_280)
    pairs = (3_000, 64) if quick else (50_000, 512)
    rows: list[list[object]] = []
    for name, case, numbers, whole in (
        ("zero-shot ranks", "classify", sizes, 4 * sizes[0] * sizes[1]),
        ("retrieval ranks", "retrieve", pairs, 4 * pairs[0] ** 2),
    ):
        seconds, peak = run_case(case, *numbers)
        told = " x ".join(f"{number:,}" for number in numbers[:-1]) or ""
        told = told if case == "classify" else f"{pairs[0]:,} x {pairs[0]:,}"
        rows.append([name, told, round(seconds, 1), round(peak), round(whole / (1 << 20))])
    columns = ["figures", "size", "s", "peak MiB", "MiB of the whole matrix"]
    notes = "The peak includes the vectors, float32. Target: within 2 GiB."
    return "Metrics of large benchmarks", columns, rows, notes


def encoding(quick: bool) -> TableParts:
    """Clouds of shards to embeddings, against the bare backbone on ready tensors."""
    import torch

    from evaluation.embeddings import ModelInfo
    from evaluation.student import Student
    from pipeline.shards import POINT_SCALE, TeacherInfo, decode_xyz
    from trainer.backbones.registry import build_backbone

    torch.set_num_threads(1)
    rows: list[list[object]] = []
    for name, n_points, count in (("tiny", 1024, 64), ("pointbert-32m", 10_000, 4)):
        if quick and name != "tiny":
            continue
        backbone = build_backbone(name, 512).eval()
        teacher = TeacherInfo("none", "", {}, 512, 100.0, [], [])
        student = Student(backbone, teacher, n_points, ModelInfo("student", name), batch_size=count)
        xyz, rgb = make_clouds(count, n_points, min(2048, n_points))
        stored = np.rint(xyz * POINT_SCALE).astype(np.int16)
        colored = np.ones(count, np.bool_)
        ready = torch.from_numpy(xyz), torch.from_numpy(rgb).float() / 255
        works: dict[str, Callable[[], object]] = {
            "bare": lambda model=backbone, given=ready: model(*given),  # type: ignore[misc]
            "encode": lambda one=student, a=stored, b=rgb, c=colored: one.embed(  # type: ignore[misc]
                decode_xyz(a), b, c
            ),
        }
        seconds: dict[str, list[float]] = {key: [] for key in works}
        for turn in range(4 if quick else 8):
            for key, work in works.items():
                begun = time.process_time()
                with torch.inference_mode():
                    work()
                if turn:
                    seconds[key].append(time.process_time() - begun)
        times = {key: median(values) / count for key, values in seconds.items()}
        rows.append(
            [
                name,
                n_points,
                round(1 / times["encode"], 2),
                round(1 / times["bare"], 2),
                round(times["encode"] / times["bare"], 3),
            ]
        )
    columns = ["backbone", "points", "clouds/s", "bare backbone, clouds/s", "to it"]
    notes = "fp32, random weights, one core; decoding the stored points is in, reading them is not."
    return "Encoding clouds", columns, rows, notes


def main() -> None:
    """Seconds and peak memory of one case, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("arguments", nargs="+")
    args = parser.parse_args()
    if args.case in ("blocks", "at_once"):
        path = Path(args.arguments[0])
        width = np.load(path, mmap_mode="r").shape[1]
        seconds = CASES[args.case](path, unit(QUERIES, width, 5))
    else:
        seconds = CASES[args.case](*map(int, args.arguments))
    sys.stdout.write(json.dumps([seconds, peak_mib()]) + "\n")


if __name__ == "__main__":
    main()
