"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"


@pytest.fixture(scope="session")
def assets_dir() -> Path:
    """The folder of real CC0 assets beside the checkout; skips where it is not there."""
    if not ASSETS.is_dir():
        pytest.skip("no ../shared/assets beside the checkout: the real CC0 meshes are not shipped")
    return ASSETS
