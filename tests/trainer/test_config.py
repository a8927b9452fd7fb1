from __future__ import annotations

import pytest

from pipeline.common import InputError
from trainer.recipe import load_recipe


def test_load_recipe__nothing_to_learn_is_an_error() -> None:
    off = ["loss.align.image_weight=0", "loss.align.text_weight=0", "loss.distill.enabled=false"]
    with pytest.raises(InputError, match="nothing to learn"):
        load_recipe("tiny", off)
    terms = [f"loss.distill.{name}=false" for name in ("intra_image", "intra_text", "cross")]
    with pytest.raises(InputError, match="all terms are off"):
        load_recipe("tiny", terms)

    halves = ["loss.distill.cross_text=false", "loss.distill.cross_image=false"]
    with pytest.raises(InputError, match="both off; set cross = false"):
        load_recipe("tiny", halves)


@pytest.mark.parametrize("kind", ["jeffreys", "kl", "reverse_kl"])
@pytest.mark.parametrize("representation", ["similarity", "distance"])
def test_load_recipe__divergence_of_what_is_no_distribution_names_the_pair(
    kind: str, representation: str
) -> None:
    pair = [f"loss.distill.discrepancy={kind}", f"loss.distill.representation={representation}"]
    with pytest.raises(InputError, match=f"{kind} needs .* not {representation}"):
        load_recipe("tiny", pair)
    for legal in ("l1", "l2", "huber"):
        load_recipe("tiny", [f"loss.distill.discrepancy={legal}", pair[1]])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss.distill.tau_min=0.2",), "tau_teacher_intra 0.1 is not between"),
        (("loss.distill.tau_max=0.05",), "tau_teacher_intra 0.1 is not between"),
        (
            ("loss.distill.representation=similarity", "loss.distill.discrepancy=l2"),
            "learn_tau student needs representation normalised_similarity: similarity has no",
        ),
    ],
)
def test_load_recipe__learned_temperatures_are_checked(
    overrides: tuple[str, ...], message: str
) -> None:
    load_recipe("tiny", ["loss.distill.learn_tau=student"])
    with pytest.raises(InputError, match=message):
        load_recipe("tiny", ["loss.distill.learn_tau=student", *overrides])


def test_load_recipe__a_rate_that_would_rise_names_both_ends() -> None:
    message = r"optim: min_lr 0\.003 is above lr 0\.0001, .*; lower min_lr too"
    with pytest.raises(InputError, match=message):
        load_recipe("mixcon3d", ["optim.lr=1e-4"])
    lowered = load_recipe("mixcon3d", ["optim.lr=1e-4", "optim.min_lr=1e-4"]).optim
    assert lowered.lr == lowered.min_lr


@pytest.mark.parametrize("kind", ["multi_positive", "siglip"])
def test_load_recipe__all_positives_are_legal_where_a_row_may_have_several(kind: str) -> None:
    every = ["data.image_sampling=all", "data.text_sampling=all"]
    assert load_recipe("tiny", [*every, f"loss.align.kind={kind}"]).data.text_sampling == "all"


def test_needs__follow_the_enabled_terms() -> None:
    image_only = [
        "loss.align.text_weight=0",
        "loss.distill.intra_text=false",
        "loss.distill.cross=false",
    ]
    loss = load_recipe("tiny", image_only).loss
    assert loss.needs_image
    assert not loss.needs_text
    loss = load_recipe("tiny", ["loss.align.image_weight=0", "loss.distill.enabled=false"]).loss
    assert not loss.needs_image
    assert loss.needs_text


def test_needs__joint_term_reads_both_and_is_something_to_learn() -> None:
    off = ["loss.align.image_weight=0", "loss.align.text_weight=0", "loss.distill.enabled=false"]
    joint = [*off, "loss.align.joint_weight=1"]
    loss = load_recipe("tiny", joint).loss
    assert loss.needs_image
    assert loss.needs_text
    assert load_recipe("tiny", [*joint, "loss.align.drop_same_category=true"]).loss.needs_category


def test_needs__follow_what_false_negatives_are_told_by() -> None:
    image_only = ["loss.align.text_weight=0", "loss.distill.enabled=false"]
    assert not load_recipe("tiny", image_only).loss.needs_text
    assert load_recipe("tiny", [*image_only, "loss.align.drop_same_text=true"]).loss.needs_text
    assert not load_recipe("tiny").loss.needs_category
    dropped = ["loss.align.drop_same_category=true"]
    assert load_recipe("tiny", dropped).loss.needs_category
    off = ["loss.align.image_weight=0", "loss.align.text_weight=0"]
    assert not load_recipe("tiny", [*dropped, *off]).loss.needs_category
