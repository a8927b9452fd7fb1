"""The release's objects as rows, and the import as a run that can be broken off and resumed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.imports.openshape import ObjectRules, make_manifest, make_row, released_teacher
from pipeline.scene import MeshError
from pipeline.shards import NEUTRAL_RGB, Row
from tests.pipeline.imports.release import (
    ARCHIVES,
    POINTS,
    VIEWS,
    WIDTH,
    make_object,
    npy,
    small_teacher,
)

__all__ = ["small_teacher"]
pytestmark = pytest.mark.usefixtures("small_teacher")
EVERY = [place for places in ARCHIVES.values() for place in places]


def rules(**changes: Any) -> ObjectRules:
    manifest = make_manifest({}, changes.pop("n_points", 64), VIEWS)
    return ObjectRules(
        manifest=changes.pop("manifest", manifest),
        up_axis=changes.pop("up_axis", "+y"),
        categories=changes.pop("categories", {}),
        without_raw_text=frozenset(changes.pop("without_raw_text", ())),
        holdout_lvis=changes.pop("holdout_lvis", False),
        only_lvis=False,
        **changes,
    )


def row_of(place: str, value: Any = None, **changes: Any) -> Row:
    data = npy(make_object(place) if value is None else value)
    return make_row(data, tuple(place.split("/")), rules(**changes))


def unit(values: Any) -> np.ndarray[Any, Any]:
    flat = np.asarray(values, np.float64).reshape(-1, WIDTH)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))


def test_make_row__every_text_with_its_released_feature() -> None:
    place = "Objaverse/000-000/1"
    value = make_object(place)
    row = row_of(place)
    assert row.uid == "objaverse/1"
    assert row.source == "Objaverse/000-000/1.npy"
    assert row.texts == ["thing 1", "a thing called 1", "the thing 1", "found one", "found two"]
    assert row.text_sources == ["name", "caption", "caption", "retrieved", "retrieved"]
    expected = [
        value["text_feat"][0]["prompt_avg"],
        value["blip_caption_feat"]["prompt_avg"],
        value["msft_caption_feat"]["prompt_avg"],
        value["retrieval_text_feat"][0]["original"],
        value["retrieval_text_feat"][1]["original"],
    ]
    np.testing.assert_allclose(row.text_embeds, unit(expected), atol=1e-6)
    np.testing.assert_allclose(row.image_embeds, unit(value["image_feat"]), atol=1e-6)
    assert row.thumbnail_embed is not None
    np.testing.assert_allclose(row.thumbnail_embed, unit(value["thumbnail_feat"])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("place", "uid"),
    [
        ("Objaverse/000-001/ab", "objaverse/ab"),
        ("ShapeNet/02691156/ab", "shapenet/02691156/ab"),
        ("3D-FUTURE/ab", "3d-future/ab"),
        ("ABO/ab", "abo/ab"),
    ],
)
def test_make_row__uids_are_those_of_the_sources(place: str, uid: str) -> None:
    row = row_of(place)
    assert (row.uid, row.dataset) == (uid, place.split("/")[0].lower())
    assert (row.thumbnail_embed is None) == (not place.startswith("Objaverse"))


def test_make_row__cloud_in_the_frame_of_the_house() -> None:
    place = "Objaverse/000-000/1"
    value = make_object(place)
    row = row_of(place, n_points=POINTS)
    xyz = np.asarray(value["xyz"])
    centred = xyz - (xyz.min(0) + xyz.max(0)) / 2
    expected = centred / np.linalg.norm(centred, axis=1).max()
    # Each point keeps its colour, whatever its place in the order.
    colored = np.concatenate([expected, np.rint(value["rgb"] * 255)], 1)
    got = np.concatenate([row.xyz, row.rgb], 1)
    np.testing.assert_allclose(got[np.lexsort(got.T)], colored[np.lexsort(colored.T)], atol=1e-6)
    assert row.has_color
    # Greedy farthest points: each is the farthest from those before it.
    for count in range(1, 20):
        distance = np.linalg.norm(row.xyz[:, None] - row.xyz[None, :count], axis=2).min(1)
        assert distance[count] == pytest.approx(distance.max(), abs=1e-6)


def test_make_row__up_axis_is_a_proper_rotation() -> None:
    place = "Objaverse/000-000/1"
    y_up, z_up = row_of(place, n_points=POINTS), row_of(place, n_points=POINTS, up_axis="+z")

    def ordered(row: Row) -> np.ndarray[Any, Any]:
        return np.asarray(row.xyz)[np.lexsort(np.asarray(row.rgb).T)]

    turn, *_ = np.linalg.lstsq(ordered(y_up), ordered(z_up), rcond=None)
    assert np.linalg.det(turn) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(np.array([0, 0, 1]) @ turn, [0, 1, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        (None, None),
        (np.full((POINTS, 3), 0.4), None),
        (np.full((POINTS, 3), 100.0), None),
        (np.full((POINTS, 3), [1.0, 0.0, 0.2]), (255, 0, 51)),
        (np.full((POINTS, 3), [200.0, 0.0, 51.0]), (200, 0, 51)),
        (np.full((POINTS, 3), [200, 0, 51], np.uint8), (200, 0, 51)),
    ],
)
def test_make_row__colours(rgb: Any, expected: tuple[int, int, int] | None) -> None:
    row = row_of("ABO/1", make_object("ABO/1", rgb=rgb))
    assert row.has_color == (expected is not None)
    assert (row.rgb == (NEUTRAL_RGB if expected is None else expected)).all()


def test_make_row__raw_text_marked_n_and_blank_texts_are_left_out() -> None:
    place = "Objaverse/000-000/1"
    assert row_of(place, without_raw_text=["1"]).text_sources[0] == "caption"
    assert row_of("ABO/1", without_raw_text=["1"]).text_sources[0] == "name"
    bare = make_object(
        place, text=[" "], blip_caption="", blip_caption_feat=[], msft_caption=None,
        retrieval_text=[], retrieval_text_feat=[],
    )  # fmt: skip
    del bare["msft_caption_feat"]
    row = row_of(place, bare)
    assert row.texts == []
    assert row.text_embeds.shape == (0, WIDTH)


def test_make_row__features_in_object_arrays_and_flat_are_read() -> None:
    place = "ABO/1"
    value = make_object(place)
    flat = {k: v[0] for k, v in value["blip_caption_feat"].items()}
    wrapped = {
        **value,
        "blip_caption_feat": np.array(flat, object),
        "msft_caption_feat": [value["msft_caption_feat"]],
        "text": np.array(value["text"]),
        "text_feat": np.array(value["text_feat"], object),
    }
    np.testing.assert_array_equal(row_of(place, wrapped).text_embeds, row_of(place).text_embeds)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "zero text": ({"blip_caption_feat": {"prompt_avg": np.zeros((1, WIDTH))}}, "bad_embedding"),
    "nan image": ({"image_feat": np.full((VIEWS, WIDTH), np.nan, "f4")}, "bad_embedding"),
    "inf thumbnail": ({"thumbnail_feat": np.full((1, WIDTH), np.inf, "f4")}, "bad_embedding"),
    "no image": ({"image_feat": None}, "wrong_shape"),
    "few views": ({"image_feat": np.ones((VIEWS - 1, WIDTH), "f4")}, "wrong_shape"),
    "narrow text": ({"msft_caption_feat": {"prompt_avg": np.ones((1, 3))}}, "wrong_shape"),
    "no prompt_avg": ({"msft_caption_feat": {"original": np.ones((1, WIDTH))}}, "wrong_shape"),
    "text without feature": ({"text": ["a", "b"]}, "wrong_shape"),
    "feature of text": ({"image_feat": np.array([["a"] * WIDTH] * VIEWS)}, "wrong_shape"),
    "no xyz": ({"xyz": None}, "wrong_shape"),
    "flat xyz": ({"xyz": np.zeros(30)}, "wrong_shape"),
    "few points": ({"xyz": np.eye(3), "rgb": None}, "too_few_points"),
    "one point": ({"xyz": np.ones((90, 3)), "rgb": None}, "too_few_points"),
    "nan xyz": ({"xyz": np.full((90, 3), np.nan), "rgb": None}, "not_finite"),
    "rgb of others": ({"rgb": np.ones((3, 3))}, "wrong_shape"),
    "rgb negative": ({"rgb": np.full((POINTS, 3), -3.0)}, "bad_color"),
    "rgb nan": ({"rgb": np.full((POINTS, 3), np.nan)}, "bad_color"),
}


@pytest.mark.parametrize("case", BAD)
def test_make_row__bad_objects_are_refused_with_a_kind(case: str) -> None:
    changes, kind = BAD[case]
    with pytest.raises(MeshError) as caught:
        row_of("Objaverse/000-000/1", make_object("Objaverse/000-000/1", **changes))
    assert caught.value.kind == kind


def test_make_row__fewer_points_than_wanted_are_repeated() -> None:
    row = row_of("ABO/1", n_points=3 * POINTS)
    assert len(row.xyz) == 3 * POINTS
    assert len(np.unique(row.xyz, axis=0)) == POINTS


def test_released_teacher__is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    teacher = released_teacher()
    assert (teacher.model, teacher.pretrained, teacher.width) == (
        "ViT-bigG-14",
        "laion2b_s39b_b160k",
        1280,
    )
    assert not teacher.has_fingerprint
    assert teacher.config["model_cfg"]["embed_dim"] == 1280
