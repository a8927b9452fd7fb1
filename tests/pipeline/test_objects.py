from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cameras import ring
from pipeline.datasets.base import Asset, Record
from pipeline.objects import IsolatedProcessor, ObjectSettings, Processed, process, resized
from pipeline.renderers.base import RenderConfig
from pipeline.scene import Material, Mesh, MeshError
from pipeline.shards import NEUTRAL_RGB, Failure


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
    assert item.images.shape == (2, 32, 32, 3)
    assert item.xyz.shape == (256, 3)
    assert item.texts == ("a good",)
    assert item.has_color
    assert (item.rgb == [255, 0, 0]).all()


def test_resized__as_open_clip_does_it_and_never_larger() -> None:
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    smaller = resized(views, (24, "bicubic"))
    expected = Image.fromarray(views[1]).resize((24, 24), Image.Resampling.BICUBIC)
    assert np.array_equal(smaller[1], np.asarray(expected))
    assert resized(views, (64, "bicubic")).shape == views.shape
    assert resized(views, None).shape == views.shape


def test_process__colourless_object_gets_the_neutral_grey(settings: ObjectSettings) -> None:
    item = process(record("plain"), settings)
    assert isinstance(item, Processed)
    assert not item.has_color
    assert (item.rgb == NEUTRAL_RGB).all()


def test_process__same_object_twice_is_the_same_to_the_byte(settings: ObjectSettings) -> None:
    first, second = process(record("good"), settings), process(record("good"), settings)
    assert isinstance(first, Processed)
    assert isinstance(second, Processed)
    assert first.images.tobytes() == second.images.tobytes()
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


def test_isolated__crash_hang_and_hunger_cost_one_object_each(settings: ObjectSettings) -> None:
    keys = ["good", "crash", "plain", "hang", "hungry", "good"]
    processor = IsolatedProcessor(settings, timeout_s=20, memory_bytes=4 << 30)
    try:
        items = list(processor([record(key) for key in keys]))
    finally:
        processor.close()
    kinds = [item.error if isinstance(item, Failure) else "ok" for item in items]
    assert kinds == ["ok", "crash", "ok", "timeout", "out_of_memory", "ok"]
    assert [i.uid if isinstance(i, Failure) else i.record.uid for i in items] == [
        f"trouble/{key}" for key in keys
    ]
