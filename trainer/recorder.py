"""Records of a run: ``metrics.jsonl``, TensorBoard events, and Weights & Biases where asked for."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pipeline.common import InputError, atomic_path

METRICS = "metrics.jsonl"
BOARD = "tensorboard"
WANDB = "wandb"


class Recorder:
    """Appends one JSON line per record, and its numbers to the curves under ``kind/name``.

    ``kind`` is ``train`` or ``val``. Opened at the step of a resumed run, it first cuts off the
    lines of later steps, which the run will write again. Raises ``OSError`` when the disk is full.
    """

    def __init__(
        self,
        run: Path,
        step: int = 0,
        wandb: str = "",
        recipe: dict[str, Any] | None = None,
        *,
        validates_again: bool = False,
    ) -> None:
        """``wandb`` is the project that the numbers go to as well, with the ``recipe``.

        ``validates_again``: the validation of ``step`` itself is to be written again too.

        Raises ``InputError`` where it cannot be reached.
        """
        self.path = run / METRICS
        if self.path.exists():
            last = {"val": step - validates_again}
            kept = [x for x in read_metrics(run) if x["step"] <= last.get(x["kind"], step)]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        # First what may be refused.
        self._curves: list[_Curves] = [_Wandb(run, wandb, recipe or {})] if wandb else []
        self._curves.append(_Board(run / BOARD, step + 1))
        self._file = self.path.open("a")

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Record ``values`` of a step (counted from 1); lists go to the JSON line only."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        for curves in self._curves:
            curves.write(step, {f"{kind}/{name}": value for name, value in numbers.items()})

    def close(self) -> None:
        """Close all of them."""
        with contextlib.ExitStack() as stack:
            for curves in self._curves:
                stack.callback(curves.close)
            self._file.close()


class _Curves(Protocol):
    """A place that numbers go to."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Values of a step by name."""

    def close(self) -> None:
        """Nothing more comes."""


def require_wandb(project: str) -> None:
    """Raise ``InputError`` where a project is named and wandb is not installed."""
    if project and find_spec("wandb") is None:
        raise InputError(
            f"train.wandb={project}: needs wandb; pip install 'mrd3d[wandb]', or leave it out"
        )


class _Wandb:
    """A run of Weights & Biases, the same one when a run folder is resumed.

    Points that a resumed run writes again come twice, at the same place.
    """

    def __init__(self, run: Path, project: str, recipe: dict[str, Any]) -> None:
        require_wandb(project)
        import wandb

        entity, _, name = project.rpartition("/")
        try:
            self._run = wandb.init(
                entity=entity or None,
                project=name,
                name=f"{run.absolute().parent.name}/{run.name}",
                id=_identity(run),
                resume="allow",
                dir=run,
                config=recipe,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"train.wandb={project}: {reason}; `wandb login`, WANDB_MODE=offline, or leave it "
                "out"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


def _identity(run: Path) -> str:
    """Name of the run at Weights & Biases, kept in the run folder."""
    file = run / WANDB / "id"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        with atomic_path(file) as temporary:
            temporary.write_text(uuid.uuid4().hex[:12])
    return file.read_text().strip()


class _Board:
    """Scalars as a TensorBoard event file, written at once.

    PyTorch's ``SummaryWriter`` writes from a thread, whose errors reach nobody, and puts the name
    of the host into that of the file.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        self._event = Event
        now = time.time()
        self._file = (folder / f"events.out.tfevents.{now:.6f}.run").open("wb")
        self._writer = RecordWriter(self._file)
        self._put(Event(wall_time=now, file_version="brain.Event:2"))
        # What an earlier session of the run has told of later steps does not count.
        start = SessionLog(status=SessionLog.START)
        self._put(Event(wall_time=now, step=first_step, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._put(self._event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All records of a run folder; one cut off by a kill or a full disk is left out."""
    lines = []
    for text in (run / METRICS).read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(text))
    return lines
