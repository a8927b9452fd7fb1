"""Runs that begin with trained weights."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.common import InputError
from tests.trainer import reference
from tests.trainer.conftest import MakeShards, small_recipe
from trainer.backbones import build_backbone
from trainer.checkpoint import WEIGHTS, load_model
from trainer.initial import begin, pinned
from trainer.recipe import load_recipe
from trainer.run import RunResult, train


def make_run(make_shards: MakeShards, out: Path, *overrides: str) -> RunResult:
    recipe = small_recipe("train.steps=2", *overrides)
    return train([make_shards()], recipe, out, device="cpu")


def test_train__a_rate_of_next_to_nothing_leaves_the_weights_it_begins_with(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_run(make_shards, tmp_path / "first")
    for name, init in (("on", f"model.init={tmp_path / 'first'}"), ("scratch", "model.init=")):
        make_run(make_shards, tmp_path / name, init, "optim.lr=1e-12", "train.seed=7")
    expected = load_model(first.checkpoint).backbone.state_dict()
    on, scratch = (
        load_file(RunResult.of(tmp_path / n).checkpoint / WEIGHTS) for n in ("on", "scratch")
    )
    for key, value in expected.items():
        torch.testing.assert_close(on[key], value, rtol=1e-6, atol=1e-8)
    assert any(not torch.allclose(scratch[key], value) for key, value in expected.items())
    told = capsys.readouterr().err
    assert told.count("begins with the weights of") == 1
    assert "another teacher" not in told
    card = (tmp_path / "on/README.md").read_text()
    assert "starting from the weights of" in card


def test_resume__needs_the_first_weights_until_there_is_a_checkpoint(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    make_run(make_shards, tmp_path / "first")
    make_run(make_shards, tmp_path / "on", f"model.init={tmp_path / 'first'}")
    shutil.rmtree(tmp_path / "first")
    assert train([], None, tmp_path / "on", resume=True, device="cpu").step == 2
    shutil.rmtree(tmp_path / "on/checkpoints")
    with pytest.raises(InputError, match=r"^model\.init: .*first: no such folder"):
        train([], None, tmp_path / "on", resume=True, device="cpu")


def test_train__a_relative_source_is_found_from_other_folders(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(make_shards, tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    make_run(make_shards, tmp_path / "on", "model.init=first")
    shutil.rmtree(tmp_path / "on/checkpoints")  # as if it had been killed before the first
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train([], None, tmp_path / "on", resume=True, device="cpu").step == 2


def test_pinned__names_the_weights_and_the_checkpoint_that_has_them(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_run(make_shards, tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    model, weights = pinned(small_recipe("model.init=first").model)
    assert (Path(model.init), weights) == (first.checkpoint, load_model(first.checkpoint).hash)
    assert pinned(model) == (model, weights)
    assert pinned(small_recipe().model) == (small_recipe().model, "")
    demo, known = pinned(small_recipe("model.init=demo").model)
    assert (demo.init, known) == ("demo", load_model("demo").hash)
    Path("trunk.safetensors").write_bytes(b"some weights")
    model, weights = pinned(small_recipe("model.trunk=trunk.safetensors").model)
    assert model.trunk == str(tmp_path / "trunk.safetensors")
    assert weights == hashlib.sha256(b"some weights").hexdigest()
    for missing in ("model.init=nowhere", "model.trunk=nowhere"):
        with pytest.raises(InputError, match="nowhere: no such"):
            pinned(small_recipe(missing).model)


def test_begin__dropout_of_the_head_may_be_chosen_anew(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    sizes = [f"model.options.{o}" for o in ("stem_dim=8", "centroids=32", "head_dim=16")]
    recipe = load_recipe(
        "tiny",
        [
            *("data.n_points=128", "data.batch_size=16", "train.steps=1"),
            *("model.backbone=pointnext-s", *sizes),
        ],
    )
    first = train([make_shards()], recipe, tmp_path / "first", device="cpu")
    anew = {**recipe.model.options, "head_dropout": 0.1}
    model = recipe.model.model_copy(update={"init": str(first.run), "options": anew})
    width = load_model(first.run).backbone.width
    assert begin(build_backbone(model.backbone, width, anew), model) is not None


def test_begin__other_backbone_options_or_width_name_the_remedy(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    run = make_run(make_shards, tmp_path / "first", "model.options.grouping=ball")
    loaded = load_model(run.checkpoint)
    model = small_recipe(f"model.init={tmp_path / 'first'}").model
    own = build_backbone(model.backbone, loaded.backbone.width, model.options)
    with pytest.raises(InputError, match=r"options differ .*--set model\.options\.grouping=ball$"):
        begin(own, model)
    with pytest.raises(InputError, match=r"a tiny, the recipe has pointbert-5m; --set model\.back"):
        begin(own, model.model_copy(update={"backbone": "pointbert-5m"}))
    # As the message says; what only training knows may differ.
    same = small_recipe(
        f"model.init={tmp_path / 'first'}",
        "model.options.grouping=ball",
        "model.options.drop_path=0.1",
    ).model
    assert begin(build_backbone(same.backbone, own.width, same.options), same) == loaded.teacher
    wide = build_backbone(same.backbone, own.width + 1, same.options)
    with pytest.raises(InputError, match=r"embeddings of .* numbers, those of the shards"):
        begin(wide, same)


def test_train__weights_of_another_teacher_are_told(
    make_shards: MakeShards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trainer import task as task_module

    make_run(make_shards, tmp_path / "first")

    def of_another(*given: object) -> object:
        teacher = begin(*given)  # type: ignore[arg-type]
        assert teacher is not None
        return replace(teacher, fingerprint_text=[-x for x in teacher.fingerprint_text])

    monkeypatch.setattr(task_module, "begin", of_another)
    make_run(make_shards, tmp_path / "on", f"model.init={tmp_path / 'first'}")
    assert "trained on another teacher than the shards' (" in capsys.readouterr().err


def test_load_recipe__two_beginnings_are_refused() -> None:
    with pytest.raises(InputError, match="leave out one of the two"):
        load_recipe("mrd-uni3d-ti", ["model.init=a", "model.trunk=b"])


def test_begin__a_released_file_once_the_recipe_has_its_options(tmp_path: Path) -> None:
    state = reference.openshape_state(dim=256, depth=6, mlp=1024, local=96, width=1280)
    file = tmp_path / "model.safetensors"
    save_file({f"module.{key}": value for key, value in state.items()}, file)
    wanted = [f"model.init={file}", "model.backbone=pointbert-5m"]
    model = load_recipe("tiny", wanted).model
    with pytest.raises(InputError, match=r"options differ from the recipe; --set ") as caught:
        begin(build_backbone(model.backbone, 1280, model.options), model)
    changes = str(caught.value).partition("; ")[2].replace("--set ", "").split()
    same = load_recipe("tiny", [*wanted, *changes]).model  # as the message says
    backbone = build_backbone(same.backbone, 1280, same.options)
    assert begin(backbone, same) == load_model(file).teacher
    expected = load_model(file).backbone.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in backbone.state_dict().items())
