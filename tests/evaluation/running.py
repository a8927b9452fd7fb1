"""Running the console script inside of the test process."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from evaluation import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the console script in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


class Cli:
    """Runs commands and keeps what they print."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys

    def ok(self, *arguments: object) -> str:
        code = run(self._patch, *arguments)
        printed = self._capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    def json(self, *arguments: object) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def refused(self, *arguments: object) -> str:
        """The one-line error of a command that must end with exit code 2."""
        code = run(self._patch, *arguments)
        printed = self._capsys.readouterr()
        assert code == 2
        assert "Traceback" not in printed.err
        lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]
