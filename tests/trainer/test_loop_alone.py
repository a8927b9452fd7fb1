"""The loop by itself, with a task that only tells what it was asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from trainer.batch import CloudBatch, Position
from trainer.config import OptimConfig, TrainConfig
from trainer.loop import DivergedError, Loop
from trainer.optim import learning_rate
from trainer.task import StepResult

EMPTY = torch.zeros(2, 0)


class Task:
    """Notes seeds and steps; the losses and the (score, loss) of validations are given."""

    device, compiled = torch.device("cpu"), False

    def __init__(
        self, losses: Sequence[float] = (), scores: Sequence[tuple[float, float]] = ()
    ) -> None:
        self.trainable = nn.Linear(1, 1)
        self.losses, self.scores = losses, list(scores)
        self.seeds: list[int] = []
        self.after: list[int] = []

    def backward(self, batch: CloudBatch, step: int, total: int) -> StepResult:
        del batch, total
        self.seeds.append(torch.initial_seed())
        for parameter in self.trainable.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return StepResult(torch.tensor(self.losses[step] if self.losses else 1.0), {}, {})

    def after_step(self, step: int) -> None:
        self.after.append(step)

    def validate(self, batches: object) -> dict[str, float]:
        del batches
        return dict(zip(("score", "align"), self.scores.pop(0), strict=True))

    def state_dict(self) -> dict[str, Any]:
        return self.trainable.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainable.load_state_dict(state)


class Endless:
    """Batches of two rows without anything in them."""

    rows_per_epoch = 2

    def stream(
        self, position: Position, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[CloudBatch]:
        del cancelled
        none = torch.zeros(2, dtype=torch.bool)
        for number in range(position.batch, 1000):
            after = Position(0, number + 1)
            yield CloudBatch(np.arange(2), EMPTY, EMPTY, None, None, none, after)

    def rows_until(self, step: int) -> int:
        return 2 * step


def make(
    task: Task, saved: list[int] | None = None, **options: Any
) -> tuple[Loop, list[tuple[str, dict[str, Any]]]]:
    """A loop of four steps, and what it records."""
    written: list[tuple[str, dict[str, Any]]] = []

    def save(loop: Loop) -> None:
        if saved is not None:
            saved.append(loop.progress.step)

    loop = Loop(
        cast(Any, task),
        cast(Any, Endless()),
        (lambda: iter(())) if task.scores else None,
        cast(Any, SimpleNamespace(write=lambda kind, _, values: written.append((kind, values)))),
        save,
        train=TrainConfig(**{"log_every": 1, "val_every": 1, **options}),
        optim=OptimConfig(warmup=0.5),
        total=4,
    )
    return loop, written


def test_loop__each_step_process_and_run_has_a_seed_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[int] = []
    for seed, rank in ((0, 0), (1, 0), (0, 1)):
        monkeypatch.setattr("trainer.loop.distributed.rank", lambda rank=rank: rank)
        task = Task()
        make(task, seed=seed)[0].run()
        found += task.seeds
    assert len(set(found)) == len(found) == 12


def test_loop__the_task_is_told_of_each_step_once() -> None:
    task = Task()
    make(task)[0].run()
    assert task.after == [0, 1, 2, 3]


def test_loop__records_the_rate_of_the_step() -> None:
    loop, written = make(Task())
    loop.run()
    rates = [values["lr"] for kind, values in written if kind == "train"]
    assert rates == [learning_rate(loop.optim, step, 4) for step in range(4)]


def test_loop__of_equal_scores_the_lower_loss_is_better_and_the_first_stays() -> None:
    task = Task(scores=[(0.5, 2.0), (0.5, 1.0), (0.5, 1.0), (0.5, 1.5)])
    loop, written = make(task)
    loop.run()
    best = [values["best"] for kind, values in written if kind == "val"]
    assert best == [True, True, False, False]
    assert (loop.progress.best_step, loop.progress.best_loss) == (2, 1.0)


def test_loop__what_is_not_finite_is_seen_before_a_checkpoint_on_any_device() -> None:
    saved: list[int] = []
    task = Task(losses=[1.0, math.nan, 1.0, 1.0])
    loop, _ = make(task, saved, log_every=100, val_every=100, checkpoint_every=3)
    loop._looks_at_once = False  # as on a GPU
    with pytest.raises(DivergedError, match="step 2"):
        loop.run()
    assert saved == []
    assert loop.progress.step == 3


def test_loop__a_checkpoint_that_was_read_is_not_written_again() -> None:
    loop, _ = make(Task())
    loop.run()
    saved: list[int] = []
    again, _ = make(Task(), saved)
    again.load_state_dict(loop.state_dict())
    again._checkpoint()
    assert saved == []
