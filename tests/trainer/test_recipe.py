from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.common import InputError
from trainer.recipe import flatten, known_keys, load_recipe, parse_recipe


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("loss.distill.enabled=false", "loss.distill.enabled", False),
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("loss.distill.discrepancy=kl", "loss.distill.discrepancy", "kl"),
        ('loss.distill.discrepancy="kl"', "loss.distill.discrepancy", "kl"),
        ("augment.scale=[0.5, 2.0]", "augment.scale", [0.5, 2.0]),
        ("train.steps = 7", "train.steps", 7),
        ("model.options.depth=2", "model.options", {"depth": 2}),
    ],
)
def test_load_recipe__override_is_a_toml_value(override: str, key: str, value: object) -> None:
    assert flatten(load_recipe("tiny", [override]))[key] == value


def test_load_recipe__last_override_wins() -> None:
    assert load_recipe("tiny", ["optim.lr=1", "optim.lr=2"]).optim.lr == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.distil.enabled=false", "unknown key loss.distil, did you mean loss.distill"),
        ("loss.distill.enable=false", "did you mean loss.distill.enabled?"),
        ("optim.learning_rate=1", "unknown key optim.learning_rate"),
        ("lr=1", "did you mean optim.lr?"),
        ("optim.lr=fast", "optim.lr: input should be a valid number.*'fast'"),
        ("optim.lr=-1", "optim.lr: input should be greater than 0"),
        ("loss.distill.discrepancy=jefreys", "discrepancy: input should be 'jeffreys'"),
        ("optim.lr", "not of the form key=value"),
        ("optim.lr.x=1", "lr is a value, not a section"),
        (
            "loss.distill.representation=distance",
            "jeffreys needs representation normalised_similarity, not distance; use l1, l2 or",
        ),
        ("data.image_sampling=all", "image_sampling all needs loss.align.kind multi_positive"),
        ("data.text_sampling=all", "text_sampling all needs loss.align.kind multi_positive"),
        ("data.image_views=4", "data.image_views needs data.image_sampling mean or all"),
        ("loss.align.joint_weight=-1", "joint_weight: input should be greater than or equal"),
        ("loss.align.kind=sigclip", "kind: input should be 'infonce', 'siglip'"),
        ("loss.align.knd=siglip", "did you mean loss.align.kind?"),
        ("loss.align.logit_scale=0.5", "greater than or equal to 1"),
        ("loss.align.drop_image_above=1.5", "less than or equal to 1"),
        ("augment.scale=[2.0, 1.0]", "smaller first; correct it in the recipe or with --set$"),
        ("augment.scale=2", r"\(got 2\); .* --set 'augment\.scale=\[0\.8, 1\.25\]'$"),
        ("data.splits=train", r"\(got 'train'\); .* --set 'data\.splits=\[\"train\"\]'$"),
        ("data.weights=2", r"\(got 2\); .* --set 'data\.weights=\[2\]'$"),
    ],
)
def test_load_recipe__wrong_override_is_one_line_with_a_hint(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe("tiny", [override])
    assert "\n" not in str(caught.value)


def test_load_recipe__unknown_name_is_suggested() -> None:
    with pytest.raises(InputError, match="did you mean mrd-pointbert-32m"):
        load_recipe("mrd-pointbert32m")


def test_load_recipe__file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[optim]\nlr = 0.25\n")
    assert load_recipe(str(file)).optim.lr == 0.25
    file.write_text("[optim\n")
    with pytest.raises(InputError, match=r"mine\.toml: not TOML"):
        load_recipe(str(file))
    with pytest.raises(InputError, match="no such file"):
        load_recipe(str(tmp_path / "other.toml"))


def test_recipe__survives_its_own_dump() -> None:
    recipe = load_recipe("mrd-pointbert-72m")
    assert parse_recipe(recipe.model_dump(mode="json"), "dump") == recipe
    assert set(flatten(recipe)) == set(known_keys())
