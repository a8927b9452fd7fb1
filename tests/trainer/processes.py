"""What the processes of ``test_distributed`` run: one share of a loss, or of training steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from tests.trainer.features import batch, draw, select, with_several
from trainer import distributed
from trainer.batch import CloudBatch
from trainer.config import AlignConfig, DistillConfig, Recipe
from trainer.losses import AlignLoss, DistillLoss, Features
from trainer.optim import build_optimizer
from trainer.task import DistillTask

WORLD = 2
WIDTH = 6


@dataclass(frozen=True)
class Case:
    """Two steps of a linear student on eight objects, split after ``first`` of them."""

    align: dict[str, Any]
    distill: dict[str, Any]
    has_text: tuple[int, ...] = (1, 0, 1, 1, 0, 1, 1, 1)
    first: int = 5


CASES = {
    "infonce": Case({}, {}),
    "no_text_on_one_process": Case({}, {}, (1, 1, 1, 1, 1, 0, 0, 0)),
    "no_text_anywhere": Case({}, {}, (0,) * 8),
    "nothing_on_one_process": Case({}, {"queue": 12}, first=8),
    "multi_positive": Case({"kind": "multi_positive", "drop_same_category": True}, {}, first=2),
    "multi_positive_one_sided": Case(
        {"kind": "multi_positive"}, {"weighting": "uncertainty"}, (1, 1, 1, 1, 1, 0, 0, 0)
    ),
    "siglip": Case(
        {"kind": "siglip", "shared_scale": False, "drop_text_above": 0.5},
        {"learn_tau": "both", "queue": 10},
    ),
    "hard": Case({"hard_negatives": 0.5, "drop_same_category": True}, {}, (1, 1, 1, 1, 1, 0, 0, 0)),
    "joint": Case({"joint_weight": 0.5, "shared_scale": False}, {"weighting": "fixed"}),
    "distance": Case(
        {"drop_same_text": True},
        {"representation": "distance", "discrepancy": "huber", "centre": "both", "queue": 5},
    ),
}


class Linear(nn.Module):
    """A student that is a matrix, with the losses, in double precision."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(77, WIDTH, WIDTH))
        torch.manual_seed(0)  # the joint term has a random layer
        self.align = AlignLoss(AlignConfig(**case.align), WIDTH)
        self.distill = DistillLoss(DistillConfig(**case.distill), WIDTH)
        for parameter in self.distill.weighting.parameters():  # not where they begin, which is 0
            with torch.no_grad():
                parameter.copy_(torch.tensor([0.5, -0.3, 0.2]))
        self.double()


def whole_batch(case: Case, step: int) -> Features:
    """The objects of a step; the first process is to have ``first`` of them."""
    f = batch(list(case.has_text))
    f = replace(f, point=draw(30 + step), row=torch.arange(8) + 8 * step)
    return f if case.align.get("kind", "infonce") == "infonce" else with_several(f, 40 + step)


def run_case(case: Case, rows: slice) -> dict[str, Any]:
    """Losses, terms and gradients of two steps with the objects ``rows`` on this process."""
    student = Linear(case)
    found: dict[str, Any] = {"loss": [], "terms": []}
    for step in range(2):
        full = whole_batch(case, step)
        local = select(full, list(range(8))[rows])
        local = replace(local, point=local.point @ student.weight)
        everyone, offset = distributed.gather_features(local)
        aligned, first = student.align(local, everyone, offset)
        distilled, second = student.distill(local, everyone, offset)
        loss = aligned + 0.5 * distilled
        loss.backward()
        student.distill.remember(everyone)
        told = distributed.sum_values({"loss": loss.detach(), **first, **second})
        found["loss"].append(float(told.pop("loss")))
        found["terms"].append({name: float(value.detach()) for name, value in told.items()})
    distributed.sum_gradients(student)
    found["gradients"] = {
        name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None
    }
    return found


def part_of(full: CloudBatch, rows: slice) -> CloudBatch:
    """Some rows of a batch that has one view and text a row."""

    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[rows]

    return replace(
        full,
        row=full.row[rows],
        xyz=full.xyz[rows],
        rgb=full.rgb[rows],
        image=cut(full.image),
        text=cut(full.text),
        has_text=full.has_text[rows],
    )


def train_steps(recipe: Recipe, width: int, batches: list[CloudBatch], rows: slice) -> list[float]:
    """Losses of some optimiser steps with the objects ``rows`` of every batch on this process."""
    task = DistillTask(recipe, width, torch.device("cpu"))
    optimizer = build_optimizer(task.trainable, recipe.optim)
    losses = []
    for step, full in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        result = task.backward(part_of(full, rows), step, len(batches))
        optimizer.step()
        task.after_step(step)
        losses.append(float(result.loss))
    return losses


@dataclass(frozen=True)
class Job:
    """All that a process is told."""

    folder: Path
    recipe: Recipe
    width: int
    batches: list[CloudBatch]
    first: int


def gradients_of_gather(rank: int) -> Tensor:
    """Gradient of own rows when each process weighs the gathered rows by its rank + 1."""
    rows = torch.arange(2 * (rank + 1), dtype=torch.float64).reshape(-1, 2).requires_grad_(True)
    sizes = [count[0] for count in distributed.gather_counts([len(rows)])]
    gathered = distributed.gather_rows(rows, sizes)
    weights = torch.arange(gathered.numel(), dtype=torch.float64).view_as(gathered)
    (gathered * weights * (rank + 1)).sum().backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    return rows.grad


def work(rank: int, job: Job) -> None:
    """One process: everything that is compared, written to ``rank.pt``."""
    torch.set_num_threads(1)
    store = f"file://{job.folder / 'store'}"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    try:
        found: dict[str, Any] = {"gather": gradients_of_gather(rank)}
        for name, case in CASES.items():
            rows = slice(0, case.first) if rank == 0 else slice(case.first, 8)
            found[name] = run_case(case, rows)
        rows = slice(0, job.first) if rank == 0 else slice(job.first, None)
        found["train"] = train_steps(job.recipe, job.width, job.batches, rows)
        torch.save(found, job.folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run(job: Job) -> list[dict[str, Any]]:
    """What each process found."""
    spawn(work, (job,), nprocs=WORLD)  # type: ignore[no-untyped-call]
    return [torch.load(job.folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
