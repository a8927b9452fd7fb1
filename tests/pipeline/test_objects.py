from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cameras import direction, ring
from pipeline.datasets.base import Asset, Record
from pipeline.objects import (
    ObjectSettings,
    Processed,
    process,
    teacher_size,
)
from pipeline.pictures import decode_webp
from pipeline.renderers.base import RenderConfig
from pipeline.scene import Material, Mesh, MeshError
from pipeline.shards import NEUTRAL_RGB, Failure
from tests.pipeline.shard_tools import make_manifest


def tetrahedron(color: bool) -> Mesh:
    vertices = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32)
    faces = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], np.int32)
    material = Material(base_color=(1.0, 0.0, 0.0, 1.0))
    zeros = np.zeros(4, np.int32)
    return Mesh(vertices, faces, zeros, (material,), has_color=color).normalised()


@dataclass(frozen=True)
class Trouble:
    """A source whose keys say what goes wrong."""

    name: str = "trouble"

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def records(self) -> Iterator[Record]:
        raise NotImplementedError

    def count(self) -> int | None:
        return None

    def load(self, record: Record) -> Asset:
        mesh = tetrahedron(color=record.key != "plain")
        match record.key:
            case "crash":
                os._exit(7)
            case "hang":
                time.sleep(600)
            case "mesh":
                raise MeshError("no_faces", "the mesh has no faces")
            case "bug":
                raise KeyError("surprise")
            case "hungry":
                mesh = replace(mesh, vertices=np.ones((1 << 31, 3), np.float32))
            case "black":
                mesh = replace(mesh, materials=(Material(base_color=(0.0, 0.0, 0.0, 1.0)),))
            case "edge":  # a sheet that the thumbnail's camera sees from its edge
                eye = direction(math.radians(30), math.radians(25))
                across = np.cross(eye, [0.0, 1.0, 0.0])
                across /= np.linalg.norm(across)
                corners = np.stack([eye + across, eye - across, -eye - across, -eye + across])
                mesh = Mesh(
                    corners.astype(np.float32),
                    np.array([[0, 1, 2], [0, 2, 3]], np.int32),
                    np.zeros(2, np.int32),
                    mesh.materials,
                ).normalised()
            case "empty":
                clear = Material(base_color=(1.0, 1.0, 1.0, 0.0), alpha_mode="mask")
                mesh = replace(mesh, materials=(clear,))
        return Asset(mesh, "0" * 64, 10)


def record(key: str) -> Record:
    return Record(f"trouble/{key}", "trouble", key, key, "thing", None, (f"a {key}",), ("caption",))


@pytest.fixture(scope="module")
def settings() -> ObjectSettings:
    return ObjectSettings(Trouble(), ring(2), RenderConfig(image_size=32), n_points=256, n_fps=64)


def test_process__good_object_has_views_points_and_texts(settings: ObjectSettings) -> None:
    item = process(record("good"), settings)
    assert isinstance(item, Processed)
    assert {size: views.shape for size, views in item.images.items()} == {None: (2, 32, 32, 3)}
    assert item.thumbnail == {}
    assert item.kept is None
    assert item.xyz.shape == (256, 3)
    assert item.texts == ("a good",)
    assert item.has_color
    assert (item.rgb == [255, 0, 0]).all()


def test_process__views_come_at_the_size_of_every_teacher(settings: ObjectSettings) -> None:
    sizes = ((16, "bicubic"), (24, "bilinear"), (64, "bicubic"))
    several = replace(settings, encode_sizes=sizes, thumbnail=True)
    item, plain = process(record("good"), several), process(record("good"), settings)
    assert isinstance(item, Processed)
    assert isinstance(plain, Processed)
    assert [item.images[size].shape[1] for size in sizes] == [16, 24, 32]
    assert [item.thumbnail[size].shape for size in sizes] == [(16,) * 2 + (3,), (24, 24, 3)] + [
        (32, 32, 3)
    ]
    # The views are those of a run for one teacher, resized as open_clip does it.
    assert np.array_equal(item.images[64, "bicubic"], plain.images[None])
    view = Image.fromarray(plain.images[None][1])
    expected = view.resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(item.images[16, "bicubic"][1], np.asarray(expected))


def test_process__thumbnail_fills_the_frame(settings: ObjectSettings) -> None:
    item = process(record("good"), replace(settings, thumbnail=True))
    assert isinstance(item, Processed)

    def extent(view: np.ndarray) -> int:
        rows, columns = np.nonzero((view < 250).any(-1))
        return max(int(np.ptp(rows)), int(np.ptp(columns)))

    assert extent(item.thumbnail[None]) >= 29
    assert extent(item.thumbnail[None]) > max(extent(view) for view in item.images[None])


def test_process__kept_pictures_are_those_rendered(settings: ObjectSettings) -> None:
    keep = replace(
        settings, encode_sizes=((16, "bicubic"),), thumbnail=True, keep_images="webp-lossless"
    )
    item, plain = process(record("good"), keep), process(record("good"), settings)
    assert isinstance(item, Processed)
    assert isinstance(plain, Processed)
    assert item.kept is not None
    assert item.kept.uid == "trouble/good"
    views = np.stack([decode_webp(data) for data in item.kept.views])
    assert np.array_equal(views, plain.images[None])  # at the render's size, not the teacher's
    assert item.kept.thumbnail is not None
    assert decode_webp(item.kept.thumbnail).shape == (32, 32, 3)
    assert item.seconds["keep"] > 0


def test_process__thumbnail_that_shows_nothing_is_left_out(settings: ObjectSettings) -> None:
    keep = replace(settings, thumbnail=True, keep_images="webp-90")
    item = process(record("edge"), keep)
    assert isinstance(item, Processed)
    assert item.thumbnail == {}
    assert item.kept is not None
    assert len(item.kept.views) == 2
    assert item.kept.thumbnail is None


def test_process__object_like_the_background_is_a_failure_that_says_so(
    settings: ObjectSettings,
) -> None:
    black = replace(settings, render=RenderConfig(image_size=32, background=(0, 0, 0)))
    item = process(record("black"), black)
    assert isinstance(item, Failure)
    assert item.error == "blank_render"
    assert "distinguished from the background #000000" in item.message
    assert isinstance(process(record("black"), settings), Processed)


def test_process__blank_views_are_a_failure_even_with_a_thumbnail(
    settings: ObjectSettings,
) -> None:
    sheet = replace(settings, cameras=settings.cameras, thumbnail=True)
    assert isinstance(process(record("empty"), sheet), Failure)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"preprocess_cfg": {"size": [224, 224], "interpolation": "bilinear"}}, (224, "bilinear")),
        ({"preprocess_cfg": {"size": 96}}, (96, "bicubic")),
        ({"preprocess_cfg": {"size": 96, "interpolation": "random"}}, None),
        ({}, None),
    ],
)
def test_teacher_size__as_the_teacher_tells_it(config: dict[str, Any], expected: object) -> None:
    assert teacher_size(replace(make_manifest().teacher, config=config)) == expected


def test_process__colourless_object_gets_the_neutral_grey(settings: ObjectSettings) -> None:
    item = process(record("plain"), settings)
    assert isinstance(item, Processed)
    assert not item.has_color
    assert (item.rgb == NEUTRAL_RGB).all()


def test_process__same_object_twice_is_the_same_to_the_byte(settings: ObjectSettings) -> None:
    first, second = process(record("good"), settings), process(record("good"), settings)
    assert isinstance(first, Processed)
    assert isinstance(second, Processed)
    assert first.images[None].tobytes() == second.images[None].tobytes()
    assert first.xyz.tobytes() == second.xyz.tobytes()


@pytest.mark.parametrize(
    ("key", "stage", "error"),
    [
        ("mesh", "load", "no_faces"),
        ("bug", "load", "KeyError"),
        ("empty", "render", "blank_render"),
    ],
)
def test_process__bad_object_is_a_failure(
    settings: ObjectSettings, key: str, stage: str, error: str
) -> None:
    item = process(record(key), settings)
    assert isinstance(item, Failure)
    assert (item.uid, item.stage, item.error) == (f"trouble/{key}", stage, error)
    assert item.message
