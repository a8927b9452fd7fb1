"""Embedding what is in shards or in mesh files, as rows of an embeddings file.

An encoder maps rows of a shard batch to vectors: the student from the clouds, or, as its ceiling,
the teacher from the stored view embeddings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.embeddings import EmbeddingRows, ModelInfo, normalise
from evaluation.shapes import Caller, here
from evaluation.student import Student
from evaluation.teachers import require_same_teacher
from pipeline.common import InputError, content_hash
from pipeline.datasets.layouts import SKIPPED_FOLDERS, printable
from pipeline.shards import Batch, ShardSet, decode_xyz

F32 = NDArray[np.float32]
Views = Literal["mean", "first"]
Centre = Literal["box", "mean"]
ROW_COLUMNS = ("source", "category", "split", "texts", "text_sources")

Advance = Callable[[int], None]


class Encoder(Protocol):
    """Rows of a shard batch to vectors."""

    columns: tuple[str, ...]  # what it needs of a batch
    model: ModelInfo

    def __call__(self, batch: Batch, rows: NDArray[np.int64], /) -> F32:
        """(len(rows), D) float32, L2-normalised."""


class StudentEncoder:
    """The student on the clouds.

    With several ``draws`` a cloud's embedding is the mean over as many samples of its points,
    normalised: the first is the one that the student was trained on, the prefix in farthest-point
    order; each further one takes half of the cloud's points, chosen by (seed, uid, draw), in
    farthest-point order of their own.

    Raises ``InputError`` when the shards have another teacher, or clouds that are too small.
    """

    columns: tuple[str, ...] = ("xyz", "rgb", "has_color")

    def __init__(
        self,
        student: Student,
        shards: ShardSet,
        draws: int = 1,
        seed: int = 0,
        centre: Centre = "box",
    ) -> None:
        name, manifest = shards.storage.root, shards.manifest
        checkpoint = f"checkpoint {student.model.name}"
        require_same_teacher(student.teacher, checkpoint, manifest.teacher, f"shards {name}")
        needed = student.n_points if draws == 1 else 2 * student.n_points
        if manifest.n_points < needed:
            told = f"trained on {student.n_points}"
            if draws > 1:
                told += f", and --draws {draws} needs twice as many to choose from"
            raise InputError(
                f"{name}: clouds of {manifest.n_points} points, but {checkpoint} was {told}; "
                "make shards with at least that many points"
            )
        self.student, self.model = student, student.model
        self.draws, self.seed, self.centre = draws, seed, centre

    def __call__(self, batch: Batch, rows: NDArray[np.int64], /) -> F32:
        """Embed the clouds of ``rows``."""
        found = self.each_draw(batch, rows)
        return found[0] if self.draws == 1 else normalise(found.mean(0))

    def each_draw(self, batch: Batch, rows: NDArray[np.int64]) -> F32:
        """(draws, len(rows), D): the embeddings of every draw by itself, L2-normalised."""
        assert batch.xyz is not None
        assert batch.rgb is not None
        assert batch.has_color is not None
        n, colored = self.student.n_points, batch.has_color[rows]
        found = []
        for draw in range(self.draws):
            if draw == 0:  # only the prefix that the model takes is decoded
                xyz, rgb = decode_xyz(batch.xyz[rows, :n]), batch.rgb[rows, :n]
            else:
                clouds = [self._drawn(batch, int(row), draw) for row in rows]
                xyz = np.stack([points for points, _ in clouds]) if clouds else xyz[:0]
                rgb = np.stack([colors for _, colors in clouds]) if clouds else rgb[:0]
            placed = centred(xyz) if self.centre == "mean" else xyz
            found.append(self.student.embed(placed, rgb, colored))
        return np.stack(found)

    def _drawn(self, batch: Batch, row: int, draw: int) -> tuple[F32, NDArray[np.uint8]]:
        from pipeline.points import farthest_point_order

        assert batch.xyz is not None
        assert batch.rgb is not None
        own = int(content_hash(f"{self.seed}/{batch.uid[row]}/{draw}")[:15], 16)
        pool = len(batch.xyz[row])
        chosen = np.random.default_rng(own).permutation(pool)[: pool // 2]
        points = decode_xyz(batch.xyz[row, chosen])
        order = farthest_point_order(points, self.student.n_points)[: self.student.n_points]
        return points[order], batch.rgb[row, chosen[order]]


def centred(xyz: F32) -> F32:
    """Clouds (B, N, 3) with the mean of their points at 0 and the largest norm 1.

    As OpenShape and Uni3D have it; clouds whose points all coincide become 0.
    """
    moved = xyz - xyz.mean(1, keepdims=True, dtype=np.float64)
    radius = np.linalg.norm(moved, axis=2).max(1)[:, None, None]
    return np.asarray(np.where(radius < 1e-6, 0, moved / np.maximum(radius, 1e-6)), np.float32)


class ViewsEncoder:
    """The teacher on the stored view embeddings: mean of all views, or the first one.

    Raises ``InputError`` when the shards hold no views.
    """

    columns: tuple[str, ...] = ("image_embeds",)

    def __init__(self, shards: ShardSet, views: Views = "mean") -> None:
        if shards.manifest.n_views == 0:
            raise InputError(
                f"{shards.storage.root}: holds no image embeddings, so the teacher's views cannot "
                "be evaluated; make shards with views, or give --checkpoint"
            )
        self.views = views
        self.model = ModelInfo(
            "teacher-views", f"teacher {shards.manifest.teacher.model}, {views} view"
        )

    def __call__(self, batch: Batch, rows: NDArray[np.int64], /) -> F32:
        """Combine the view embeddings of ``rows``."""
        assert batch.image_embeds is not None
        return view_embeds(batch.image_embeds[rows], self.views)


def view_embeds(image_embeds: NDArray[np.float16], views: Views) -> F32:
    """(B, V, D) stored view embeddings to one (B, D) embedding, L2-normalised."""
    values = image_embeds.astype(np.float32)
    return normalise(values.mean(1) if views == "mean" else values[:, 0])


def split_rows(batch: Batch, split: str | None) -> NDArray[np.int64]:
    """Rows of a batch that belong to ``split``; all for None."""
    if split is None:
        return np.arange(len(batch))
    assert batch.split is not None
    return np.asarray([i for i, value in enumerate(batch.split) if value == split], np.int64)


def split_categories(shards: ShardSet, split: str | None) -> list[str | None]:
    """Categories of the rows of ``split``, in order. Raises ``InputError`` when there are none."""
    found: list[str | None] = []
    for batch in shards.batches(["category", "split"]):
        assert batch.category is not None
        found += [batch.category[row] for row in split_rows(batch, split)]
    if not found:
        raise no_rows(shards, split)
    if all(category is None for category in found):
        raise InputError(
            f"{shards.storage.root}: its objects have no categories, so there are no classes; "
            "make the set again with categories (pipeline embed --metadata)"
        )
    return found


def no_rows(shards: ShardSet, split: str | None) -> InputError:
    """The error for a set, or a split of it, without rows."""
    name = shards.storage.root
    if split is None or not len(shards):
        return InputError(f"{name}: holds no objects; fill it with `pipeline embed`")
    found: set[str] = set()
    for batch in shards.batches(["split"]):
        found |= {str(value) for value in batch.split or [] if value is not None}
    if not found:
        return InputError(
            f"--split {split}: {name} has no splits; `pipeline split` makes them, and so does "
            "`pipeline embed --holdout`"
        )
    known = ", ".join(sorted(found))
    return InputError(f"--split {split}: no such split in {name} (there are: {known})")


def require_split(shards: ShardSet, split: str | None) -> None:
    """Raise ``InputError`` where a set, or a split of it, has no rows: before anything is done."""
    if not any(len(split_rows(batch, split)) for batch in shards.batches(["split"])):
        raise no_rows(shards, split)


def shards_data(shards: ShardSet, split: str | None = None) -> dict[str, Any]:
    """What an embeddings file or a result records of a shard set."""
    manifest = shards.manifest
    settings = manifest.renderer.get("settings", manifest.renderer)
    background = settings.get("background") if isinstance(settings, dict) else None
    known = isinstance(background, list) and len(background) == 3
    return {
        "kind": "shards",
        "name": Path(shards.storage.path).name,
        "dataset": str(manifest.dataset.get("name", "")),
        "config_hash": manifest.config_hash,
        "split": split,
        "n_points": manifest.n_points,
        "sampling_seed": manifest.sampling_seed,
        "background": background if known else [255, 255, 255],
    }


def embed_shards(
    shards: ShardSet, encoder: Encoder, split: str | None = None, advance: Advance | None = None
) -> Iterator[EmbeddingRows]:
    """Embed every row of ``split``, one row group at a time."""
    for batch in shards.batches([*ROW_COLUMNS, *encoder.columns]):
        rows = split_rows(batch, split)
        if len(rows):
            yield embedding_rows(batch, rows, encoder(batch, rows))
        if advance:
            advance(len(batch))


def embedding_rows(batch: Batch, rows: NDArray[np.int64], vectors: F32) -> EmbeddingRows:
    """The given rows of a batch with their vectors. The batch holds ``ROW_COLUMNS``."""

    def take(values: list[Any] | None) -> list[Any]:
        assert values is not None
        return [values[i] for i in rows]

    return EmbeddingRows(
        uid=take(batch.uid),
        source=take(batch.source),
        category=take(batch.category),
        split=take(batch.split),
        texts=take(batch.texts),
        text_sources=take(batch.text_sources),
        vectors=vectors,
    )


@dataclass(frozen=True)
class MeshFile:
    """A mesh file, and what it is called."""

    uid: str
    name: str  # relative to the folder that all lie in
    path: Path


def find_meshes(paths: Sequence[Path]) -> list[MeshFile]:
    """Every mesh file given or below a folder given, sorted per folder.

    Names are relative to the folder given, or else to the one that all paths have in common: many
    meshes are called ``mesh.glb``. A uid is that of the dataset ``folder`` with it as its root, so
    that an object is the same one whether it was read from shards or from its file.

    Raises ``InputError`` for a path that is not there, or when no mesh is found.
    """
    from pipeline.meshes import SUFFIXES

    found: dict[Path, Path] = {}  # by where it really is in the tree; as it was given
    bases = []
    for path in paths:
        whole = Path(os.path.abspath(path))  # noqa: PTH100 (links stay; .. goes)
        if path.is_dir():
            bases.append(whole)
            for file in sorted(path.rglob("*")):
                below = file.relative_to(path)
                if file.suffix.lower() in SUFFIXES and not _hidden(below) and file.is_file():
                    found.setdefault(whole / below, file)
        elif path.is_file():
            bases.append(whole.parent)
            found.setdefault(whole, path)
        else:
            raise InputError(f"{path}: no such file or folder; give meshes or a folder of them")
    if not found:
        raise InputError(
            f"{', '.join(map(str, paths))}: holds no mesh file ({', '.join(SUFFIXES)}); "
            "give another folder"
        )
    root = Path(os.path.commonpath(bases))
    names = [file.relative_to(root) for file in found]
    uids = _folder_uids(names)
    return [
        MeshFile(uid, printable(name.as_posix()), path)
        for uid, name, path in zip(uids, names, found.values(), strict=True)
    ]


def _hidden(path: Path) -> bool:
    """Whether the dataset ``folder`` passes over a path relative to its root."""
    return any(part[0] == "." or part in SKIPPED_FOLDERS for part in path.parts)


def _folder_uids(names: Sequence[Path]) -> list[str]:
    """uids as the dataset ``folder`` gives them."""
    from pipeline.datasets.folder import own_names

    folders: dict[Path, list[str]] = {}
    for name in names:
        folders.setdefault(name.parent, []).append(name.name)
    own = {
        folder / file: folder / short
        for folder, files in folders.items()
        for file, short in zip(files, own_names(files), strict=True)
    }
    return [f"folder/{printable(own[name].as_posix())}" for name in names]


@dataclass
class MeshSource:
    """Embeds mesh files; those that cannot be read are collected in ``failures``, not raised.

    ``call`` is how they are read: see ``evaluation.isolated``.
    """

    student: Student
    files: list[MeshFile]
    up_axis: str = "auto"
    seed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)  # (name, message)
    call: Caller = here

    def rows(self, advance: Advance | None = None) -> Iterator[EmbeddingRows]:
        """One row per readable file. Its only text is the file's name, as words."""
        for file in self.files:
            try:
                vector = self.student.embed_mesh(file.path, self.up_axis, self.seed, self.call)
                yield EmbeddingRows(
                    uid=[file.uid],
                    source=[file.name],
                    category=[None],
                    split=[None],
                    texts=[[printable(file_words(file.path))]],
                    text_sources=[["name"]],
                    vectors=vector[None],
                )
            except InputError as error:
                self.failures.append((file.name, str(error)))
            if advance:
                advance(1)


def file_words(path: Path) -> str:
    """``coffee_mug-02.glb`` to ``coffee mug 02``."""
    return " ".join(re.split(r"[\W_]+", path.stem)).strip() or path.stem
