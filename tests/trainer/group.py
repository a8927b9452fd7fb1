"""What the processes of ``test_parallel`` do: whole runs, and a few small things."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from pipeline.common import InputError
from trainer import parallel
from trainer.checkpoint import checkpoints
from trainer.config import EmaConfig
from trainer.loop import Interrupted
from trainer.recipe import parse_recipe
from trainer.run import fit
from trainer.task import Ema

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """Runs that every process takes part in."""

    folder: Path
    world: int
    runs: dict[str, tuple[dict[str, Any], list[Path], int]]  # recipe, shards, step to stop at or 0


class StopAt:
    """Asks to stop when it has been asked so often."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def batch_norm_case(rank: int, world: int) -> dict[str, Any]:
    """Outputs and gradients of a joint BatchNorm with rank + 2 of the rows on each process."""
    generator = torch.Generator().manual_seed(3)
    sizes = [index + 2 for index in range(world)]
    start = sum(sizes[:rank])
    every = torch.randn(sum(sizes), 4, generator=generator) * 3 + 1
    rows = every[start : start + sizes[rank]].clone().requires_grad_(True)
    module = nn.Sequential(nn.BatchNorm1d(4))
    weight = module[0].weight
    parallel.join_batch_norms(module)
    assert module[0].weight is weight
    weights = torch.randn(sum(sizes), 4, generator=generator)
    out = module(rows)
    (out * weights[start : start + sizes[rank]]).sum().backward()
    assert rows.grad is not None
    module.eval()
    return {
        "out": out.detach(),
        "grad": rows.grad,
        "state": module.state_dict(),
        "eval": module(every).detach(),
    }


def average_case() -> dict[str, Any]:
    """A moving average that is shared out, brought up to date after it was validated."""
    torch.manual_seed(5)
    first = nn.Linear(4, 6)
    student = nn.Sequential(first, nn.Linear(6, 3))
    average = Ema(student, EmaConfig(enabled=True, decay=0.5))
    with torch.no_grad():
        first.weight.add_(1.0)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    parallel.replicate(student, average.module, "fsdp")
    with torch.no_grad():
        average.module(torch.ones(2, 4))
    average.update(student, 100)
    return {"student": before, "average": parallel.whole(average.module.state_dict())}


def told_by_the_first(rank: int) -> list[Any]:
    """Decisions of the first process as this one sees them."""

    def refuse() -> None:
        raise InputError("no room")

    try:
        parallel.first_does(refuse)
    except parallel.AgreedError as error:
        message = str(error)
    return [
        parallel.agree(rank == 0),
        parallel.agree(rank != 0),
        parallel.first_does(lambda: rank),
        parallel.collect(rank),
        message,
    ]


def work(rank: int, job: Job) -> None:
    """One process; what it found goes to ``rank.pt``."""
    torch.set_num_threads(1)
    store = f"file://{job.folder / 'store'}"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=job.world, timeout=timedelta(seconds=100)
    )
    try:
        found: dict[str, Any] = {
            "norm": batch_norm_case(rank, job.world),
            "average": average_case(),
            "told": told_by_the_first(rank),
        }
        for name, (recipe, shards, stop) in job.runs.items():
            out = job.folder / name
            try:
                fit(
                    shards,
                    parse_recipe(recipe, name),
                    out,
                    resume=bool(checkpoints(out)),
                    device=CPU,
                    say=list[str]().append,
                    asked_to_stop=StopAt(stop),
                )
            except Interrupted:
                found[name] = "interrupted"
            except Exception:
                found[name] = traceback.format_exc()
                if "AgreedError" not in found[name]:
                    raise
        torch.save(found, job.folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run(job: Job) -> list[dict[str, Any]]:
    """What each process found."""
    spawn(work, (job,), nprocs=job.world)  # type: ignore[no-untyped-call]
    return [torch.load(job.folder / f"{rank}.pt", weights_only=True) for rank in range(job.world)]
