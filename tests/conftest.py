"""Fixtures shared by all tests."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

# Ray's workers are nicer than any other program by default. Beside a busy one tests would take
# minutes for what they do in seconds.
os.environ.setdefault("RAY_worker_niceness", "0")

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"


class Memory(MemoryFileSystem):  # type: ignore[misc]
    """``memory://`` as a store is: whoever opens a file reads it from a place of his own.

    fsspec's own hands out one object with one position, which two threads take from each other.
    """

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        return io.BytesIO(file.getvalue()) if mode == "rb" else file


fsspec.register_implementation("memory", Memory, clobber=True)


@pytest.fixture(scope="session")
def assets_dir() -> Path:
    """The folder of real CC0 assets beside the checkout; skips where it is not there."""
    if not ASSETS.is_dir():
        pytest.skip("no ../shared/assets beside the checkout: the real CC0 meshes are not shipped")
    return ASSETS
