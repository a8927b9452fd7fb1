"""Training the 32M Point-BERT: a step against its bare transformer and a plain implementation.

On a CPU everything is timed in interleaved rounds, in processor time of one core; memory is the
peak of child processes of their own. On a GPU see ``bench_train_gpu``. The baseline is
``tests.bench.train_plain``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.console import note
from tests.bench.train_plain import PlainSizes, PlainTrainer, copy_weights
from tests.bench.train_sides import (
    POINTS,
    RECIPE,
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
    write_shards,
)
from trainer.backbones.measure import measure
from trainer.batch import CloudBatch
from trainer.data import Batches
from trainer.grouping import group_points, prefix_centroids
from trainer.index import Corpus
from trainer.loop import Loop
from trainer.parallel import clip_gradients
from trainer.recipe import load_recipe
from trainer.recorder import Recorder
from trainer.task import DistillTask

MIB = 1 << 20


def tables(quick: bool) -> list[TableParts]:
    """Title, columns, rows and notes of each table."""
    torch.set_num_threads(1)
    found = cpu(2 if quick else 8, 1 if quick else 5, quick=quick)
    found.append(batches(quick))
    found.append(memory(quick))
    if torch.cuda.is_available():
        from tests.bench import bench_train_gpu

        found += bench_train_gpu.tables(quick)
    else:
        note("train: no CUDA device, so training on a GPU is left out")
    return found


# Timing on a CPU.


def _times(works: dict[str, Work], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """User's and system's seconds by name in each round; they take turns, after one of each."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            begun = resource.getrusage(resource.RUSAGE_SELF)
            work()
            ended = resource.getrusage(resource.RUSAGE_SELF)
            found[name].append((ended.ru_utime - begun.ru_utime, ended.ru_stime - begun.ru_stime))
    return found


def _seconds(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Processor seconds by name in each round."""
    return {name: [sum(pair) for pair in pairs] for name, pairs in _times(works, rounds).items()}


def _ratio(a: list[float], b: list[float]) -> float:
    return median(x / y for x, y in zip(a, b, strict=True))


def matmul_rate(dtype: torch.dtype, size: int = 2048, rounds: int = 5) -> float:
    """Operations a second of the core's own matrix product, the best of some."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = _seconds({"product": lambda: a @ b}, rounds)["product"]
    return 2 * size**3 / min(seconds)


def cpu(batch_size: int, rounds: int, *, quick: bool) -> list[TableParts]:
    """Step times against the bare transformer and the baseline, and where the rest goes."""
    batch = make_batch(batch_size)
    rates = {"fp32": matmul_rate(torch.float32), "bf16": matmul_rate(torch.bfloat16)}
    loop, task = make_loop(make_recipe(batch_size), batch)
    low, low_task = make_loop(make_recipe(batch_size, "train.precision=bf16"), batch)
    plain = PlainTrainer(PlainSizes(), WIDTH)
    copy_weights(task.student, plain.model)
    names = {
        "bare": "bare transformer, fp32",
        "step": "trainer, fp32",
        "bare bf16": "bare transformer, bf16",
        "step bf16": "trainer, bf16",
        "plain": "plain PyTorch, fp32",
    }
    works: dict[str, Work] = {
        "bare": bare_work(point_bert(task), batch_size),
        "step": partial(step, loop, batch),
        "bare bf16": bare_work(point_bert(low_task), batch_size, autocast=True),
        "step bf16": partial(step, low, batch),
        "plain": plain_work(plain, batch),
    }
    seconds = _seconds(works, rounds)
    flops = 3 * measure("pointbert-32m")["gflop"] * 1e9
    rows: list[list[object]] = []
    for key, name in names.items():
        per_sample = median(seconds[key]) / batch_size
        own = "bare bf16" if "bf16" in key else "bare"
        rate = rates["bf16" if "bf16" in key else "fp32"]
        used = flops / per_sample / rate
        rows.append(
            [
                name,
                round(1 / per_sample, 3),
                round(1000 * per_sample, 1),
                round(_ratio(seconds[key], seconds[own]), 3),
                round(_ratio(seconds["plain"], seconds[key]), 2),
                "" if "bare" in key else f"{used:.0%}",
            ]
        )
    columns = ["case", "samples/s", "ms/sample", "to its bare transformer", "times plain", "MFU"]
    notes = (
        f"Point-BERT 32M, {POINTS:,} points, batches of {batch_size} ready in memory, one core. "
        "A trainer's step: decode, augment, group, encode, alignment and distillation, backward, "
        "clip, AdamW, moving average. The bare transformer: forward and backward of the same "
        "blocks on ready tokens. Plain: the same network and losses with farthest-point sampling "
        "and a dense ball query inside the step, on decoded clouds, without augmentation. MFU: "
        f"3 x {flops / 3e9:.1f} GFLOP a sample against the core's matrix product of 2,048 in the "
        f"same run ({rates['fp32'] / 1e9:.0f} GFLOP/s fp32, {rates['bf16'] / 1e9:.0f} bf16). "
        "That is the whole network, which plain computes; of the last block the trainer and the "
        "bare transformer compute the CLS token alone, which is 8 % less for the same embedding. "
        "Targets: 1.15 to the bare transformer, 3 times plain."
    )
    found: list[TableParts] = [("Training on a CPU core", columns, rows, notes)]
    whole = median(seconds["step"])
    found.append(_parts_table(loop, task, batch, whole, median(seconds["bare"]), rounds))
    found.append(_plain_table(plain, batch, median(seconds["plain"]), rounds))
    found.append(_wait_table(batch_size, 2 if quick else 4))
    return found


# Each side at several batch sizes, in processes of their own: in a common one, a side can live off
# memory that another has made the process keep.

SIDES = ("step, trainer", "step, bare transformer", "step, plain", "step, plain under autocast")


def batches(quick: bool) -> TableParts:
    """The trainer's step in bf16 against the baseline at batches of several sizes."""
    rounds = 1 if quick else 3
    rows: list[list[object]] = []
    for size in [2] if quick else [8, 16]:
        medians: list[float] = []
        for side in SIDES:
            found: list[tuple[float, float]] = _child(side, size, rounds)
            total = median(user + kernel for user, kernel in found)
            kernel = median(kernel for _, kernel in found)
            medians.append(total)
            cells = 1000 * total / size, 1000 * kernel / size, total / medians[0]
            name = side.removeprefix("step, ")
            rows.append([size, name, *(round(x, 1) for x in cells[:2]), round(cells[2], 2)])
    columns = ["batch", "side", "ms/sample", "of that, the system's", "to the trainer"]
    notes = (
        f"Processor time of one core, median of {rounds} steps after a first one, each side in a "
        "process of its own, so ratios are of medians. The trainer and its bare transformer in "
        "bf16, plain in fp32 and under bf16 autocast. The system's part is memory that is handed "
        "to the process anew."
    )
    return "Training on a CPU core by batch size", columns, rows, notes


def times(side: str, batch_size: int, rounds: int) -> list[tuple[float, float]]:
    """User's and system's seconds of one of ``SIDES`` in each round."""
    batch = make_batch(batch_size)
    if side in SIDES[:2]:
        loop, task = make_loop(make_recipe(batch_size, "train.precision=bf16"), batch)
        bare = bare_work(point_bert(task), batch_size, autocast=True)
        work: Work = partial(step, loop, batch) if side == SIDES[0] else bare
    else:
        work = plain_work(PlainTrainer(PlainSizes(), WIDTH), batch, autocast=side == SIDES[3])
    return _times({side: work}, rounds)[side]


def _child(case: str, *numbers: int) -> Any:
    """What ``main`` prints in a process of its own."""
    arguments = [sys.executable, "-m", "tests.bench.bench_train", case, *map(str, numbers)]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _parts_table(
    loop: Loop, task: DistillTask, batch: CloudBatch, whole: float, trunk: float, rounds: int
) -> TableParts:
    """Each part of a step by itself, on tensors of the same shapes."""
    student, options = point_bert(task), point_bert(task).options
    clouds = batch.to(task.device)
    generator = torch.Generator().manual_seed(0)
    xyz, rgb = task.augment(clouds.xyz, clouds.rgb, generator)
    centroids, points = prefix_centroids(xyz, student.centroids), torch.cat([xyz, rgb], dim=-1)
    group = partial(group_points, points, centroids, options.neighbours, options.radius)
    grouped = group()
    features = torch.randn(len(batch), WIDTH, requires_grad=True)

    def embed() -> None:
        local = student.local(grouped)
        lifted = student.lift_norm(student.lift(torch.cat([centroids, local], dim=-1)))
        cls = student.cls_token.expand(len(lifted), 1, -1)
        tokens = torch.cat([cls, lifted], dim=1)
        tokens.backward(torch.ones_like(tokens))  # type: ignore[no-untyped-call]

    works: dict[str, Work] = {
        "decode": lambda: batch.to(task.device),
        "augment": lambda: task.augment(clouds.xyz, clouds.rgb, generator),
        "group": group,
        "embed patches, forward and backward": embed,
        "losses, forward and backward": lambda: task.loss(features, clouds, 0, 100).loss.backward(),  # type: ignore[no-untyped-call]
        "clip": lambda: clip_gradients(loop.parameters, loop.optim.clip),
        "AdamW": loop.optimizer.step,
        "moving average and bounds": lambda: task.after_step(1000),
    }
    seconds = {name: median(found) for name, found in _seconds(works, rounds).items()}
    per_step = {"clip", "AdamW", "moving average and bounds"}  # whatever the batch
    known = sum(seconds.values())
    rows: list[list[object]] = []

    def add(name: str, value: float, scale: float) -> None:
        cells = 1000 * value / len(batch), value / whole, value / trunk, value / trunk * scale
        rows.append(
            [name, round(cells[0], 2), f"{cells[1]:.1%}", f"{cells[2]:.3f}", f"{cells[3]:.4f}"]
        )

    share = len(batch) / load_recipe(RECIPE).data.batch_size
    add("transformer and projection", trunk, 1)
    for name, value in seconds.items():
        add(name, value, share if name in per_step else 1)
    add("the rest (allocation, tokens, bookkeeping)", whole - trunk - known, 1)
    add("the whole step", whole, 1)
    fixed = sum(seconds[name] for name in per_step)
    rows[-1][-1] = f"{(whole - fixed * (1 - share)) / trunk:.4f}"
    columns = [
        "part",
        "ms/sample",
        "of the step",
        "to the bare transformer",
        "at the recipe's batch",
    ]
    notes = (
        f"fp32, batches of {len(batch)}; each part timed by itself, so the rest is a difference "
        "of medians. Clip, AdamW and moving average cost the same at any batch: the last column "
        "has the ratios at the recipe's batch of 200, by calculation."
    )
    return "Where a step goes", columns, rows, notes


def _plain_table(plain: PlainTrainer, batch: CloudBatch, whole: float, rounds: int) -> TableParts:
    """The same of the baseline."""
    model = plain.model
    clouds = batch.to(torch.device("cpu"))
    centres = model.centres(clouds.xyz)
    patches = model.patches(centres, clouds.xyz, clouds.rgb)
    tokens = torch.randn(len(batch), 1 + model.sizes.centroids, model.sizes.dim, requires_grad=True)

    def backward(forward: Callable[[], Tensor]) -> Work:
        return lambda: forward().sum().backward()  # type: ignore[no-untyped-call]

    works: dict[str, Work] = {
        "farthest-point sampling": lambda: model.centres(clouds.xyz),
        "dense ball query and gather": lambda: model.patches(centres, clouds.xyz, clouds.rgb),
        "embed patches, forward and backward": backward(lambda: model.tokens(centres, patches)),
        "transformer and projection": backward(lambda: model.transform(tokens)),
    }
    seconds = {name: median(found) for name, found in _seconds(works, rounds).items()}
    seconds["losses, clip, AdamW, moving average, rest"] = whole - sum(seconds.values())
    rows: list[list[object]] = [
        [name, round(1000 * value / len(batch), 2), f"{value / whole:.1%}"]
        for name, value in [*seconds.items(), ("the whole step", whole)]
    ]
    return "Where a step of the baseline goes", ["part", "ms/sample", "of the step"], rows, ""


class _Kept:
    """Stands for the recorder."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, kind: str, number: int, values: dict[str, Any]) -> None:
        self.records.append({"kind": kind, "step": number, **values})


def _wait_table(batch_size: int, steps: int) -> TableParts:
    """The loop as a run has it, reading shards: how long a step waits for its data."""
    recipe = make_recipe(batch_size, "train.log_every=1")
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "shards"
        write_shards(root, 4 * batch_size)
        caches = {"kept in memory": 4096, "streamed": 0}
        for name, cache in list(caches.items())[-1:] if steps < 3 else caches.items():
            kept = _Kept()
            chosen = make_recipe(batch_size, "train.log_every=1", f"data.cache_mib={cache}")
            task = DistillTask(chosen, WIDTH, torch.device("cpu"))
            loop = Loop(
                task,
                Batches(Corpus([root], chosen), 0),
                None,
                cast(Recorder, kept),
                lambda _: None,
                train=chosen.train,
                optim=recipe.optim,
                total=steps,
            )
            loop.run()
            waits = [record["data_wait"] for record in kept.records]
            rows.append([name, f"{waits[0]:.2%}", f"{max(waits[1:]):.2%}"])
    columns = ["shards", "wait of the first step", "largest wait of the others"]
    notes = (
        f"`Loop.run` on shards of {4 * batch_size} clouds, batches of {batch_size}, wall-clock "
        "time as the trainer logs it, reading and training on the same core. Target: under 5 %."
    )
    return "Waiting for data", columns, rows, notes


# Memory, each case in a process of its own.

MEMORY_CASES: dict[str, tuple[str, ...]] = {
    "trainer": (),
    "trainer, train.recompute": ("train.recompute=true",),
    "trainer, train.micro_batch=2": ("train.micro_batch=2",),
    "trainer, train.micro_batch=2 and recompute": ("train.micro_batch=2", "train.recompute=true"),
}
PLAIN = "plain PyTorch"


def peaks(case: str, sizes: list[int]) -> list[float]:
    """MiB of resident memory at its peak after steps of rising batch sizes, in this process."""
    if case == PLAIN:
        plain = PlainTrainer(PlainSizes(), WIDTH)
    else:
        recipe = make_recipe(max(sizes), *MEMORY_CASES[case])
        loop, _ = make_loop(recipe, make_batch(1))
    found = []
    for size in sizes:
        batch = make_batch(size)
        for _ in range(2):  # the second with moments of AdamW, which stay
            if case == PLAIN:
                plain_work(plain, batch)()
            else:
                step(loop, batch)
        found.append(peak_mib())
    return found


def peak_mib() -> float:
    """MiB of resident memory of this process at its peak.

    Not ``ru_maxrss`` where there is another way: it begins with the peak of the parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return float(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def memory(quick: bool) -> TableParts:
    """Resident memory a sample, from peaks at two batch sizes."""
    cases = list(MEMORY_CASES)[:1] if quick else [*MEMORY_CASES, PLAIN]
    sizes = [2, 3] if quick else [4, 10]
    rows: list[list[object]] = []
    for case in cases:
        small, large = _child(case, *sizes)
        rows.append([case, round((large - small) / (sizes[1] - sizes[0]), 1), round(large)])
    columns = ["case", "MiB a sample", f"peak of the process at a batch of {sizes[1]}, MiB"]
    notes = (
        f"fp32 on a CPU; the difference of the peaks at batches of {sizes[0]} and {sizes[1]}, by "
        "sample. With micro-batches only the points and features of further samples count."
    )
    return "Peak memory of training", columns, rows, notes


def main() -> None:
    """One case, as JSON: what ``_child`` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=[*MEMORY_CASES, PLAIN, *SIDES])
    parser.add_argument("numbers", type=int, nargs="+", help="batch sizes; or a size, and rounds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    timed = args.case in SIDES
    found = times(args.case, *args.numbers) if timed else peaks(args.case, args.numbers)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
