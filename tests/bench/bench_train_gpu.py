"""Training on a GPU: steps against the bare transformer and the baseline, grouping, memory, MFU.

Wall-clock times between synchronisations; numbers are absolute and name the card. The yardstick of
MFU is the card's own matrix product, measured in the same run.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.console import note
from tests.bench.train_plain import PlainSizes, PlainTrainer
from tests.bench.train_sides import (
    POINTS,
    WIDTH,
    TableParts,
    Work,
    bare_work,
    make_batch,
    make_loop,
    make_recipe,
    plain_work,
    point_bert,
    step,
)
from trainer.backbones.measure import measure
from trainer.grouping import gather_points, group_points, plain_ball_query, prefix_centroids
from trainer.task import DistillTask


@dataclass(frozen=True)
class _Timed:
    """Best wall-clock seconds of some steps, and the most memory in use."""

    seconds: float
    gib: float


def _gpu_timed(work: Work, times: int, runs: int = 3) -> _Timed:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    found = []
    for _ in range(runs):
        begun = time.perf_counter()
        for _ in range(times):
            work()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - begun) / times)
    return _Timed(min(found), torch.cuda.max_memory_allocated() / 2**30)


def _gpu_product(size: int = 8192) -> float:
    """Operations a second of the card's bfloat16 matrix product."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    return 2 * size**3 / _gpu_timed(lambda: a @ b, 20, 5).seconds


def tables(quick: bool) -> list[TableParts]:
    """Steps, grouping and memory on the card, in absolute numbers."""
    if hasattr(os, "sched_setaffinity"):  # the compiler may use all cores; it is not timed
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    warnings.filterwarnings("ignore")  # advice of the compiler
    peak = _gpu_product()
    times = 2 if quick else 10
    rows: list[list[object]] = []
    for model in ("pointbert-32m",) if quick else ("pointbert-32m", "pointbert-72m"):
        rows += _gpu_rows(model, 64 if quick else 200, 16 if quick else 64, times, peak)
    columns = [
        "case", "batch", "samples/s", "ms/sample", "to its bare transformer", "times plain",
        "MFU", "peak MiB/sample",
    ]  # fmt: skip
    name = torch.cuda.get_device_name()
    notes = (
        f"On {name}, {POINTS:,} points, ready batches in host memory, wall-clock time. MFU: 3 x "
        "the forward GFLOP of a sample against the card's bfloat16 matrix product of 8,192, "
        f"{peak / 1e12:.0f} TFLOP/s in the same run; the patches of the last block count, which "
        "only plain computes. Peak memory by sample holds weights and "
        "moments too. Targets: 1.15 to the bare transformer, MFU of 40 % for the 72M."
    )
    return [(f"Training on {name}", columns, rows, notes), _gpu_grouping(times, name)]


def _gpu_rows(
    model: str, batch_size: int, plain_size: int, times: int, peak: float
) -> list[list[object]]:
    """Cases of one size; one that does not fit into the card's memory is left out with a note."""
    flops = 3 * measure(model)["gflop"] * 1e9
    batch = make_batch(batch_size)
    found: dict[str, tuple[int, _Timed]] = {}
    twins: dict[str, str] = {}

    def attempt(name: str, size: int, make: Callable[[], Work]) -> None:
        try:
            found[name] = size, _gpu_timed(make(), times)
        except torch.OutOfMemoryError:
            note(f"train: {model}, {name}: a batch of {size} does not fit into the card's memory")
        torch.cuda.empty_cache()

    def trainer(*overrides: str) -> Work:
        recipe = make_recipe(batch_size, f"model.backbone={model}", *overrides)
        loop, _ = make_loop(recipe, batch, "cuda")
        return partial(step, loop, batch)

    def trunk(compiled: bool) -> Work:
        recipe = make_recipe(batch_size, f"model.backbone={model}")
        student = point_bert(DistillTask(recipe, WIDTH, torch.device("cuda")))
        if compiled:
            for block in student.blocks:
                block.compile()
        return bare_work(student, batch_size, autocast=True)

    def baseline() -> Work:
        options = point_bert(DistillTask(make_recipe(2, f"model.backbone={model}"), WIDTH,
                                         torch.device("cpu"))).options  # fmt: skip
        sizes = PlainSizes(
            options.dim, options.depth, options.heads, options.head_dim, options.mlp_dim,
            options.local_dims, options.centroids, options.neighbours, options.radius,
        )  # fmt: skip
        return plain_work(PlainTrainer(sizes, WIDTH, "cuda"), make_batch(plain_size), "cuda")

    for compiled in (False, True):
        kind = "compiled" if compiled else "not compiled"
        bare_name = f"bare transformer, bf16, {kind}"
        attempt(bare_name, batch_size, partial(trunk, compiled))
        asked = ("train.precision=bf16", f"train.compile={str(compiled).lower()}")
        for suffix, more in (("", ()), (", recompute", ("train.recompute=true",))):
            name = f"trainer, bf16, {kind}{suffix}"
            attempt(name, batch_size, partial(trainer, *asked, *more))
            twins[name] = bare_name
    attempt("plain PyTorch, fp32", plain_size, baseline)
    plain = found.get("plain PyTorch, fp32")
    rows: list[list[object]] = []
    for name, (size, timed) in found.items():
        per_sample = timed.seconds / size
        twin = found.get(twins.get(name, ""))
        rows.append(
            [
                f"{model}: {name}",
                size,
                round(1 / per_sample, 1),
                round(1000 * per_sample, 3),
                round(timed.seconds / twin[1].seconds, 3) if twin else "",
                round(plain[1].seconds / plain[0] / per_sample, 2) if plain else "",
                "" if "bare" in name else f"{flops / per_sample / peak:.0%}",
                round(timed.gib * 1024 / size),
            ]
        )
    return rows


def _gpu_grouping(times: int, name: str) -> TableParts:
    """The ball query with its gather, fused and plain: 96 clouds, 384 balls of 64 points."""
    clouds = make_batch(96).to(torch.device("cuda"))
    points = torch.cat([clouds.xyz, clouds.rgb], dim=-1)
    centroids = prefix_centroids(clouds.xyz, 384)
    works: dict[str, Work] = {
        "as the trainer groups (Triton where it is usable)": lambda: group_points(
            points, centroids, 64, 0.2
        ),
        "plain PyTorch": lambda: _plain_grouping(points, centroids),
    }
    rows: list[list[object]] = []
    for case, work in works.items():
        timed = _gpu_timed(work, times)
        rows.append([case, round(1000 * timed.seconds, 2), round(timed.gib, 2)])
    notes = f"On {name}: 96 clouds of {POINTS:,} points, 384 balls of radius 0.2, 64 points each."
    return "Grouping on a GPU", ["case", "ms", "peak GiB"], rows, notes


def _plain_grouping(points: Tensor, centroids: Tensor) -> Tensor:
    index = plain_ball_query(centroids, points[..., :3], 0.2, 64)
    near = gather_points(points, index)
    return torch.cat([near[..., :3] - centroids[:, :, None], near], dim=-1)
