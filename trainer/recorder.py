"""Records of a run: ``metrics.jsonl`` and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from pipeline.common import atomic_path

METRICS = "metrics.jsonl"


class Recorder:
    """Appends one JSON line per record, and its numbers to TensorBoard under ``kind/name``.

    ``kind`` is ``train`` or ``val``. Opened at the step of a resumed run, it first cuts off the
    lines of later steps, which the run will write again.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / METRICS
        if self.path.exists():
            kept = [line for line in read_metrics(run) if line["step"] <= step]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a")
        writer: Any = SummaryWriter  # its signature is not typed
        self._board = writer(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Record ``values`` of a step (counted from 1); lists go to the JSON line only."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All records of a run folder; one cut off by a kill or a full disk is left out."""
    lines = []
    for text in (run / METRICS).read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines
