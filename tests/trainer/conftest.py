"""Synthetic shards: shapes of distinct geometry whose teacher embeddings cluster by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.shards import Manifest, Row, TeacherInfo, create_or_open, write_part
from trainer.config import Recipe
from trainer.data import Batches
from trainer.index import Corpus
from trainer.recipe import load_recipe

WIDTH = 32
N_POINTS = 256

SMALL = [
    "data.n_points=128",
    "data.batch_size=16",
    "data.val_fraction=0.2",
    "model.options.dim=32",
    "model.options.heads=1",
    "model.options.head_dim=32",
    "model.options.mlp_dim=32",
    "model.options.depth=1",
    "model.options.centroids=16",
    "model.options.neighbours=8",
    "train.log_every=1",
]


@dataclass(frozen=True)
class Synth:
    """Options of a synthetic shard set."""

    count: int = 96
    classes: int = 4
    views: int = 3
    textless: int = 0  # every n-th row has no text; 0: none
    teacher: int = 0  # another number is another teacher
    width: int = WIDTH
    n_fps: int = N_POINTS
    part_rows: int = 40
    prefix: str = "synth"
    thumbnails: int = 0  # every n-th row has a thumbnail; 0: the set has none
    by_source: bool = False  # the first text is a name and the others captions; False: all names
    test_rows: int = 0  # every n-th row is marked as of the split "test"; 0: none is marked


MakeShards = Callable[..., Path]


def unit(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True), np.float32)


def cloud(kind: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(N, 3) points of one of four shapes: ball, plate, rod, two balls; sizes vary."""
    points = rng.normal(size=(N_POINTS, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    scales = [(1, 1, 1), (1, 0.08, 1), (0.08, 1, 0.08), (0.35, 0.35, 0.35)]
    points *= np.array(scales[kind % 4]) * rng.uniform(0.8, 1.0)
    if kind % 4 == 3:
        points[:, 1] += np.where(rng.random(N_POINTS) < 0.5, 0.6, -0.6)
    return np.asarray(points / np.linalg.norm(points, axis=1).max(), np.float32)


def _split(index: int, test_rows: int) -> str | None:
    if not test_rows:
        return None
    return "test" if index % test_rows == 0 else "train"


def make_rows(options: Synth) -> list[Row]:
    rng = np.random.default_rng(options.teacher + 11)
    pictures = np.random.default_rng(options.teacher + 12)
    anchors = rng.normal(size=(2, options.classes, options.width))
    rows = []
    for index in range(options.count):
        kind = index % options.classes
        textless = options.textless and index % options.textless == 0
        n_texts = 0 if textless else 1 + index % 3
        image = anchors[0, kind] + 0.3 * rng.normal(size=(options.views, options.width))
        text = anchors[1, kind] + 0.3 * rng.normal(size=(n_texts, options.width))
        picture = unit(anchors[0, kind] + pictures.normal(size=options.width))
        has_picture = options.thumbnails and index % options.thumbnails == 0
        color = np.tile(np.array([40 + 50 * (kind % 4), 120, 200], np.uint8), (N_POINTS, 1))
        rows.append(
            Row(
                uid=f"{options.prefix}/{index:04d}",
                dataset=options.prefix,
                source=f"{index}.glb",
                category=f"class-{kind}",
                split=_split(index, options.test_rows),
                xyz=cloud(kind, rng),
                rgb=color,
                has_color=True,
                image_embeds=unit(image),
                texts=[f"class {kind}"] * n_texts,
                text_sources=(["name", *["caption" if options.by_source else "name"] * 2])[
                    :n_texts
                ],
                text_embeds=unit(text) if n_texts else np.zeros((0, options.width), np.float32),
                sha256="0" * 64,
                n_faces=10,
                n_vertices=10,
                n_bytes=100,
                thumbnail_embed=picture if has_picture else None,
            )
        )
    return rows


def make_manifest(options: Synth) -> Manifest:
    fingerprint = np.zeros(options.width)
    fingerprint[options.teacher] = 1.0
    values = [float(value) for value in fingerprint]
    teacher = TeacherInfo(
        f"synthetic-{options.teacher}", "", {}, options.width, 100.0, values, values
    )
    return Manifest(
        teacher=teacher,
        dataset={"name": options.prefix, "options": {}},
        n_points=N_POINTS,
        n_fps=options.n_fps,
        n_views=options.views,
        sampling_seed=0,
        renderer={"name": "none"},
        cameras={},
        templates=["{}"],
        versions={},
        thumbnails=options.thumbnails > 0,
    )


def write_rows(root: Path, options: Synth, rows: list[Row]) -> Path:
    """A set of these rows, with the manifest of ``options``."""
    manifest = create_or_open(root, make_manifest(options))
    for start in range(0, len(rows), options.part_rows):
        write_part(root, manifest, rows[start : start + options.part_rows])
    return root


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Factory: ``make_shards(name, **options of Synth)`` writes a set and returns its folder."""

    def make(name: str = "shards", **options: int | str) -> Path:
        synth = Synth(**options)  # type: ignore[arg-type]
        return write_rows(tmp_path / name, synth, make_rows(synth))

    return make


def small_recipe(*overrides: str) -> Recipe:
    """The tiny recipe made smaller still, for tests."""
    return load_recipe("tiny", [*SMALL, *overrides])


def open_batches(*roots: Path, seed: int = 0, overrides: tuple[str, ...] = ()) -> Batches:
    return Batches(Corpus(list(roots), small_recipe(*overrides)), seed)


def rows_of(batches: Batches, epoch: int, start: int = 0) -> list[list[int]]:
    return [batch.row.tolist() for batch in batches.epoch(epoch, start)]
