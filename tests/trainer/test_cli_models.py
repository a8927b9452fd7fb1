"""The commands about backbones, recipes and released weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.trainer import reference
from trainer.backbones import backbone_names
from trainer.checkpoint import load_model
from trainer.cli import app
from trainer.config import recipe_names


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
    assert by_name["uni3d-g"]["parameters"] == 1_012_864_128


def test_recipes__lists_all_with_what_they_say_of_themselves() -> None:
    found = json.loads(invoke("recipes", "--json"))
    assert list(found) == recipe_names()
    assert found["openshape"]["about"]["hours"] == 300
    assert found["align-uni3d-b"]["loss"]["distill"]["enabled"] is False
    table = invoke("recipes")
    assert "mrd-pointbert-32m" in table
    assert "align-pointbert-32m" not in table  # a note tells of the twins


def test_import_weights__writes_a_checkpoint(tmp_path: Path) -> None:
    torch.save(reference.openshape_state(256, 6, 1024, 96, 1280), tmp_path / "model.pt")
    out = tmp_path / "model"
    told = invoke(
        "import-weights", "openshape", str(tmp_path / "model.pt"), "--out", str(out), "--json"
    )
    assert json.loads(told)["backbone"]["name"] == "pointbert-5m"
    assert load_model(out).teacher.model == "ViT-bigG-14"


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
