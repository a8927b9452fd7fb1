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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.console import note
from pipeline.heap import keep_freed
from tests.bench.train_plain import PlainSizes, PlainTrainer
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
    size, rounds = (2, 1) if quick else (8, 5)
    found = [steps(size, rounds)]
    if not quick:  # all sides at once would not fit into 24 GiB
        found.append(steps(16, 3, [BARE_BF16, STEP_BF16, PLAIN_FP32, PLAIN_BF16]))
    found += parts(size, rounds)
    found.append(_wait_table(size, 2 if quick else 4))
    found.append(memory(quick))
    if torch.cuda.is_available():
        from tests.bench import bench_train_gpu

        found += bench_train_gpu.tables(quick)
    else:
        note("train: no CUDA device, so training on a GPU is left out")
    return found


# Timing on a CPU.


def _times(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Processor seconds by name in each round; they take turns, after one of each."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(sum(_timed(work)))
    return found


def _timed(work: Work) -> tuple[float, float]:
    """User's and system's seconds of this process."""
    begun = resource.getrusage(resource.RUSAGE_SELF)
    work()
    ended = resource.getrusage(resource.RUSAGE_SELF)
    return ended.ru_utime - begun.ru_utime, ended.ru_stime - begun.ru_stime


def _ratio(a: list[float], b: list[float]) -> float:
    return median(x / y for x, y in zip(a, b, strict=True))


def matmul_rate(dtype: torch.dtype, size: int = 2048, rounds: int = 5) -> float:
    """Operations a second of the core's own matrix product, the best of some."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(_times({"product": lambda: a @ b}, rounds)["product"])


# Sides of the comparison, each in a process of its own: in a common one, a side can live off memory
# that another has made the process keep.

SIDES = (
    "bare transformer, fp32",
    "trainer, fp32",
    "bare transformer, bf16",
    "trainer, bf16",
    "plain PyTorch, fp32",
    "plain PyTorch, bf16 autocast",
)
BARE, STEP, BARE_BF16, STEP_BF16, PLAIN_FP32, PLAIN_BF16 = SIDES


def side_work(side: str, batch_size: int) -> Work:
    """One step of one of ``SIDES``."""
    batch = make_batch(batch_size)
    low = side.endswith(("bf16", "autocast"))
    if side in (PLAIN_FP32, PLAIN_BF16):
        return plain_work(PlainTrainer(PlainSizes(), WIDTH), batch, autocast=low)
    keep_freed()  # as `trainer run` does
    precision = "bf16" if low else "fp32"
    loop, task = make_loop(make_recipe(batch_size, f"train.precision={precision}"), batch)
    if side in (BARE, BARE_BF16):
        return bare_work(point_bert(task), batch_size, autocast=low)
    return partial(step, loop, batch)


class _Side:
    """A process that does a step of one side when it is told to."""

    def __init__(self, side: str, batch_size: int) -> None:
        self._process = subprocess.Popen(
            _command(side, batch_size), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self) -> tuple[float, float]:
        """User's and system's seconds of one step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with exit code {self._process.wait()}")
        user, system = json.loads(line)
        return user, system

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


def serve(side: str, batch_size: int) -> None:
    """What such a process does: a step for each line it reads."""
    work = side_work(side, batch_size)
    for _ in sys.stdin:
        sys.stdout.write(json.dumps(_timed(work)) + "\n")
        sys.stdout.flush()


def take_turns(
    sides: Sequence[str], batch_size: int, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """User's and system's seconds by side in each round, after a first one that is not counted."""
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    with ExitStack() as open_sides:
        processes: dict[str, _Side] = {}
        for side in sides:
            processes[side] = open_sides.enter_context(closing(_Side(side, batch_size)))
            processes[side].turn()
        for _ in range(rounds):
            for side, process in processes.items():
                found[side].append(process.turn())
    return found


def steps(batch_size: int, rounds: int, sides: Sequence[str] = SIDES) -> TableParts:
    """A trainer's step against its bare transformer and against the baseline."""
    rates = {"fp32": matmul_rate(torch.float32), "bf16": matmul_rate(torch.bfloat16)}
    pairs = take_turns(sides, batch_size, rounds)
    seconds = {side: [sum(pair) for pair in found] for side, found in pairs.items()}
    flops = 3 * measure("pointbert-32m")["gflop"] * 1e9
    rows: list[list[object]] = []
    for side, found in seconds.items():
        per_sample = median(found) / batch_size
        system = median(pair[1] for pair in pairs[side]) / batch_size
        bare = BARE_BF16 if "bf16" in side else BARE
        rate = rates["bf16" if "bf16" in side else "fp32"]
        cells = {plain: _ratio(seconds[plain], found) for plain in (PLAIN_FP32, PLAIN_BF16)}
        rows.append(
            [
                side,
                round(1 / per_sample, 3),
                round(1000 * per_sample, 1),
                round(1000 * system, 1),
                round(_ratio(found, seconds[bare]), 3) if bare in seconds else "",
                *(round(ratio, 2) for ratio in cells.values()),
                "" if side in (BARE, BARE_BF16) else f"{flops / per_sample / rate:.0%}",
            ]
        )
    columns = [
        "case",
        "samples/s",
        "ms/sample",
        "of that, the system's",
        "to its bare transformer",
        "times plain, fp32",
        "times plain, autocast",
        "MFU",
    ]
    notes = (
        f"Point-BERT 32M, {POINTS:,} points, batches of {batch_size} ready in memory, one core. "
        f"Each case is a process of its own; they take turns, {rounds} times; medians, of ratios "
        "by round too. The system's part is memory that is handed to the process anew. "
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
    return f"Training on a CPU core, batches of {batch_size}", columns, rows, notes


def parts(batch_size: int, rounds: int) -> list[TableParts]:
    """Where the steps in fp32 go, the trainer's and the baseline's."""
    batch = make_batch(batch_size)
    plain = PlainTrainer(PlainSizes(), WIDTH)
    whole = median(_times({"plain": plain_work(plain, batch)}, rounds)["plain"])
    of_plain = _plain_table(plain, batch, whole, rounds)
    keep_freed()
    loop, task = make_loop(make_recipe(batch_size), batch)
    works: dict[str, Work] = {
        "bare": bare_work(point_bert(task), batch_size),
        "step": partial(step, loop, batch),
    }
    found = {name: median(seconds) for name, seconds in _times(works, rounds).items()}
    return [_parts_table(loop, task, batch, found["step"], found["bare"], rounds), of_plain]


def _child(case: str, *numbers: int) -> Any:
    """What ``main`` prints in a process of its own."""
    done = subprocess.run(_command(case, *numbers), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _command(case: str, *numbers: int) -> list[str]:
    return [sys.executable, "-m", "tests.bench.bench_train", case, *map(str, numbers)]


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
    seconds = {name: median(found) for name, found in _times(works, rounds).items()}
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
    seconds = {name: median(found) for name, found in _times(works, rounds).items()}
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
        keep_freed()  # as `trainer run` does
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
    """One case: what ``_command`` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=[*MEMORY_CASES, PLAIN, *SIDES])
    parser.add_argument("sizes", type=int, nargs="+", help="batch sizes; of a side, one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.case in SIDES:
        serve(args.case, *args.sizes)
    else:
        sys.stdout.write(json.dumps(peaks(args.case, args.sizes)) + "\n")


if __name__ == "__main__":
    main()
