"""Running a console script inside of the test process."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest


def run(monkeypatch: pytest.MonkeyPatch, program: str, *arguments: object) -> int:
    """Run ``pipeline``, ``trainer`` or ``evaluation`` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"{program}.cli").main()
    return int(stop.value.code or 0)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Cli:
    """Runs commands of one program and keeps what they print."""

    def __init__(
        self,
        program: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self._program, self._patch, self._capsys = program, monkeypatch, capsys

    def __call__(self, *arguments: object) -> Ended:
        self._capsys.readouterr()
        code = run(self._patch, self._program, *arguments)
        return Ended(code, *self._capsys.readouterr())

    def ok(self, *arguments: object) -> str:
        ended = self(*arguments)
        assert ended.code == 0, ended.err
        return ended.out

    def json(self, *arguments: object) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def refused(self, *arguments: object) -> str:
        """The one-line error of a command that must end with exit code 2."""
        ended = self(*arguments)
        assert ended.code == 2
        assert "Traceback" not in ended.err
        lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]
