"""The training loop: steps, schedule, records, validation, checkpoints. It knows no model."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.common import InputError
from pipeline.console import ProgressBar
from trainer.config import OptimConfig, TrainConfig
from trainer.data import Batches, CloudBatch, Position
from trainer.optim import build_optimizer, learning_rate
from trainer.recorder import Recorder
from trainer.task import StepResult


class Task(Protocol):
    """What the loop needs of a task (``trainer.task.DistillTask``)."""

    @property
    def trainable(self) -> nn.Module:
        """Module whose parameters are optimised."""

    def backward(self, batch: CloudBatch, step: int, total: int) -> StepResult:
        """Put the gradients of a step into ``.grad``."""

    def after_step(self, step: int) -> None:
        """Called after each optimiser step."""

    def validate(self, batches: Iterable[CloudBatch]) -> dict[str, float]:
        """Metrics of held-out batches; ``score`` (higher is better) chooses the best."""

    def state_dict(self) -> dict[str, Any]:
        """State to resume from."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""


@dataclass
class Progress:
    """Where a run stands; saved with each checkpoint."""

    step: int = 0  # optimiser steps done
    samples: int = 0
    position: Position = field(default_factory=Position)
    best_score: float = -math.inf
    best_loss: float = math.inf
    best_step: int = 0
    last: dict[str, float] = field(default_factory=dict)  # last validation


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved a checkpoint."""


class Loop:
    """Trains a task on batches for ``total`` steps."""

    def __init__(
        self,
        task: Task,
        batches: Batches,
        held_out: Callable[[], Iterable[CloudBatch]] | None,
        recorder: Recorder,
        save: Callable[[Loop], None],
        *,
        train: TrainConfig,
        optim: OptimConfig,
        total: int,
    ) -> None:
        """``held_out`` yields the validation batches; ``save`` writes a checkpoint."""
        self.task, self.batches, self.held_out = task, batches, held_out
        self.recorder, self.save = recorder, save
        self.train, self.optim, self.total = train, optim, total
        self.optimizer = build_optimizer(task.trainable, optim)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.progress = Progress()
        self._saved_at = -1
        self._stop = False
        self._each_step: dict[str, list[Tensor]] = {}

    def run(self) -> None:
        """Train to the end.

        SIGINT or SIGTERM end it after the step under way, with a checkpoint, as ``Interrupted``.
        """
        stream = self.batches.stream(self.progress.position)
        # The bar counts what is left to do, so that rate and ETA of a resumed run are right.
        left = (self.total - self.progress.step) * self.batches.batch_size
        try:
            with _Signals(self), ProgressBar("train", left, "samples") as bar:
                self._steps(stream, bar)
        finally:
            stream.close()  # type: ignore[attr-defined]

    def _steps(self, stream: Iterator[CloudBatch], bar: ProgressBar) -> None:
        progress, clock, counted, status = self.progress, time.perf_counter(), 0, ""
        while progress.step < self.total:
            batch = next(stream)
            result, norm = self._step(batch)
            counted += len(batch)
            done = progress.step == self.total
            validates = done or progress.step % self.train.val_every == 0
            saves = self._stop or done or progress.step % self.train.checkpoint_every == 0
            if validates or saves:
                self._check_finite(result, norm)
            if done or progress.step % self.train.log_every == 0:
                now = time.perf_counter()
                loss = self._log(result, norm, counted / (now - clock))
                clock, counted = now, 0
                status = f"loss {loss:.3f}{self._status()}"
            bar.advance(len(batch), status)
            if validates:
                self._validate()
            if saves:
                self._checkpoint()
                if self._stop and not done:
                    raise Interrupted

    def _step(self, batch: CloudBatch) -> tuple[StepResult, Tensor]:
        progress = self.progress
        rate = learning_rate(self.optim, progress.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        result = self.task.backward(batch, progress.step, self.total)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.optim.clip or math.inf)
        self.optimizer.step()
        self.task.after_step(progress.step)
        progress.step += 1
        progress.samples += len(batch)
        progress.position = batch.next
        for name, value in result.every_step.items():
            self._each_step.setdefault(name, []).append(value)
        return result, norm

    def _log(self, result: StepResult, norm: Tensor, rate: float) -> float:
        progress = self.progress
        self._check_finite(result, norm)
        loss = float(result.loss)
        values: dict[str, Any] = {"loss": loss}
        values |= {name: float(value) for name, value in result.terms.items()}
        # Weights of the terms: now, and of each step since the last record.
        for name, history in self._each_step.items():
            steps = torch.stack(history).tolist()
            values[name], values[f"{name}_each_step"] = steps[-1], steps
        self._each_step.clear()
        values |= {
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": float(norm),
            "epoch": progress.samples / self.batches.corpus.n_train,
            "samples": progress.samples,
            "samples_per_s": rate,
        }
        self.recorder.write("train", progress.step, values)
        return loss

    def _check_finite(self, result: StepResult, norm: Tensor) -> None:
        """Raise ``InputError`` for a diverged run, before it is recorded or saved.

        Not at every step: on a GPU reading a value waits for all work under way.
        """
        loss, length = float(result.loss), float(norm)
        if not math.isfinite(loss) or not math.isfinite(length):
            raise InputError(
                f"step {self.progress.step}: loss {loss}, gradient norm {length}; "
                "lower --set optim.lr or raise the loss temperatures"
            )

    def _validate(self) -> None:
        if self.held_out is None:
            return
        progress = self.progress
        metrics = self.task.validate(self.held_out())
        progress.last = metrics
        score, loss = metrics.get("score", -math.inf), metrics.get("align", math.inf)
        better = (score, -loss) > (progress.best_score, -progress.best_loss)
        if better:
            progress.best_score, progress.best_loss = score, loss
            progress.best_step = progress.step
            self._checkpoint()  # the best must be on disk
        self.recorder.write("val", progress.step, {**metrics, "best": better})

    def _checkpoint(self) -> None:
        if self._saved_at != self.progress.step:
            self._saved_at = self.progress.step
            self.save(self)

    def _status(self) -> str:
        score = self.progress.last.get("score")
        return "" if score is None else f", val {score:.3f}"

    def state_dict(self) -> dict[str, Any]:
        """Task, optimiser, random numbers and position; tensors and plain values only."""
        progress = vars(self.progress).copy()
        position = progress.pop("position")
        return {
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": progress,
            "position": [position.epoch, position.batch],
            "rng_cpu": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the run that gave ``state`` stood."""
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"], position=Position(*state["position"]))
        self._saved_at = self.progress.step
        torch.set_rng_state(state["rng_cpu"])
        if torch.cuda.is_available() and len(state["rng_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng_cuda"])

    def request_stop(self) -> None:
        """Stop after the step under way, with a checkpoint."""
        self._stop = True


class _Signals:
    """While entered, the first SIGINT or SIGTERM asks the loop to stop; a second one kills."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._old: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._loop.request_stop()
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()
