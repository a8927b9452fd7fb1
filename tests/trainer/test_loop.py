"""Machinery of the steps: compilation and its fallback, recomputation, precision, speed told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common import InputError
from tests.trainer.conftest import WIDTH, MakeShards, small_recipe
from trainer.batch import CloudBatch, Position
from trainer.checkpoint import load_model
from trainer.data import Batches
from trainer.index import Corpus
from trainer.recorder import Recorder, read_metrics
from trainer.run import train
from trainer.task import DistillTask

CPU = torch.device("cpu")
DEEP = ("model.options.depth=4", "model.options.drop_path=0.3", "model.options.patch_dropout=0.25")


@pytest.fixture
def root(make_shards: MakeShards) -> Path:
    return make_shards(textless=6)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run) if line["kind"] == "train"]


def test_validation__is_recorded_before_the_checkpoint_that_a_resumed_run_goes_on_from(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("train.steps=6", "train.val_every=2", "train.checkpoint_every=100")
    train([root], small_recipe(*options), tmp_path / "whole", device="cpu")
    write = Recorder.write

    def full(self: Recorder, kind: str, step: int, values: dict[str, Any]) -> None:
        if (kind, step) == ("val", 4):
            raise OSError("disk full")
        write(self, kind, step, values)

    monkeypatch.setattr(Recorder, "write", full)
    with pytest.raises((OSError, InputError)):
        train([root], small_recipe(*options), tmp_path / "cut", device="cpu")
    monkeypatch.undo()
    train([], None, tmp_path / "cut", resume=True, device="cpu")
    whole, cut = (
        [(line["kind"], line["step"]) for line in read_metrics(tmp_path / name)]
        for name in ("whole", "cut")
    )
    assert cut == whole
    assert ("val", 4) in whole


class Fails:
    """A compiled function whose compiler gives up, at once or at a later call."""

    def __init__(self, plain: Any, calls: int) -> None:
        self.plain, self.left = plain, calls

    def __call__(self, *arguments: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("backend='inductor' raised:\nno C++ compiler")
        return self.plain(*arguments)


@pytest.mark.parametrize("calls", [0, 2])
def test_compile__failure_is_told_and_the_run_goes_on_without(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: int,
) -> None:
    options = ("train.steps=4", *DEEP)
    plain = train([root], small_recipe(*options), tmp_path / "plain", device="cpu")
    monkeypatch.setattr(torch, "compile", lambda function: Fails(function, calls))
    capsys.readouterr()
    recipe = small_recipe(*options, "train.compile=true")
    result = train([root], recipe, tmp_path / "compiled", device="cpu")
    told = capsys.readouterr().err
    assert told.count("torch.compile failed, continuing without it (backend='inductor'") == 1
    assert losses(result.run) == losses(plain.run)
    assert load_model(result.run).hash == load_model(plain.run).hash


def test_compile__an_error_of_the_step_itself_is_raised(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(DistillTask, "backward", broken)
    with pytest.raises(ValueError, match="a bug"):
        train([root], small_recipe("train.compile=true"), tmp_path / "run", device="cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the compiler, about itself
def test_compile__gives_the_losses_of_the_plain_step(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("train.steps=5", "train.val_every=3")
    plain = train([root], small_recipe(*options), tmp_path / "plain", device="cpu")
    recipe = small_recipe(*options, "train.compile=true")
    result = train([root], recipe, tmp_path / "compiled", device="cpu")
    assert "torch.compile failed" not in capsys.readouterr().err
    assert losses(result.run) == pytest.approx(losses(plain.run), rel=1e-4)


def kept_bytes(root: Path, *overrides: str) -> tuple[int, dict[str, Tensor]]:
    """Bytes that the backward pass of a step finds kept, and the gradients."""
    recipe = small_recipe(*DEEP, *overrides)
    task = DistillTask(recipe, WIDTH, CPU)
    batch = next(Batches(Corpus([root], recipe), 0).epoch(0))
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    clouds = batch.to(CPU)
    torch.manual_seed(3)
    task.modules.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        features = task.encode(clouds.xyz, clouds.rgb)
    total = sum(kept.values())
    features.square().sum().backward()  # type: ignore[no-untyped-call]
    named = task.student.named_parameters()
    return total, {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_recompute__keeps_less_for_the_same_gradients(root: Path) -> None:
    full, expected = kept_bytes(root)
    less, found = kept_bytes(root, "train.recompute=true")
    assert less < 0.6 * full
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_recompute__leaves_the_checkpoint_as_it_is(root: Path, tmp_path: Path) -> None:
    options = ("train.steps=3", "ema.enabled=true", *DEEP)
    plain = train([root], small_recipe(*options), tmp_path / "plain", device="cpu")
    recipe = small_recipe(*options, "train.recompute=true")
    result = train([root], recipe, tmp_path / "recompute", device="cpu")
    assert load_model(result.run).hash == load_model(plain.run).hash


def test_recompute__backbone_without_blocks_is_refused(root: Path) -> None:
    recipe = small_recipe("train.recompute=true")
    model = recipe.model.model_copy(update={"backbone": "pointnext-s", "options": {}})
    with pytest.raises(InputError, match=r"train\.recompute: this backbone has no blocks"):
        DistillTask(recipe.model_copy(update={"model": model}), WIDTH, CPU)


def test_precision__bf16_trains_near_fp32(root: Path, tmp_path: Path) -> None:
    runs = []
    for precision in ("fp32", "bf16"):
        recipe = small_recipe("train.steps=4", f"train.precision={precision}")
        runs.append(train([root], recipe, tmp_path / precision, device="cpu").run)
    full, half = (losses(run) for run in runs)
    assert half != full
    assert half == pytest.approx(full, rel=0.03)


class Slow(Batches):
    """A reader that takes its time."""

    def stream(
        self, start: Position, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[CloudBatch]:
        source = super().stream(start, cancelled)
        try:
            while True:
                time.sleep(0.15)
                yield next(source)
        finally:
            source.close()  # type: ignore[attr-defined]


def test_records__tell_the_share_of_time_that_steps_wait_for_data(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe("train.steps=8", "train.log_every=2", "train.val_every=4")
    monkeypatch.setattr("trainer.run.Batches", Slow)
    train([root], recipe, tmp_path / "slow", device="cpu")
    lines = [line for line in read_metrics(tmp_path / "slow") if line["kind"] == "train"]
    assert len(lines) == 4
    for line in lines:
        waited = 2 * 0.15
        rows = 2 * 14.5  # of two steps
        seconds = rows / line["samples_per_s"]
        assert line["data_wait"] == pytest.approx(waited / seconds, rel=0.3)
        assert 0 < line["data_wait"] < 1
    assert "data wait" in capsys.readouterr().err
