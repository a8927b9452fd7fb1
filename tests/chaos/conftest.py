"""Files to be broken, and a canary that a pickle would wake."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.checkpoints import write_checkpoint


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """What a pickle would make, were it run."""
    place = tmp_path / "ran"
    yield place
    assert not place.exists(), "a pickle was run"


@pytest.fixture(scope="module")
def whole_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "step"
    write_checkpoint(folder)
    return folder


@pytest.fixture
def step(whole_checkpoint: Path, tmp_path: Path) -> Path:
    """A whole checkpoint, to be broken."""
    return Path(shutil.copytree(whole_checkpoint, tmp_path / "step"))
