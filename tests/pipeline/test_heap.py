"""Memory that a process keeps: pages from the system, counted in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.heap import keep_freed

PAGES = 64 << 20 >> 12  # of 64 MiB

FAULTS = """
import resource, sys
import torch
from pipeline.heap import keep_freed

if "keep" in sys.argv:
    assert keep_freed()
for _ in range(20):  # glibc before 2.38 takes some more at first: aligned blocks leave gaps
    torch.ones(16 << 20)
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


def _faults(*arguments: str) -> int:
    command = [sys.executable, "-c", FAULTS, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told to")
def test_freed_memory_is_taken_again_without_the_system() -> None:
    assert _faults("keep") < PAGES < 5 * PAGES < _faults()


def test_where_the_c_library_cannot_be_told_nothing_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_library(name: str | None) -> None:
        raise TypeError(name)

    monkeypatch.setattr("ctypes.CDLL", no_library)
    assert not keep_freed()
