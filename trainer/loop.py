"""The training loop: steps, schedule, records, validation, checkpoints. It knows no model.

Random numbers of a step (patch dropout, stochastic depth) are seeded by (seed, step, process), so
nothing of them needs to be saved.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.common import InputError
from pipeline.console import ProgressBar, note
from trainer import distributed, parallel
from trainer.batch import CloudBatch, Position
from trainer.config import SEEDS, OptimConfig, TrainConfig
from trainer.data import Batches
from trainer.optim import build_optimizer, learning_rate, set_learning_rate
from trainer.recorder import Recorder
from trainer.sampling import IntArray
from trainer.task import StepResult

RANK_STRIDE = 1_000_000_007  # between the seeds of processes
STEP_STRIDE = 1_000_003  # between those of runs


class Task(Protocol):
    """What the loop needs of a task (``trainer.task.DistillTask``)."""

    device: torch.device
    compiled: bool

    @property
    def trainable(self) -> nn.Module:
        """Module whose parameters are optimised."""

    def backward(self, batch: CloudBatch, step: int, total: int) -> StepResult:
        """Put the gradients of a step into ``.grad``."""

    def compile_less(self) -> None:
        """Do without ``torch.compile`` from now on."""

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
    validation_due: bool = False  # that of this step was left for the run that goes on


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved a checkpoint; says which, and how to go on."""


class _CutOffError(Exception):
    """A validation that was left before its end."""


class DivergedError(Exception):
    """A loss or gradient is not finite. ``rows``: of the first such step, over all processes."""

    def __init__(self, step: int, loss: float, norm: float, rows: list[int]) -> None:
        super().__init__(f"step {step}: loss {loss}, gradient norm {norm}")
        self.step, self.loss, self.norm, self.rows = step, loss, norm, rows


@dataclass(frozen=True)
class _Unchecked:
    """A step whose values nobody has looked at yet."""

    step: int
    loss: Tensor
    norm: Tensor
    rows: IntArray


class Loop:
    """Trains a task on batches for ``total`` steps."""

    def __init__(
        self,
        task: Task,
        batches: Batches,
        held_out: Callable[[], Iterable[CloudBatch]] | None,
        recorder: Recorder | None,
        save: Callable[[Loop], None],
        *,
        train: TrainConfig,
        optim: OptimConfig,
        total: int,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """``held_out`` yields the validation batches; ``save`` writes a checkpoint.

        ``recorder`` is None on all processes but the first, which alone decides to stop: after a
        signal, or when ``asked_to_stop``.
        """
        self.task, self.batches, self.held_out = task, batches, held_out
        self.recorder, self.save = recorder, save
        self.train, self.optim, self.total = train, optim, total
        self.asked_to_stop = asked_to_stop
        self.optimizer = build_optimizer(task.trainable, optim)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.progress = Progress()
        self._saved_at = -1
        self._stop = False
        self._each_step: dict[str, list[Tensor]] = {}
        self._unchecked: list[_Unchecked] = []
        # On a CPU a look costs nothing, and comes before the weights are spoiled. On a GPU it
        # waits for all work under way.
        self._looks_at_once = task.device.type == "cpu"

    def run(self) -> None:
        """Train to the end.

        SIGINT or SIGTERM end it after the step or the validation batch under way, with a
        checkpoint, as ``Interrupted``. A validation that was cut off comes first when the run goes
        on.
        Raises ``DivergedError`` before anything of a step that is not finite is recorded or saved.
        """
        # Alone: of several processes none may leave while the others wait for it.
        alone = distributed.world_size() == 1
        stream = self.batches.stream(self.progress.position, lambda: alone and self._stop)
        # The bar counts what is left to do, so that rate and ETA of a resumed run are right.
        left = self.batches.rows_until(self.total) - self.progress.samples
        try:
            with _Signals(self), ProgressBar("train", max(left, 0), "samples") as bar:
                if self.progress.validation_due:
                    self._saved_at = -1  # the checkpoint says that it is due
                    self._validate(bar)
                    self._end_step()
                self._steps(stream, bar)
        except CancelledError:  # before a first batch was there
            self._checkpoint()
            raise Interrupted from None
        finally:
            stream.close()  # type: ignore[attr-defined]

    def _steps(self, stream: Iterator[CloudBatch], bar: ProgressBar) -> None:
        progress, status = self.progress, ""
        clock, counted, waited = time.perf_counter(), 0, 0.0
        while progress.step < self.total:
            before = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - before
            result, norm = self._step(batch)
            counted += batch.total
            done = progress.step == self.total
            self._stop = parallel.agree(self._stop or self.asked_to_stop())
            validates = done or progress.step % self.train.val_every == 0
            saves = self._stop or done or progress.step % self.train.checkpoint_every == 0
            if validates or saves:
                self._check_finite()
            if done or progress.step % self.train.log_every == 0:
                self._check_finite()
                now = time.perf_counter()
                speed = {
                    "samples_per_s": counted / (now - clock),
                    "data_wait": waited / (now - clock),
                }
                self._log(result, norm, speed)
                clock, counted, waited = now, 0, 0.0
                status = (
                    f"loss {float(result.loss):.3f}, data wait {speed['data_wait']:.1%}"
                    f"{self._status()}"
                )
            bar.advance(batch.total, status)
            if validates or saves:
                before = time.perf_counter()
                if validates:
                    self._validate(bar, status)
                if saves or progress.validation_due:
                    self._end_step()
                clock += time.perf_counter() - before  # speed is that of the steps

    def _end_step(self) -> None:
        """Save; then stop where this was asked for and something is left to do."""
        self._checkpoint()
        if self._stop and (self.progress.step < self.total or self.progress.validation_due):
            raise Interrupted

    def _step(self, batch: CloudBatch) -> tuple[StepResult, Tensor]:
        progress = self.progress
        rate = learning_rate(self.optim, progress.step, self.total)
        set_learning_rate(self.optimizer, rate)
        result = self._gradients(batch)
        norm = parallel.clip_gradients(self.parameters, self.optim.clip or math.inf)
        self._unchecked.append(_Unchecked(progress.step + 1, result.loss, norm, batch.row))
        if self._looks_at_once:
            self._check_finite()
        self.optimizer.step()
        self.task.after_step(progress.step)
        progress.step += 1
        progress.samples += batch.total
        progress.position = batch.next
        for name, value in result.every_step.items():
            self._each_step.setdefault(name, []).append(value)
        return result, norm

    def _gradients(self, batch: CloudBatch) -> StepResult:
        """Gradients of the step; without ``torch.compile`` from the first time that it fails."""
        try:
            return self._seeded_backward(batch)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if not self.task.compiled:
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            note(f"torch.compile failed, continuing without it ({lines[0]})")
            self.task.compile_less()
        return self._seeded_backward(batch)

    def _seeded_backward(self, batch: CloudBatch) -> StepResult:
        step = self.progress.step
        self.optimizer.zero_grad(set_to_none=True)
        seed = self.train.seed * STEP_STRIDE + step + distributed.rank() * RANK_STRIDE
        torch.manual_seed(seed % SEEDS)
        return self.task.backward(batch, step, self.total)

    def _log(self, result: StepResult, norm: Tensor, speed: dict[str, float]) -> None:
        progress = self.progress
        values: dict[str, Any] = {"loss": float(result.loss)}
        values |= {name: float(value) for name, value in result.terms.items()}
        # Weights of the terms: now, and of each step since the last record.
        for name, history in self._each_step.items():
            steps = torch.stack(history).tolist()
            values[name], values[f"{name}_each_step"] = steps[-1], steps
        self._each_step.clear()
        values |= {
            "lr": learning_rate(self.optim, progress.step - 1, self.total),
            "grad_norm": float(norm),
            "epoch": progress.samples / self.batches.rows_per_epoch,
            "samples": progress.samples,
            **speed,
        }
        if self.recorder:
            self.recorder.write("train", progress.step, values)

    def _check_finite(self) -> None:
        """Raise ``DivergedError`` with the first step since the last look that is not finite."""
        if not self._unchecked:
            return
        steps, self._unchecked = self._unchecked, []
        values = torch.stack([torch.stack([s.loss.float(), s.norm.float()]) for s in steps])
        for step, (loss, norm) in zip(steps, values.tolist(), strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                # Loss and norm are the same on all processes, so all of them come here.
                rows = [row for part in parallel.collect(step.rows.tolist()) for row in part]
                raise DivergedError(step.step, loss, norm, rows)

    def _validate(self, bar: ProgressBar, status: str = "") -> None:
        if self.held_out is None:
            return
        progress = self.progress
        progress.validation_due = True
        try:
            metrics = self.task.validate(self._held_out_batches(bar))
        except _CutOffError:
            return
        progress.validation_due = False
        bar.advance(0, status)
        # Every process has done it all; the first one's numbers decide for everyone.
        progress.last = metrics = parallel.first_does(lambda: metrics)
        score, loss = metrics.get("score", -math.inf), metrics.get("align", math.inf)
        better = (score, -loss) > (progress.best_score, -progress.best_loss)
        if better:
            progress.best_score, progress.best_loss = score, loss
            progress.best_step = progress.step
        # Before the checkpoint: a run that is killed after it goes on behind this record.
        if self.recorder:
            self.recorder.write("val", progress.step, {**metrics, "best": better})
        if better:
            self._checkpoint()  # the best must be on disk

    def _held_out_batches(self, bar: ProgressBar) -> Iterator[CloudBatch]:
        """The validation batches; raises ``_CutOffError`` once the run is asked to stop."""
        assert self.held_out is not None
        done = 0
        for batch in self.held_out():
            self._stop = parallel.agree(self._stop or self.asked_to_stop())
            if self._stop:
                raise _CutOffError
            yield batch
            done += len(batch)
            bar.advance(0, f"validating: {done:,} shapes")

    def _checkpoint(self) -> None:
        if self._saved_at != self.progress.step:
            self._saved_at = self.progress.step
            self.save(self)

    def _status(self) -> str:
        score = self.progress.last.get("score")
        return "" if score is None else f", val {score:.3f}"

    def state_dict(self) -> dict[str, Any]:
        """Task, optimiser, position and what is not recorded yet; whole tensors and plain values.

        All processes must ask.
        """
        progress = vars(self.progress).copy()
        position = progress.pop("position")
        return {
            "task": parallel.whole(self.task.state_dict()),
            "optimizer": parallel.whole(self.optimizer.state_dict()),
            "progress": progress,
            "position": [position.epoch, position.batch],
            "each_step": {name: torch.stack(v).cpu() for name, v in self._each_step.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the run that gave ``state`` stood."""
        self.task.load_state_dict(state["task"])
        parallel.load_optimizer(self.optimizer, state["optimizer"])
        self.progress = Progress(**state["progress"], position=Position(*state["position"]))
        device = self.task.device
        self._each_step = {
            name: list(values.to(device).unbind())
            for name, values in state.get("each_step", {}).items()  # not in early checkpoints
        }
        self._saved_at = self.progress.step

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
