"""Objects to rows: which picture's embedding goes where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from pipeline.datasets.base import Record
from pipeline.encode import Encoder
from pipeline.objects import Processed
from pipeline.pictures import Size
from pipeline.teacher import Teacher
from tests.pipeline.shard_tools import make_manifest


class Colours:
    """A teacher whose embedding of a picture is its mean colour, so that it can be told apart."""

    tokenizer = None  # without a limit on the length of texts
    has_images = True

    def __init__(self, config: dict[str, Any]) -> None:
        self.info = replace(make_manifest(width=3).teacher, config=config)
        self.seen: list[tuple[int, ...]] = []

    def knows(self, text: str) -> bool:
        return bool(text)

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(images.shape)
        mean = images.reshape(len(images), -1, 3).mean(1) + 1
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.tile(np.array([1, 0, 0], np.float32), (len(texts), 1))


SMALL: Size = (4, "bicubic")
CONFIG = {"preprocess_cfg": {"size": 4}}


def item(name: str, size: Size, *, n_views: int, thumbnail: bool) -> Processed:
    """An object whose pictures are plain, of colours that depend on its name and the view."""
    rng = np.random.default_rng(list(name.encode()))
    colours = rng.integers(0, 256, (n_views + 1, 1, 1, 3), dtype=np.uint8)
    pictures = np.tile(colours, (1, 4, 4, 1))
    return Processed(
        record=Record(f"toy/{name}", "toy", name, name),
        texts=(),
        text_sources=(),
        images={size: pictures[:n_views]},
        xyz=np.zeros((8, 3), np.float32),
        rgb=np.zeros((8, 3), np.uint8),
        has_color=False,
        sha256="0" * 64,
        n_faces=1,
        n_vertices=3,
        n_bytes=5,
        thumbnail={size: pictures[n_views]} if thumbnail else {},
    )


@pytest.mark.parametrize(("size", "config"), [(SMALL, CONFIG), (None, CONFIG), (None, {})])
def test_encode__every_picture_lands_in_its_own_place(size: Size, config: dict[str, Any]) -> None:
    teacher = Colours(config)
    objects = [item(name, size, n_views=2, thumbnail=name in "bd") for name in "abcd"]
    rows = Encoder(cast(Teacher, teacher), ["a {}."]).encode(objects)
    assert teacher.seen == [(10, 4, 4, 3)]  # all in one call
    for row, given in zip(rows, objects, strict=True):
        views = teacher.encode_images(given.images[size])
        assert np.array_equal(row.image_embeds, views)
        if size in given.thumbnail:
            assert row.thumbnail_embed is not None
            expected = teacher.encode_images(given.thumbnail[size][None])[0]
            assert np.array_equal(row.thumbnail_embed, expected)
        else:
            assert row.thumbnail_embed is None


def test_encode__reads_the_size_of_its_own_teacher() -> None:
    both = item("a", SMALL, n_views=2, thumbnail=True)
    large: dict[Size, np.ndarray] = {(8, "bicubic"): np.zeros((2, 8, 8, 3), np.uint8)}
    both = replace(both, images={**large, **both.images})
    teacher = Colours(CONFIG)
    Encoder(cast(Teacher, teacher), ["a {}."]).encode([both])
    assert teacher.seen == [(3, 4, 4, 3)]
