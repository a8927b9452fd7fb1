from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common import InputError, file_hash
from tests.trainer.conftest import WIDTH, Synth, make_manifest
from trainer import checkpoint
from trainer.backbones import build_backbone, resolve_options
from trainer.checkpoint import load_model
from trainer.student import find

OPTIONS = {"dim": 32, "heads": 1, "head_dim": 32, "mlp_dim": 32, "depth": 1, "centroids": 8}


def header(step: int = 5) -> dict[str, Any]:
    return {
        "recipe": {},
        "backbone": {"name": "tiny", "options": resolve_options("tiny", OPTIONS)},
        "teacher": asdict(make_manifest(Synth()).teacher),
        "data": {},
        "n_points": 64,
        "neutral_rgb": 102,
        "step": step,
    }


def write(path: Path, step: int = 5, *, state: bool = True) -> torch.nn.Module:
    torch.manual_seed(step)
    model = build_backbone("tiny", WIDTH, OPTIONS)
    values = {"step": step, "tensor": torch.arange(3)} if state else None
    checkpoint.save(path, header(step), model.state_dict(), values)
    return model.eval()


def run_with(tmp_path: Path, *steps: int) -> Path:
    run = tmp_path / "run"
    for step in steps:
        write(checkpoint.checkpoint_path(run, step), step)
    return run


KILLED = """
import os, sys
from pathlib import Path
from pipeline.common import atomic_path

rename, targets = Path.rename, []

def killed_at_the_second(path, target):
    targets.append(target)
    if len(targets) == 2:
        os._exit(9)
    return rename(path, target)

Path.rename = killed_at_the_second
with atomic_path(Path(sys.argv[1])) as folder:
    folder.mkdir()
"""


def test_clear_leftovers__a_checkpoint_that_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    run = run_with(tmp_path, 3, 9)
    path = checkpoint.checkpoint_path(run, 9)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == 9
    assert not path.exists()
    checkpoint.clear_leftovers(run)
    assert checkpoint.newest(run) == (path, [])
    # One that was replaced, and one that was not whole yet.
    for name in ("retired-step-00000009", "step-00000012"):
        (path.parent / f".tmp-0123456789ab-{name}").mkdir()
    checkpoint.clear_leftovers(run)
    assert checkpoint.newest(run) == (path, [])
    assert len(list(path.parent.iterdir())) == 2


def test_load_model__gives_back_what_was_saved(tmp_path: Path) -> None:
    model = write(tmp_path / "ckpt")
    loaded = load_model(tmp_path / "ckpt")
    xyz = torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.backbone(xyz, xyz), model(xyz, xyz))
    assert not loaded.backbone.training
    assert all(not p.requires_grad for p in loaded.backbone.parameters())
    assert (loaded.n_points, loaded.step, loaded.neutral_rgb) == (64, 5, 102)
    assert loaded.teacher == make_manifest(Synth()).teacher
    assert loaded.hash == file_hash(tmp_path / "ckpt" / "model.safetensors")
    assert loaded.config["format"] == "mrd3d-checkpoint"


def test_load_model__run_folder_gives_the_newest(tmp_path: Path) -> None:
    assert load_model(run_with(tmp_path, 5, 20, 10)).step == 20


def test_load_model__run_and_best_gives_the_best_where_it_is_noted_and_whole(
    tmp_path: Path,
) -> None:
    run = run_with(tmp_path, 5, 20, 10)
    with pytest.raises(InputError, match="no such folder"):
        load_model(run / "best")
    (run / "best.json").write_text('{"step": 10}')
    assert load_model(run / "best").step == 10
    assert find(str(run / "best")) == run / "best"  # no model of a hub
    assert load_model(run).step == 20
    truncate_weights(checkpoint.checkpoint_path(run, 10))
    with pytest.raises(InputError, match="the best checkpoint is gone or damaged"):
        load_model(run / "best")
    assert load_model(run).step == 20


def truncate_weights(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def truncate_state(path: Path) -> None:
    file = path / "state.pt"
    file.write_bytes(file.read_bytes()[:50])


def remove_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def cut_config(path: Path) -> None:
    (path / "config.json").write_text('{"format": "mrd3d-')


def flip_bit(path: Path) -> None:
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "harm", [truncate_weights, truncate_state, remove_weights, cut_config, flip_bit]
)
def test_newest__damaged_checkpoint_is_passed_over(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    run = run_with(tmp_path, 10, 20)
    harm(checkpoint.checkpoint_path(run, 20))
    found, passed = checkpoint.newest(run)
    assert found == checkpoint.checkpoint_path(run, 10)
    assert len(passed) == 1
    assert "step-00000020" in passed[0]
    assert load_model(run).step == 10
    with pytest.raises(InputError, match="step-00000020"):
        load_model(checkpoint.checkpoint_path(run, 20))


def edit(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_load_model__wrong_input_is_one_line(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such folder" in message(tmp_path / "nowhere")
    assert "not a checkpoint" in message(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "no whole checkpoint" in message(tmp_path / "run")
    write(tmp_path / "newer")
    edit(tmp_path / "newer", version=99)
    assert "upgrade mrd3d" in message(tmp_path / "newer")
    write(tmp_path / "foreign")
    edit(tmp_path / "foreign", format="other")
    assert "not of a checkpoint" in message(tmp_path / "foreign")
    write(tmp_path / "misfit")
    edit(tmp_path / "misfit", backbone={"name": "tiny", "options": {**OPTIONS, "dim": 64}})
    assert "do not fit" in message(tmp_path / "misfit")


def test_prune__keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    run = run_with(tmp_path, 10, 20, 30, 40)
    (run / "best.json").write_text('{"step": 20}')
    checkpoint.prune(run, 1, 40)
    assert [path.name[-2:] for path in checkpoint.checkpoints(run)] == ["20", "40"]


def test_prune__what_the_run_has_not_come_to_again_does_not_count(tmp_path: Path) -> None:
    run = run_with(tmp_path, 10, 20, 30, 40)
    checkpoint.prune(run, 1, 30)
    assert [path.name[-2:] for path in checkpoint.checkpoints(run)] == ["30", "40"]


def test_load_state__is_plain_data(tmp_path: Path) -> None:
    write(tmp_path / "ckpt")
    state = checkpoint.load_state(tmp_path / "ckpt")
    assert state["step"] == 5
    assert torch.equal(state["tensor"], torch.arange(3))
