from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pipeline.common import InputError
from pipeline.shards import record_contents
from tests.running import Cli
from tests.trainer.conftest import SMALL, MakeShards, small_recipe
from tests.trainer.test_resume import StopsAtNine
from trainer import run as run_module
from trainer.checkpoint import checkpoints, load_model
from trainer.index import Corpus
from trainer.lock import exclusive
from trainer.recorder import read_metrics
from trainer.run import Workers, train


def test_train__learns_shapes_and_the_loss_falls(make_shards: MakeShards, tmp_path: Path) -> None:
    root = make_shards(count=160, classes=4)
    recipe = small_recipe("train.epochs=20", "optim.lr=0.003", "train.val_every=100")
    result = train([root], recipe, tmp_path / "run", device="cpu")
    metrics = read_metrics(tmp_path / "run")
    losses = [line["loss"] for line in metrics if line["kind"] == "train"]
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])
    rows = result.validation["rows"]
    # Within a class the teacher's vectors are noise, so 4 / rows is about the best to reach.
    for name in ("top1_image", "top1_text"):
        assert result.validation[name] > 2 / rows
    relations = [line["intra_image"] for line in metrics if line["kind"] == "train"]
    assert sum(relations[-20:]) < 0.7 * sum(relations[:20])


def test_train__run_folder_is_complete(make_shards: MakeShards, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root, out = make_shards(textless=4), tmp_path / "run"
    recipe = small_recipe(
        "train.steps=6", "train.val_every=2", "train.checkpoint_every=3", "train.log_every=3"
    )
    result = train([root], recipe, out, device="cpu")
    names = {path.name for path in out.iterdir()}
    assert names == {
        "README.md",
        "best.json",
        "checkpoints",
        "environment.json",
        "metrics.jsonl",
        "run.json",
        "tensorboard",
    }
    lines = read_metrics(out)
    training = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in training] == [3, 6]
    expected = {"loss", "align_image", "align_text", "intra_image", "intra_text", "cross", "lr"}
    expected |= {
        "logit_scale",
        "samples_per_s",
        "data_wait",
        "distill_weight",
        "weight_cross",
        "grad_norm",
    }
    assert expected <= set(training[0])
    assert len(training[0]["weight_cross_each_step"]) == 3
    assert [line["step"] for line in lines if line["kind"] == "val"] == [2, 4, 6]
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert {"train/loss", "val/score", "train/weight_cross"} <= set(board.Tags()["scalars"])

    config = load_model(out).config
    data = config["data"]
    assert data["n_rows"] == 96
    assert data["n_train"] + data["n_val"] == 96
    assert data["n_with_text"] == 72
    assert data["shards"][0]["name"] == "shards"
    assert str(tmp_path) not in json.dumps(config)
    assert config["samples_seen"] == 71 + 14  # an epoch and a batch of the next
    assert config["up_axis"] == "+y"
    best = json.loads((out / "best.json").read_text())
    assert best["step"] == result.best_step
    scores = {line["step"]: line["score"] for line in lines if line["kind"] == "val"}
    assert best["score"] == max(scores.values())
    card = (out / "README.md").read_text()
    for fact in ("synthetic-0", "tiny", "2407.14007", f"{data['n_val']} shapes", "top1_image"):
        assert fact in card
    assert set(json.loads((out / "environment.json").read_text())) >= {"versions", "device"}


def test_train__existing_folder_is_refused(make_shards: MakeShards, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files; choose another folder"):
        train([make_shards()], small_recipe(), tmp_path / "run", device="cpu")
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"`trainer resume .*run` continues it, or choose"):
        train([make_shards()], small_recipe(), tmp_path / "run", device="cpu")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("running", "message"),
    [(True, "another command is using this run"), (False, "already exists; `trainer resume")],
)
def test_train__a_run_that_began_while_the_shards_were_read_keeps_its_record(
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    running: bool,
    message: str,
) -> None:
    out = tmp_path / "run"
    with ExitStack() as other:

        def read(*given: Any) -> Corpus:
            out.mkdir()
            (out / "run.json").write_text("of the other run")
            if running:
                other.enter_context(exclusive(out))
            return Corpus(*given)

        monkeypatch.setattr(run_module, "Corpus", read)
        recipe = small_recipe("train.steps=1")
        with pytest.raises(InputError, match=message):
            train([make_shards()], recipe, out, device="cpu", workers=Workers(workers))
    assert (out / "run.json").read_text() == "of the other run"
    assert [path.name for path in out.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("steps", "warmup"),
    [(4, ("optim.warmup_steps=100", "optim.warmup=1")), (4, ("optim.warmup=1",)), (12, ())],
)
def test_train__the_shorter_warm_up_that_is_told_ends(
    make_shards: MakeShards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    steps: int,
    warmup: tuple[str, ...],
) -> None:
    options = (f"train.steps={steps}", *(warmup or ("optim.warmup_steps=12",)))
    root, told = make_shards(), "the full rate is never reached; "
    train([root], small_recipe(*options), tmp_path / "run", device="cpu")
    remedy = capsys.readouterr().err.split(told)[1].split(" to reach it")[0]
    better = remedy.removeprefix("--set ").split(" --set ")
    recipe = small_recipe(*options, *better)
    train([root], recipe, tmp_path / "better", device="cpu")
    assert told not in capsys.readouterr().err
    rates = [m["lr"] for m in read_metrics(tmp_path / "better") if m["kind"] == "train"]
    assert max(rates) == recipe.optim.lr


@pytest.mark.parametrize(
    ("classes", "dropped", "told"), [(1, "true", True), (2, "true", False), (1, "false", False)]
)
def test_train__alignment_without_negatives_is_told(
    make_shards: MakeShards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    classes: int,
    dropped: str,
    told: bool,
) -> None:
    recipe = small_recipe("train.steps=1", f"loss.align.drop_same_category={dropped}")
    train([make_shards(classes=classes)], recipe, tmp_path / "run", device="cpu")
    assert ("of one category" in capsys.readouterr().err) == told
    (record,) = [m for m in read_metrics(tmp_path / "run") if m["kind"] == "train"]
    assert (record["align_image"] == 0) == told


@pytest.mark.parametrize(("warmup", "told"), [(3, True), (2, False)])
def test_train__a_warm_up_that_the_run_does_not_leave_is_told(
    make_shards: MakeShards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    warmup: int,
    told: bool,
) -> None:
    recipe = small_recipe("train.steps=3", f"optim.warmup_steps={warmup}")
    train([make_shards()], recipe, tmp_path / "run", device="cpu")
    assert ("the full rate is never reached" in capsys.readouterr().err) == told


def test_train__a_set_that_lacks_files_is_told(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_shards()
    train([root], small_recipe("train.steps=1"), tmp_path / "unknown", device="cpu")
    record_contents(root)
    train([root], small_recipe("train.steps=1"), tmp_path / "whole", device="cpu")
    assert "missing" not in capsys.readouterr().err
    next(root.glob("part-*")).rename(tmp_path / "elsewhere")
    train([root], small_recipe("train.steps=1"), tmp_path / "lacking", device="cpu")
    assert f"{root}: files missing: 1; `pipeline verify` names them" in capsys.readouterr().err


def test_train__wrong_shards_leave_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a shard set"):
        train([tmp_path], small_recipe(), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_train__divergence_is_an_error_and_not_a_checkpoint(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    # The gradient is not looked at between records, but always before a checkpoint.
    settings = ("train.log_every=50", "train.checkpoint_every=7", "train.val_every=9")
    recipe = small_recipe(
        "train.steps=30", "optim.lr=1e30", "optim.clip=0", "optim.warmup=0", *settings
    )
    with pytest.raises(InputError, match=r"loss nan|loss inf|gradient norm"):
        train([make_shards()], recipe, tmp_path / "run", device="cpu")
    assert checkpoints(tmp_path / "run") == []


def test_train__no_validation_when_nothing_is_held_out(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    recipe = small_recipe("train.steps=2", "data.val_fraction=0")
    result = train([make_shards()], recipe, tmp_path / "run", device="cpu")
    assert result.validation == {}
    assert result.best_step == 0
    assert load_model(tmp_path / "run").step == 2


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli("trainer", monkeypatch, capsys)


def test_cli__run_prints_json(cli: Cli, make_shards: MakeShards, tmp_path: Path) -> None:
    settings = [word for option in [*SMALL, "train.steps=2"] for word in ("--set", option)]
    out = str(tmp_path / "run")
    done = cli("run", "--shards", str(make_shards()), "--out", out, "--json", *settings)
    assert done.code == 0, done.err
    value = json.loads(done.out)
    assert value["step"] == 2
    assert load_model(value["checkpoint"]).step == 2


def test_cli__interrupted_run_tells_how_to_go_on(
    cli: Cli, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [word for option in [*SMALL, "train.steps=12"] for word in ("--set", option)]
    out, root = str(tmp_path / "run"), str(make_shards())
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Loop", StopsAtNine)
        done = cli("run", "--shards", root, "--out", out, *settings)
    assert done.code == 130
    told = f"interrupted: saved at step 9; `trainer resume {out}` continues from there"
    assert done.err.splitlines()[-1] == told
    assert cli("resume", out).code == 0
    assert load_model(out).step == 12


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("Corpus", "nothing was written"),
        ("Loop", "`trainer resume {out}` continues from the newest checkpoint"),
    ],
)
def test_cli__interrupted_before_the_first_step(
    cli: Cli,
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    told: str,
) -> None:
    settings = [word for option in [*SMALL, "train.steps=2"] for word in ("--set", option)]
    out = tmp_path / "run"
    line = ["run", "--shards", str(make_shards()), "--out", str(out), *settings]
    with monkeypatch.context() as patch:
        patch.setattr(run_module, where, lambda *_, **__: signal.raise_signal(signal.SIGINT))
        done = cli(*line)
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1] == f"interrupted: {told.format(out=out)}"
    assert "Traceback" not in done.err
    again = line if where == "Corpus" else ["resume", str(out)]
    assert cli(*again).code == 0
    assert load_model(out).step == 2


def test_cli__run_says_how_large_its_checkpoints_get(
    cli: Cli, make_shards: MakeShards, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = ["train.steps=1", "ema.enabled=true", "data.n_points=128", "data.batch_size=16"]
    line = ["run", "--shards", str(make_shards()), "--out", str(out)]
    done = cli(*line, *[word for option in settings for word in ("--set", option)])
    found = re.search(r"checkpoints of about ([\d.]+) MB each, 2 and the best are kept", done.err)
    assert found is not None, done.err
    (newest,) = checkpoints(out)
    size = sum(file.stat().st_size for file in newest.iterdir())
    assert float(found[1]) * 1e6 == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--out", "{out}"], "--shards: none given"),
        (["run", "--out", "{out}", "--shards", "{tmp}"], "not a shard set"),
        (["run", "--out", "{out}", "--recipe", "tny"], "did you mean tiny?"),
        (["run", "--out", "{out}", "--set", "optim.rl=1"], "did you mean optim.lr?"),
        (["run", "--out", "{out}", "--device", "tpu"], "--device tpu: unknown"),
        (["run", "--out", "{tmp}", "--shards", "{tmp}"], "holds other files; choose another"),
        (["run", "--out", "{tmp}/a.txt", "--shards", "{tmp}"], "a.txt: a file; name a folder"),
        (["run", "--out", "{tmp}/a.txt/x", "--shards", "{tmp}"], "a.txt is a file, not a folder"),
        (
            ["run", "--out", "{out}", "--shards", "{tmp}", "--set", "model.backbone=pointnext-s"],
            "data.n_points: 1024 are fewer than the 2048 that pointnext-s takes",
        ),
        (
            ["run", "--out", "{out}", "--set", "model.options.neighbours=1025"],
            "data.n_points: 1024 are fewer than the 1025 that tiny takes",
        ),
        (["run", "--out", "{out}", "--set", "loss.align.logit_bias=nan"], "loss.align.logit_bias"),
        (["run", "--out", "{out}", "--set", f"train.seed={1 << 63}"], "train.seed"),
        (
            ["run", "--out", "{out}", "--set", "model.options.local_dims=[32.5,64]"],
            "model.options.local_dims: (32.5, 64) is not a tuple",
        ),
        (["resume", "{tmp}"], "no run to resume"),
        (["run", "--out", "{out}", "--workers", "0"], "give at least 1"),
        (["export", "{tmp}", "--out", "{out}"], "not a checkpoint"),
    ],
    ids=str,
)
def test_cli__wrong_option_is_one_line_and_exit_code_2(
    cli: Cli, arguments: list[str], message: str, tmp_path: Path
) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "a.txt").write_text("a")
    words = [word.format(out=tmp_path / "out", tmp=inputs) for word in arguments]
    done = cli(*words)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()
    assert len(done.err.strip().splitlines()) == 1
    assert done.out == ""
    assert not (tmp_path / "out").exists()


def test_import__is_light_and_free_of_ray() -> None:
    script = (
        "import sys, time; start = time.perf_counter(); import trainer, trainer.cli; "
        "print(time.perf_counter() - start); "
        "heavy = {'ray', 'torch', 'open_clip', 'trimesh', 'numba'} & set(sys.modules); "
        "import trainer.run, trainer.student, trainer.backbones.pointbert; "
        "banned = {'ray', 'open_clip', 'trimesh', 'numba', 'timm', 'torch._dynamo'}; "
        "banned &= set(sys.modules); "
        "print(sorted(heavy), sorted(banned))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    seconds, modules = done.stdout.strip().splitlines()
    assert float(seconds) < 3
    assert modules == "[] []"
