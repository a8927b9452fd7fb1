"""The commands about backbones, recipes and released weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.trainer import reference
from tests.trainer.checkpoints import write_checkpoint
from trainer.backbones import backbone_names
from trainer.checkpoint import load_model
from trainer.cli import app, main
from trainer.recipe import recipe_names


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_backbones__lists_all_with_parameters_tokens_and_gflop() -> None:
    rows = json.loads(invoke("backbones", "--json"))
    assert [row["name"] for row in rows] == backbone_names()
    for row in rows:
        assert row["parameters"] > 0
        assert row["gflop"] > 0
        assert row["tokens"] >= 0
    by_name = {row["name"]: row for row in rows}
    assert by_name["pointbert-32m"]["tokens"] == 385
    assert by_name["pointbert-32m"]["gflop"] == pytest.approx(28.9, rel=0.01)
    assert by_name["uni3d-g"]["parameters"] == 1_012_864_128


def test_recipes__lists_all_with_what_they_say_of_themselves() -> None:
    found = json.loads(invoke("recipes", "--json"))
    assert list(found) == recipe_names()
    assert found["openshape"]["about"]["hours"] == 300
    assert found["align-uni3d-b"]["loss"]["distill"]["enabled"] is False
    assert "mrd-pointbert-72m" in found
    table = invoke("recipes")
    assert "mrd-pointbert-32m" in table
    assert "align-pointbert-32m" not in table  # a note tells of the twins
    assert "loss.distill.tau_teacher_cross" in invoke("recipes", "--keys")


def test_import_weights__writes_a_checkpoint(tmp_path: Path) -> None:
    torch.save(reference.openshape_state(256, 6, 1024, 96, 1280), tmp_path / "model.pt")
    out = tmp_path / "model"
    told = invoke(
        "import-weights", "openshape", str(tmp_path / "model.pt"), "--out", str(out), "--json"
    )
    assert json.loads(told)["backbone"]["name"] == "pointbert-5m"
    assert load_model(out).teacher.model == "ViT-bigG-14"


def test_export__replaces_with_overwrite_and_is_not_stopped_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "ckpt", seed=3)
    out = tmp_path / "new" / "out"
    line = ["export", str(tmp_path / "ckpt"), "--out", str(out)]
    assert json.loads(invoke(*line, "--json"))["out"] == str(out)
    (out / "older.txt").touch()
    refused = CliRunner().invoke(app, line)
    assert str(refused.exception).endswith("is there already; add --overwrite to replace it")
    with monkeypatch.context() as patch:
        patch.setattr("trainer.export.compare", lambda *_: signal.raise_signal(signal.SIGINT))
        patch.setattr(sys, "argv", ["trainer", *line, "--overwrite"])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted: nothing was written"
    assert (out / "older.txt").exists()
    assert load_model(out).step == 3
    invoke(*line, "--overwrite")
    assert not (out / "older.txt").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_import_weights__replaces_with_overwrite(tmp_path: Path) -> None:
    torch.save(reference.openshape_state(256, 6, 1024, 96, 1280), tmp_path / "model.pt")
    write_checkpoint(tmp_path / "out", seed=3)
    line = ["import-weights", "openshape", str(tmp_path / "model.pt"), "--out"]
    refused = CliRunner().invoke(app, [*line, str(tmp_path / "out")])
    assert str(refused.exception).endswith("is there already; add --overwrite to replace it")
    assert load_model(tmp_path / "out").step == 3
    invoke(*line, str(tmp_path / "out"), "--overwrite")
    assert load_model(tmp_path / "out").teacher.model == "ViT-bigG-14"


def test_push__json_is_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.export.push", lambda *_, **__: "https://hub.example/org/toy")
    assert json.loads(invoke("push", "run", "org/toy", "--json")) == {
        "url": "https://hub.example/org/toy"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import-weights", "openshape", "none.pt", "--out", "x"], "none.pt: no such file"),
        (["run", "--recipe", "mrd-uni3d-xl", "--out", "x"], "did you mean mrd-uni3d-l"),
    ],
)
def test_bad_input__is_one_line_and_exit_2(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer.cli", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
