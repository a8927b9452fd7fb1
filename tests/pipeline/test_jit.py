"""Kernels and the cache of their code, each program in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

KERNEL = """
from pipeline.jit import jit

@jit
def double(values):
    for place in range(len(values)):
        values[place] *= 2
"""
PROGRAM = """
import sys
import numpy as np
from kernel import double

values = np.arange(3, dtype=sys.argv[1])
double(values)
print(values.tolist(), sum(double.stats.cache_hits.values()))
"""

Run = Callable[..., str]


@pytest.fixture
def program(tmp_path: Path) -> Run:
    (tmp_path / "kernel.py").write_text(KERNEL)
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(dtype: str = "float32") -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(tmp_path / "program.py"), dtype],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.nb?")) if path.is_file()]


def test_jit__code_is_kept_for_the_next_process(program: Run, tmp_path: Path) -> None:
    assert program() == "[0.0, 2.0, 4.0] 0"
    assert program() == "[0.0, 2.0, 4.0] 1"
    assert {path.suffix for path in files(tmp_path / "cache")} == {".nbi", ".nbc"}


def test_jit__a_damaged_cache_is_compiled_anew_and_repaired(program: Run, tmp_path: Path) -> None:
    for suffix, left in ((".nbi", 0), (".nbc", 40)):
        program()
        for path in files(tmp_path / "cache"):
            if path.suffix == suffix:
                path.write_bytes(path.read_bytes()[:left])
        assert program() == "[0.0, 2.0, 4.0] 0"
        assert program() == "[0.0, 2.0, 4.0] 1"


def test_jit__a_cache_that_cannot_be_written_is_done_without(program: Run, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert program() == "[0.0, 2.0, 4.0] 0"


def test_jit__processes_that_compile_at_once_leave_a_cache_that_is_right(
    tmp_path: Path, program: Run
) -> None:
    kinds = ["float32", "float64", "int64", "float32", "float64", "int64"]
    started = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), kind],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in kinds
    ]
    for process in started:
        assert process.communicate(timeout=120)[0].startswith("[0")
    for kind, found in (("float32", "[0.0, 2.0, 4.0] 1"), ("int64", "[0, 2, 4] 1")):
        assert program(kind) == found
