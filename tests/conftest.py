"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Ray's workers are nicer than any other program by default. Beside a busy one tests would take
# minutes for what they do in seconds.
os.environ.setdefault("RAY_worker_niceness", "0")

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"


@pytest.fixture(scope="session")
def assets_dir() -> Path:
    """The folder of real CC0 assets beside the checkout; skips where it is not there."""
    if not ASSETS.is_dir():
        pytest.skip("no ../shared/assets beside the checkout: the real CC0 meshes are not shipped")
    return ASSETS
