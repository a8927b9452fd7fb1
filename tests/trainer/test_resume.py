"""Runs that were stopped, killed or damaged go on as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common import InputError
from pipeline.console import ProgressBar
from tests.trainer.conftest import SMALL, MakeShards, Synth, make_rows, small_recipe, write_rows
from trainer import run as run_module
from trainer.batch import CloudBatch
from trainer.checkpoint import checkpoints, load_model, load_state
from trainer.lock import exclusive
from trainer.loop import Interrupted, Loop
from trainer.recorder import read_metrics
from trainer.run import Workers, train
from trainer.task import StepResult

# Everything that has state: BatchNorm, patch dropout, moving average, learned weights.
STATEFUL = (
    "model.options.norm=batch",
    "model.options.patch_dropout=0.5",
    "ema.enabled=true",
    "train.steps=14",
    "train.val_every=5",
    "train.checkpoint_every=7",
    "train.keep=10",
)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested state as one level."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)  # type: ignore[assignment]
    else:
        return {prefix: value}
    return {key: v for name, item in items for key, v in flat(item, f"{prefix}/{name}").items()}


def assert_same_state(a: Path, b: Path) -> None:
    left, right = flat(load_state(a)), flat(load_state(b))
    assert left.keys() == right.keys()
    assert any(isinstance(value, Tensor) for value in left.values())
    for key, value in left.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, right[key]), key
        else:
            assert value == right[key], key


class StopsAtNine(Loop):
    """As if the user pressed Ctrl-C during step 9."""

    def _step(self, batch: CloudBatch) -> tuple[StepResult, Tensor]:
        if self.progress.step == 8:
            signal.raise_signal(signal.SIGINT)
        return super()._step(batch)


@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("data.cache_mib=0", "data.shuffle_groups=1"),
        ("data.near=4", "data.shuffle_groups=1"),
        ("train.log_every=4",),  # steps that are not recorded yet when the checkpoint is saved
    ],
    ids=str,
)
def test_resume__continues_bit_for_bit(
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: tuple[str, ...],
) -> None:
    root, recipe = make_shards(textless=7), small_recipe(*STATEFUL, *extra)
    straight = train([root], recipe, tmp_path / "straight", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Loop", StopsAtNine)
        with pytest.raises(Interrupted):
            train([root], recipe, tmp_path / "halves", device="cpu")
    assert load_model(tmp_path / "halves").step == 9
    torch.manual_seed(12345)  # whatever the process did in between must not matter
    halves = train([], None, tmp_path / "halves", resume=True, device="cpu")
    assert halves.step == straight.step == 14
    assert_same_state(straight.checkpoint, halves.checkpoint)
    assert load_model(straight.checkpoint).hash == load_model(halves.checkpoint).hash
    assert halves.validation == straight.validation

    def told(run: Path) -> list[dict[str, Any]]:
        drop = ("samples_per_s", "data_wait")
        return [{k: v for k, v in m.items() if k not in drop} for m in read_metrics(run)]

    assert told(tmp_path / "halves") == told(tmp_path / "straight")


@pytest.mark.parametrize("at", [10, 14])  # a validation on the way, and the last one
@pytest.mark.parametrize("again", [False, True])
def test_resume__a_validation_that_was_cut_off_is_made_up_for(
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    again: bool,
) -> None:
    """Stopped at its second batch, and once more where the run goes on."""
    small = ("data.val_fraction=0.3", "data.batch_size=8", "train.val_every=5")
    root, recipe = make_shards(), small_recipe(*STATEFUL, *small)
    straight = train([root], recipe, tmp_path / "straight", device="cpu")

    class StopsInValidation(Loop):
        def _held_out_batches(self, bar: ProgressBar) -> Iterator[CloudBatch]:
            for number, batch in enumerate(super()._held_out_batches(bar)):
                if self.progress.step == at and number == 1:
                    self.request_stop()
                yield batch

    halves = tmp_path / "halves"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Loop", StopsInValidation)
        with pytest.raises(Interrupted, match=f"saved at step {at}"):
            train([root], recipe, halves, device="cpu")
        if again:
            with pytest.raises(Interrupted, match=f"saved at step {at}"):
                train([], None, halves, resume=True, device="cpu")
    assert [m["step"] for m in read_metrics(halves) if m["kind"] == "val"] == list(range(5, at, 5))
    resumed = train([], None, halves, resume=True, device="cpu")
    assert_same_state(straight.checkpoint, resumed.checkpoint)
    assert resumed.validation == straight.validation
    assert resumed.best_step == straight.best_step

    def told(run: Path) -> list[dict[str, Any]]:
        drop = ("samples_per_s", "data_wait")
        return [{k: v for k, v in m.items() if k not in drop} for m in read_metrics(run)]

    assert told(halves) == told(tmp_path / "straight")


def test_resume__truncated_newest_checkpoint_falls_back_to_the_one_before(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, recipe = make_shards(), small_recipe(*STATEFUL)
    straight = train([root], recipe, tmp_path / "straight", device="cpu")
    broken = train([root], recipe, tmp_path / "broken", device="cpu")
    file = broken.checkpoint / "state.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    capsys.readouterr()
    again = train([], None, tmp_path / "broken", resume=True, device="cpu")
    message = capsys.readouterr().err
    assert "passed over a damaged checkpoint" in message
    assert "resuming from step-00000010" in message
    assert_same_state(straight.checkpoint, again.checkpoint)


def test_resume__damaged_newest_checkpoint_costs_no_whole_one(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in the folder until the run comes there again, and must not count as one kept."""
    options = ("train.steps=14", "train.checkpoint_every=3", "train.val_every=100", "train.keep=1")
    recipe = small_recipe(*options, "data.val_fraction=0")
    root, out = make_shards(), tmp_path / "run"
    train([root], recipe, out, device="cpu")
    (newest,) = checkpoints(out)
    (newest / "state.pt").write_bytes(b"")
    newest.rename(newest.with_name("step-00000099"))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Loop", StopsAtNine)
        with pytest.raises(Interrupted):
            train([], None, out, resume=True, device="cpu")
    assert [path.name for path in checkpoints(out)] == ["step-00000009", "step-00000099"]
    assert load_model(out).step == 9


def test_resume__best_that_was_not_noted_is_noted(make_shards: MakeShards, tmp_path: Path) -> None:
    """A kill between a checkpoint and the note that it is the best."""
    recipe = small_recipe("train.steps=4", "train.val_every=2", "train.checkpoint_every=2")
    result = train([make_shards()], recipe, tmp_path / "run", device="cpu")
    note = tmp_path / "run" / "best.json"
    before = note.read_text()
    assert json.loads(before)["step"] == result.best_step
    note.write_text('{"step": 1, "score": 0.0}')
    train([], None, tmp_path / "run", resume=True, device="cpu")
    assert note.read_text() == before


def test_resume__run_of_another_process_is_refused(make_shards: MakeShards, tmp_path: Path) -> None:
    recipe, out = small_recipe("train.steps=2"), tmp_path / "run"
    train([make_shards()], recipe, out, device="cpu")
    leftover = out / "checkpoints" / ".tmp-0123-step-00000003"  # being written by the other one
    leftover.mkdir()
    with exclusive(out):
        for workers in (Workers(), Workers(2)):
            with pytest.raises(InputError, match="run: another command is using this run"):
                train([], None, out, resume=True, device="cpu", workers=workers)
        assert leftover.exists()
    assert train([], None, out, resume=True, device="cpu").step == 2


def test_resume__finished_run_changes_nothing(make_shards: MakeShards, tmp_path: Path) -> None:
    recipe = small_recipe("train.steps=3")
    first = train([make_shards()], recipe, tmp_path / "run", device="cpu")
    before = load_model(first.checkpoint).hash
    again = train([], recipe, tmp_path / "run", resume=True, device="cpu")
    assert again.step == 3
    assert load_model(again.checkpoint).hash == before
    assert again.validation == first.validation


def test_resume__other_recipe_or_other_rows_are_refused(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    train([make_shards()], small_recipe("train.steps=3"), tmp_path / "run", device="cpu")
    other = small_recipe("train.steps=3", "optim.lr=0.5")
    with pytest.raises(InputError, match=r"optim\.lr is 0\.5, the run started with 0\.001"):
        train([], other, tmp_path / "run", resume=True, device="cpu")
    grown = make_shards("grown", count=120)
    with pytest.raises(InputError, match="not the rows"):
        train([grown], None, tmp_path / "run", resume=True, device="cpu")
    with pytest.raises(InputError, match="no run to resume"):
        train([grown], None, tmp_path / "nothing", resume=True, device="cpu")
    pair = [make_shards("a"), make_shards("b", prefix="other")]
    train(pair, small_recipe("train.steps=3"), tmp_path / "pair", device="cpu")
    with pytest.raises(InputError, match=r"row_hash differs.*in the same order"):
        train(pair[::-1], None, tmp_path / "pair", resume=True, device="cpu")
    freed = small_recipe("train.steps=3", "train.log_every=2")
    assert train([], freed, tmp_path / "run", resume=True, device="cpu").step == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [("split", "split_hash differs"), ("embeddings", "part_hash differs")],
)
def test_resume__the_same_objects_with_other_embeddings_or_split_are_refused(
    make_shards: MakeShards, tmp_path: Path, changed: str, message: str
) -> None:
    out = tmp_path / "run"
    recipe = small_recipe("train.steps=2", "data.val_fraction=0")
    train([make_shards(test_rows=4)], recipe, out, device="cpu")
    rows = make_rows(Synth(test_rows=4))
    if changed == "split":  # as many rows of each
        splits = [row.split for row in rows]
        rows = [replace(r, split=s) for r, s in zip(rows, splits[-1:] + splits[:-1], strict=True)]
    else:
        rows[5] = replace(rows[5], image_embeds=-rows[5].image_embeds)
    other = write_rows(tmp_path / "other", Synth(test_rows=4), rows)
    with pytest.raises(InputError, match=message):
        train([other], None, out, resume=True, device="cpu")


def test_resume__the_same_sets_elsewhere_go_on_also_from_older_checkpoints(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, root = tmp_path / "run", make_shards()
    result = train([root], small_recipe("train.steps=2"), out, device="cpu")
    shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train(["copy"], None, out, resume=True, device="cpu").step == 2
    file = result.checkpoint / "config.json"
    config = json.loads(file.read_text())
    for key in ("split_hash", "part_hash"):
        del config["data"][key]
    file.write_text(json.dumps(config))
    assert train([root], None, out, resume=True, device="cpu").step == 2


def test_resume__killed_while_it_replaced_its_only_checkpoint(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights to begin with, which are gone, are not asked for then either."""
    root, first = make_shards(), tmp_path / "first"
    train([root], small_recipe("train.steps=1"), first, device="cpu")
    recipe = small_recipe("train.steps=3", f"model.init={first}")
    result = train([root], recipe, tmp_path / "run", device="cpu")
    shutil.rmtree(first)
    step = result.checkpoint
    shutil.copytree(step, step.with_name(f".tmp-0123456789ab-{step.name}"))
    step.rename(step.with_name(f".tmp-ba9876543210-retired-{step.name}"))
    assert train([], None, tmp_path / "run", resume=True, device="cpu").step == 3
    assert f"resuming from {step.name}" in capsys.readouterr().err
    assert [path.name for path in step.parent.iterdir()] == [step.name]


@pytest.mark.slow
def test_resume__after_sigkill_equals_a_straight_run(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    root = make_shards()
    overrides = (*STATEFUL, "train.steps=150")
    straight = train([root], small_recipe(*overrides), tmp_path / "straight", device="cpu")
    settings = [word for option in [*SMALL, *overrides] for word in ("--set", option)]
    command = [sys.executable, "-m", "trainer.cli", "run", "--shards", str(root)]
    command += ["--out", str(tmp_path / "killed"), "--device", "cpu", *settings]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(checkpoints(tmp_path / "killed")) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert load_model(tmp_path / "killed").step < 150
    again = train([], None, tmp_path / "killed", resume=True, device="cpu")
    assert_same_state(straight.checkpoint, again.checkpoint)
