"""Records that go to Weights & Biases as well. Files of a run: ``test_run``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.common import InputError
from tests.trainer.conftest import MakeShards, small_recipe
from trainer import recorder
from trainer.recorder import Recorder, read_metrics
from trainer.run import train

STEPS = ("train.steps=6", "train.log_every=3", "train.val_every=6")


class Service:
    """Stands for the module ``wandb``: keeps what it is told."""

    class Error(Exception):
        """As that of the module."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.points: list[dict[str, float]] = []
        self.finished = 0
        self.refuses = ""
        self.Settings = dict

    def init(self, **options: Any) -> Any:
        if self.refuses:
            raise self.Error(self.refuses)
        self.runs.append(options)
        return SimpleNamespace(
            define_metric=lambda *_, **__: None, log=self.points.append, finish=self.finish
        )

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service()
    monkeypatch.setitem(sys.modules, "wandb", made)
    monkeypatch.setattr(recorder, "find_spec", lambda _: True)
    return made


def test_wandb__gets_the_numbers_of_every_record(
    service: Service, make_shards: MakeShards, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "mine"
    recipe = small_recipe(*STEPS, "train.wandb=us/shapes")
    train([make_shards()], recipe, out, device="cpu")
    [options] = service.runs
    assert (options["entity"], options["project"]) == ("us", "shapes")
    assert options["name"] == "runs/mine"
    assert options["config"]["train"]["steps"] == 6
    assert service.finished == 1
    lines = read_metrics(out)
    assert [point["step"] for point in service.points] == [3, 6, 6]
    for line, point in zip(lines, service.points, strict=True):
        name = "loss" if line["kind"] == "train" else "align"
        assert point[f"{line['kind']}/{name}"] == line[name]


def test_wandb__a_resumed_run_is_the_same_one_and_may_be_left_out(
    service: Service, tmp_path: Path
) -> None:
    for _ in range(2):
        Recorder(tmp_path, 0, "shapes").close()
    first, second = service.runs
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["entity"] is None
    Recorder(tmp_path).close()
    assert len(service.runs) == 2


def test_wandb__one_that_refuses_is_told_in_a_line(service: Service, tmp_path: Path) -> None:
    service.refuses = "No API key configured. Use `wandb login` to log in.\nMore of it."
    with pytest.raises(InputError, match=r"No API key .*WANDB_MODE=offline, or leave") as caught:
        Recorder(tmp_path, 0, "shapes")
    assert "\n" not in str(caught.value)


def test_wandb__missing_is_told_before_anything_is_written(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"train\.wandb=shapes: needs wandb; pip install"):
        train([make_shards()], small_recipe("train.wandb=shapes"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_wandb__the_real_one_takes_a_run_without_a_network(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    recipe = small_recipe(*STEPS, "train.wandb=shapes")
    train([make_shards()], recipe, out, device="cpu")
    name = (out / "wandb" / "id").read_text()
    [record] = out.glob(f"wandb/offline-run-*/run-{name}.wandb")
    assert b"val/align" in record.read_bytes()
