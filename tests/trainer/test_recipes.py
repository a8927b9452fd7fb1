"""The recipes that come with the package: all resolve and build, one of each family trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.common import InputError
from tests.trainer.conftest import MakeShards
from trainer.backbones.measure import measure, on_meta
from trainer.optim import build_optimizer
from trainer.recipe import RECIPES, TWIN, flatten, load_about, load_recipe, recipe_names
from trainer.run import train

POINTBERT = ("5m", "13m", "26m", "32m", "72m")
UNI3D = ("ti", "s", "b", "l", "g")
DISTILLING = [*(f"pointbert-{s}" for s in POINTBERT), *(f"uni3d-{s}" for s in UNI3D)]
# Other ways to align, and what each has that the twin has not.
BASELINES: dict[str, set[str]] = {
    "infonce-masked": {"drop_same_text", "drop_image_above", "drop_text_above"},
    "siglip": {"kind", "logit_scale"},
    "multi-positive": {"kind"},
}
SHAPES = 876_000  # of OpenShape's set


def test_recipes__are_those_that_are_promised() -> None:
    small = {"tiny", "align-tiny", "names", "align-names"}
    published = {"openshape", "uni3d", "mixcon3d"}
    mrd = {f"mrd-{name}" for name in DISTILLING}
    twins = {f"align-{name}" for name in DISTILLING}
    assert set(recipe_names()) == small | published | mrd | twins | set(BASELINES)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe__builds_and_tells_data_gpus_and_hours(name: str) -> None:
    recipe, about = load_recipe(name), load_about(name)
    model = on_meta(recipe.model.backbone, 1280, recipe.model.options)
    build_optimizer(model, recipe.optim)
    assert recipe.data.n_points >= model.centroids
    assert about.hours > 0
    assert about.title
    assert len(about.data) > 20
    assert len(about.basis) > 20
    assert (about.gpus > 0) == bool(about.gpu)
    if name.startswith("mrd-") or name in ("tiny", "names"):
        assert recipe.loss.distill.enabled
    else:
        assert not recipe.loss.distill.enabled


@pytest.mark.parametrize("name", [*DISTILLING, "tiny"])
def test_twin__differs_in_the_distillation_alone(name: str) -> None:
    ours = flatten(load_recipe(name if name == "tiny" else f"mrd-{name}"))
    twin = flatten(load_recipe(f"{TWIN}{name}"))
    assert {key for key in ours if ours[key] != twin[key]} == {"loss.distill.enabled"}


@pytest.mark.parametrize("name", list(BASELINES))
def test_baseline__differs_from_the_twin_in_the_alignment_alone(name: str) -> None:
    ours, twin = flatten(load_recipe(name)), flatten(load_recipe("align-pointbert-32m"))
    changed = {key for key in ours if ours[key] != twin[key]}
    sampling = {"data.image_sampling", "data.text_sampling"}
    expected = {f"loss.align.{key}" for key in BASELINES[name]}
    assert changed == expected | (sampling if name == "multi-positive" else set())


PEAK = {"bf16": 312e12, "fp32": 19.5e12}  # of an A100, FLOP/s
READ = 5000  # shapes/s of one GPU that reading them is taken to allow


@pytest.mark.parametrize("name", [n for n in recipe_names() if not n.startswith(TWIN)])
def test_hours__follow_from_their_basis(name: str) -> None:
    recipe, about = load_recipe(name), load_about(name)
    found = re.search(r"at (\d+) % of the A100's (\w+) peak", about.basis)
    if found is None:
        assert about.basis.startswith(("published", "measured"))
        return
    share, precision = int(found[1]) / 100, found[2]
    assert recipe.train.precision in (precision, "auto" if precision == "bf16" else precision)
    model = recipe.model
    flop = 3e9 * measure(model.backbone, model.options, training=True)["gflop"]
    rate = share * PEAK[precision] / flop
    if f"{READ:,} shapes/s" in about.basis:
        rate = min(rate, READ)
    seconds = SHAPES * recipe.train.epochs / (rate * about.gpus)
    assert about.hours == pytest.approx(seconds / 3600, rel=0.02)


# Augmentation of OpenShape; Uni3D leaves the dropout of points out.
AUGMENT = {
    "augment.drop_color": 0.5, "augment.scale": [0.8, 1.25], "augment.shift": 0.1,
    "augment.rotate_sigma": 0.06, "augment.rotate_clip": 0.18, "augment.yaw": True,
    "data.n_points": 10_000, "data.text_sampling": "source",
}  # fmt: skip
ADAM = {"optim.beta1": 0.9, "optim.beta2": 0.999, "optim.eps": 1e-8}
PUBLISHED: dict[str, dict[str, Any]] = {
    "openshape": {
        **AUGMENT, **ADAM, "augment.drop_points": 0.875, "train.precision": "fp32",
        "model.backbone": "pointbert-32m", "data.batch_size": 200, "optim.lr": 5e-4,
        "optim.schedule": "step", "optim.decay_every": 10_000, "optim.decay_rate": 0.967,
        "optim.weight_decay": 0.01, "optim.clip": 0.0, "ema.enabled": False,
        "loss.align.kind": "infonce", "loss.align.logit_scale": 1 / 0.07,
        "loss.align.shared_scale": True, "loss.align.image_weight": 1.0,
        "loss.align.text_weight": 1.0, "data.image_sampling": "one", "data.thumbnail": 0.5,
        "optim.warmup": 0.0, "optim.warmup_steps": 0, "train.epochs": 1000,
    },
    "uni3d": {
        **AUGMENT, **ADAM, "augment.drop_points": 0.0, "data.thumbnail": 0.0,
        "model.backbone": "uni3d-g", "data.batch_size": 1152, "optim.lr": 1e-3,
        "optim.schedule": "cosine", "optim.warmup_steps": 10_000, "optim.weight_decay": 0.1,
        "optim.layer_decay": 0.95, "optim.clip": 5.0, "train.epochs": 200, "optim.min_lr": 0.0,
        "model.options": {"patch_dropout": 0.5, "drop_path": 0.2}, "ema.enabled": False,
        "loss.align.kind": "infonce", "loss.align.logit_scale": 1 / 0.07,
        "loss.align.shared_scale": True,
    },
    "mixcon3d": {
        **AUGMENT, **ADAM, "augment.drop_points": 0.875, "train.precision": "fp32",
        "model.backbone": "pointbert-26m", "data.batch_size": 2048, "optim.lr": 6e-3,
        "optim.min_lr": 3e-3, "optim.schedule": "cosine", "optim.warmup": 0.05,
        "optim.weight_decay": 0.01, "train.epochs": 200, "ema.enabled": True, "ema.decay": 0.9995,
        "loss.align.shared_scale": False, "loss.align.joint_weight": 1.0,
        "data.image_sampling": "mean", "data.image_views": 4, "data.thumbnail": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_recipe__of_a_publication_holds_its_numbers(name: str) -> None:
    values = flatten(load_recipe(name))
    assert {key: values[key] for key in PUBLISHED[name]} == PUBLISHED[name]


REDUCED = [
    "data.n_points=128", "data.batch_size=16", "data.val_fraction=0.2", "data.shuffle_groups=2",
    "model.options.centroids=16", "model.options.neighbours=8", "train.log_every=1",
    "train.steps=2", "train.epochs=1",
]  # fmt: skip
POINTBERT_SMALL = [f"model.options.{key}" for key in ("dim=32", "depth=1", "heads=1", "mlp_dim=32")]
UNI3D_SMALL = ["model.backbone=uni3d-ti", "model.options.depth=2", "model.options.local_dim=16"]
FAMILIES = {
    "mrd-pointbert-32m": POINTBERT_SMALL,
    "align-pointbert-72m": [*POINTBERT_SMALL, "train.micro_batch=4"],
    "mrd-uni3d-g": UNI3D_SMALL,
    "uni3d": UNI3D_SMALL,
    "openshape": POINTBERT_SMALL,
    "mixcon3d": POINTBERT_SMALL,
    "infonce-masked": POINTBERT_SMALL,
    "siglip": POINTBERT_SMALL,
    "multi-positive": POINTBERT_SMALL,
    "tiny": ["model.backbone=pointnext-s", "model.options.strides=[2]"],
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_recipe__trains_at_reduced_size(name: str, make_shards: MakeShards, tmp_path: Path) -> None:
    recipe = load_recipe(name, [*REDUCED, *FAMILIES[name]])
    result = train([make_shards(count=48)], recipe, tmp_path / "run", device="cpu")
    assert result.step == 2
    assert result.checkpoint.is_dir()


def test_extends__own_file_builds_on_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "tiny"\n[optim]\nlr = 0.5\nclip = 1.0\n')
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\n[optim]\nlr = 0.25\n')
    recipe = load_recipe(str(tmp_path / "mine.toml"), ["optim.eps=1e-3"])
    assert (recipe.optim.lr, recipe.optim.clip, recipe.optim.eps) == (0.25, 1.0, 1e-3)
    assert recipe.model == load_recipe("tiny").model


def test_extends__circle_unknown_parent_and_wrong_about_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n')
    with pytest.raises(InputError, match="extends itself"):
        load_recipe(str(tmp_path / "a.toml"))
    (tmp_path / "c.toml").write_text('extends = "mrd-pointbert-33m"\n')
    with pytest.raises(InputError, match=r"c\.toml: extends .* did you mean mrd-pointbert-"):
        load_recipe(str(tmp_path / "c.toml"))
    (tmp_path / "d.toml").write_text("extends = 3\n")
    with pytest.raises(InputError, match="not the name of a recipe"):
        load_recipe(str(tmp_path / "d.toml"))
    (tmp_path / "e.toml").write_text('extends = "tiny"\n[about]\nhors = 3\n')
    assert load_recipe(str(tmp_path / "e.toml")).model.backbone == "tiny"
    with pytest.raises(InputError, match="hors"):
        load_about(str(tmp_path / "e.toml"))


def test_files__hold_what_differs_only() -> None:
    # A size that repeats what it extends would not follow when that changes.
    for name in DISTILLING:
        if not name.endswith(("-32m", "-b")):
            assert len((RECIPES / f"mrd-{name}.toml").read_text().splitlines()) < 15
