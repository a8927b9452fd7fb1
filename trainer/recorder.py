"""Records of a run: ``metrics.jsonl`` and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from pipeline.common import atomic_path

METRICS = "metrics.jsonl"
BOARD = "tensorboard"


class Recorder:
    """Appends one JSON line per record, and its numbers to TensorBoard under ``kind/name``.

    ``kind`` is ``train`` or ``val``. Opened at the step of a resumed run, it first cuts off the
    lines of later steps, which the run will write again. Raises ``OSError`` when the disk is full.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        self.path = run / METRICS
        if self.path.exists():
            kept = [line for line in read_metrics(run) if line["step"] <= step]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a")
        self._board = _Board(run / BOARD, step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Record ``values`` of a step (counted from 1); lists go to the JSON line only."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        self._board.write(step, {f"{kind}/{name}": value for name, value in numbers.items()})

    def close(self) -> None:
        """Close both files."""
        try:
            self._file.close()
        finally:
            self._board.close()


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
