"""Checkpoints that were cut off: at every 4 KiB of every file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.common import InputError
from tests.trainer.test_checkpoint import header
from trainer import checkpoint
from trainer.backbones import build_backbone, resolve_options
from trainer.checkpoint import load_model

BLOCK = 4096
pytestmark = pytest.mark.slow


def write(path: Path, step: int) -> None:
    """A checkpoint of the whole tiny student, with moments as AdamW has them."""
    told = {**header(step), "backbone": {"name": "tiny", "options": resolve_options("tiny")}}
    weights = build_backbone("tiny", told["teacher"]["width"]).state_dict()
    moments = {name: [torch.rand_like(value)] * 2 for name, value in weights.items()}
    checkpoint.save(path, told, weights, {"step": step, "moments": moments})


def test_newest__cut_off_at_every_4_kib_the_one_before_is_used(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (10, 20):
        write(checkpoint.checkpoint_path(run, step), step)
    newest = checkpoint.checkpoint_path(run, 20)
    whole = tmp_path / "whole"
    shutil.copytree(newest, whole)
    tried = 0
    for file in sorted(whole.iterdir()):
        size = file.stat().st_size
        for length in range(0, size, BLOCK):
            shutil.copy(file, newest / file.name)
            with (newest / file.name).open("r+b") as stream:
                stream.truncate(length)
            found, passed = checkpoint.newest(run)
            assert found == checkpoint.checkpoint_path(run, 10), (file.name, length)
            assert len(passed) == 1
            assert "step-00000020" in passed[0]
            tried += 1
        with pytest.raises(InputError, match="step-00000020"):
            load_model(newest)
        shutil.copy(file, newest / file.name)
    assert tried > 1000
    assert checkpoint.newest(run) == (newest, [])
    assert load_model(run).step == 20
