"""Cross-modal retrieval within one shard set, exact.

Directions, each with the student and, as a ceiling, with the teacher's mean view in its place:

- ``text->3d``: one query per distinct text of the chosen source; every object that carries its
  words in a text of that source is right, so a repeated caption counts as a hit wherever it is
  found. ``name`` takes in ``category``, and ``all`` every source;
- ``3d->text``: the gallery is the distinct texts; every text of the object is right;
- ``image->3d`` and ``3d->image``: one view of an object against its own shape and back: view 0 of
  the set, or of a second set of the same objects from other cameras, which nobody trained on;
- ``3d->3d``: every other object of the same category is right, the query itself is no candidate;
- ``image->3d class``: the same, asked with that view of the object;
- ``class->3d``: one query per category that a name or a text of the source ``category`` spells out,
  every object of it is right.

The teacher, as the ceiling and as the model that is measured, compares that view with the mean of
the *other* views: all of the set where a second set asks. Where no other is left, it is not asked.
Ties count against the model (see ``trainer.metrics``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.benchmarks.labels import key
from evaluation.results import labels_hash, plain, proportion, result_record
from evaluation.sources import Advance, Encoder, no_rows, shards_data, split_rows, view_embeds
from evaluation.teachers import require_same_teacher
from pipeline.common import InputError
from pipeline.shards import Batch, ShardSet
from trainer import metrics
from trainer.heldout import ALL_TEXTS, PREFERRED, TextGatherer, Texts
from trainer.metrics import Ranking

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
TOP_K = (1, 5, 10)


@dataclass(frozen=True)
class Collected:
    """Everything that the directions compare, row by row."""

    uids: list[str]
    category: list[str | None]
    shapes: F32  # (B, D) from the encoder
    pictured: F32 | None  # (B, D) what pictures are compared with; None: nothing but themselves
    asking_view: F32 | None  # (B, D) of the pictures that ask; None: there are none
    mean_view: F32 | None  # (B, D); None: the set has no views
    other_views: F32 | None  # (B, D) mean of all that do not ask; None without such
    texts: Texts
    class_texts: dict[str, F32]  # (D,) by category in the form of ``key``, where one is spelled out


@dataclass(frozen=True)
class Direction:
    """Queries, what they are compared with, and what is right for them."""

    queries: F32  # (Q, D)
    gallery: F32  # (G, D)
    relevant: Callable[[int], I64]  # as ``metrics.rank_queries`` takes it
    exclude_self: bool = False
    order: I64 | None = None  # in which the ranks of the queries are told; None: they are not

    @cached_property
    def n_queries(self) -> int:
        """Queries that have a right answer."""
        total = len(self.queries)
        asking = metrics.answerable_queries(total, self.relevant, exclude_self=self.exclude_self)
        return len(asking)

    def figures(self, advance: Advance | None = None) -> dict[str, Any]:
        """As ``summary``; ``advance`` counts queries."""
        ranking = metrics.rank_queries(
            self.queries,
            self.gallery,
            self.relevant,
            exclude_self=self.exclude_self,
            advance=advance,
        )
        return summary(ranking, self.order)


@dataclass(frozen=True)
class Retrieval:
    """A set that was read and embedded, ready to be measured."""

    record: dict[str, Any]  # the result without its figures
    directions: dict[str, Direction]
    ceiling: dict[str, Direction] | None  # None: the encoder is the teacher itself

    @cached_property
    def n_queries(self) -> int:
        """Queries that ``measure`` compares, over all directions."""
        return sum(direction.n_queries for direction in self._all)

    @cached_property
    def n_comparisons(self) -> int:
        """Products of a query and a row of its gallery, over all directions."""
        return sum(direction.n_queries * len(direction.gallery) for direction in self._all)

    @property
    def _all(self) -> list[Direction]:
        return [*self.directions.values(), *(self.ceiling or {}).values()]

    def measure(self, advance: Advance | None = None) -> dict[str, Any]:
        """Run every direction and return the result record; ``advance`` counts queries."""

        def run(asked: dict[str, Direction]) -> dict[str, Any]:
            return {name: direction.figures(advance) for name, direction in asked.items()}

        found = {**self.record, "directions": run(self.directions)}
        return found if self.ceiling is None else {**found, "teacher_ceiling": run(self.ceiling)}


def prepare(
    shards: ShardSet,
    encoder: Encoder,
    *,
    text_source: str | None = None,
    view_shards: ShardSet | None = None,
    split: str | None = None,
    benchmark: str | None = None,
    advance: Advance | None = None,
) -> Retrieval:
    """Read and embed every direction that the set has data for; ``advance`` counts its objects.

    ``view_shards`` is a set of the same objects whose view 0 asks in the place of that of
    ``shards``. Raises ``InputError`` when ``split`` or ``text_source`` is not in the set, or when
    ``view_shards`` lacks an object, has another teacher, or shares a camera.
    """
    source = choose_source(shards, split, text_source)
    asking = None if view_shards is None else other_cameras(shards, view_shards)
    found = collect(shards, encoder, source, split, advance, asking)
    protocol = {
        "measure": "cosine, exact over the whole set; ties count as wrong",
        "text_source": source,
        "text_queries": "one per distinct text; every object that carries its words is right",
        "image_queries": "view 0 of every object"
        + ("" if view_shards is None else f" from the cameras of {_cameras_of(view_shards)}")
        + "; its own shape is right",
        "category_queries": "every object; others of its category are right, itself excluded",
        "class_queries": "one per category that some object's name spells out",
        "rank": "of the best right answer; queries without one are left out and counted",
        "interval": "95 % Wilson",
    }
    data = shards_data(shards, split)
    name = benchmark or data["dataset"] or data["name"]
    record = result_record(
        "recall", name, encoder.model, shards.manifest.teacher, data, found.uids, protocol
    )
    record["label_hash"] = labels_hash(found.uids, keys_of(found.category))
    record["query_hash"] = labels_hash(
        found.uids,
        [sorted({found.texts.words[text] for text in mine}) for mine in found.texts.texts_of],
    )
    student = encoder.model.kind == "student"
    return Retrieval(
        record, directions(found, order_of(found)), ceiling(found) if student else None
    )


def text_sources(shards: ShardSet, split: str | None) -> set[str]:
    """The text sources that occur in ``split``. Raises ``InputError`` when it has no rows."""
    found: set[str] = set()
    count = 0
    for batch in shards.batches(["split", "text_sources"]):
        rows = split_rows(batch, split)
        assert batch.text_sources is not None
        found.update(source for row in rows for source in batch.text_sources[row])
        count += len(rows)
    if not count:
        raise no_rows(shards, split)
    return found


def choose_source(shards: ShardSet, split: str | None, wanted: str | None) -> str:
    """``wanted`` when the set has it; without it captions, else names, else all texts."""
    known = text_sources(shards, split)
    if wanted is None:
        return next((source for source in PREFERRED if source in known), ALL_TEXTS)
    if wanted != ALL_TEXTS and wanted not in known:
        raise InputError(
            f"--texts {wanted}: no such text source in {shards.storage.root} "
            f"(there are: {', '.join(sorted(known)) or 'none'}, or {ALL_TEXTS})"
        )
    return wanted


def collect(
    shards: ShardSet,
    encoder: Encoder,
    source: str,
    split: str | None,
    advance: Advance | None = None,
    asking: dict[str, tuple[str, F32]] | None = None,
) -> Collected:
    """Read and embed the rows of ``split``; ``asking`` as ``other_cameras`` gives it."""
    columns = {"category", "split", "texts", "text_sources", "text_embeds", *encoder.columns}
    has_views = shards.manifest.n_views > 0
    if has_views:
        columns.add("image_embeds")
    if asking is not None:
        columns.add("sha256")
    uids: list[str] = []
    category: list[str | None] = []
    shapes, first, mean, others = [], [], [], []
    gathered = TextGatherer(source)
    class_texts: dict[str, F32] = {}
    for batch in shards.batches(sorted(columns)):
        rows = split_rows(batch, split)
        if len(rows):
            assert batch.category is not None
            uids += [batch.uid[row] for row in rows]
            category += [batch.category[row] for row in rows]
            shapes.append(encoder(batch, rows))
            for row in rows:
                gathered.add(batch, int(row))
                _spelled(batch, int(row), class_texts)
            if has_views:
                assert batch.image_embeds is not None
                views = batch.image_embeds[rows]
                mean.append(view_embeds(views, "mean"))
                if asking is None:
                    first.append(view_embeds(views, "first"))
                    views = views[:, 1:]
                if views.shape[1]:
                    others.append(view_embeds(views, "mean"))
            if asking is not None:
                first.append(_views_of(batch, rows, asking))
        if advance:
            advance(len(batch))
    if not uids:
        raise no_rows(shards, split)
    embeds = np.concatenate(shapes)
    other_views = np.concatenate(others) if others else None
    of_views = asking is None and encoder.model.kind == "teacher-views"
    return Collected(
        uids,
        category,
        embeds,
        other_views if of_views else embeds,
        np.concatenate(first) if first else None,
        np.concatenate(mean) if mean else None,
        other_views,
        gathered.finish(shards.manifest.teacher.width),
        class_texts,
    )


def other_cameras(shards: ShardSet, view_shards: ShardSet) -> dict[str, tuple[str, F32]]:
    """SHA-256 and view 0 (D,) of every object of ``view_shards``, by uid.

    Raises ``InputError`` for a set without views, of another teacher, or whose first camera is one
    of ``shards``: its pictures may have been trained on.
    """
    name, theirs, ours = view_shards.storage.root, view_shards.manifest, shards.manifest
    if not theirs.n_views:
        raise InputError(f"--view-shards {name}: holds no views; make it with --views 1")
    require_same_teacher(theirs.teacher, f"--view-shards {name}", ours.teacher, "--shards")
    first = (theirs.cameras.get("fov_y_deg"), theirs.cameras.get("poses", [None])[0])
    if first in [(ours.cameras.get("fov_y_deg"), pose) for pose in ours.cameras.get("poses", [])]:
        raise InputError(
            f"--view-shards {name}: its first camera is one of {shards.storage.root}, so its "
            "picture may have been trained on; make the set with other --cameras"
        )
    found: dict[str, tuple[str, F32]] = {}
    for batch in view_shards.batches(["image_embeds", "sha256"]):
        assert batch.image_embeds is not None
        assert batch.sha256 is not None
        vectors = view_embeds(batch.image_embeds, "first")
        found |= zip(batch.uid, zip(batch.sha256, vectors, strict=True), strict=True)
    return found


def _views_of(batch: Batch, rows: I64, asking: dict[str, tuple[str, F32]]) -> F32:
    assert batch.sha256 is not None
    vectors = []
    for row in rows:
        uid = batch.uid[row]
        sha256, vector = asking.get(uid, (None, None))
        if vector is None or sha256 != batch.sha256[row]:
            told = "lacks it" if vector is None else "has another object of that name"
            raise InputError(f"--view-shards: {uid} is asked for, but the set {told}")
        vectors.append(vector)
    return np.stack(vectors)


def _cameras_of(shards: ShardSet) -> str:
    cameras = shards.manifest.cameras
    return f"{Path(shards.storage.path).name} ({cameras.get('name')}, {shards.manifest.n_views})"


def _spelled(batch: Batch, row: int, found: dict[str, F32]) -> None:
    """Keep the text of an object that is its category, if it has one."""
    assert batch.category is not None
    assert batch.texts is not None
    assert batch.text_sources is not None
    category = key(batch.category[row] or "")
    if not category or category in found:
        return
    for place, (text, source) in enumerate(
        zip(batch.texts[row], batch.text_sources[row], strict=True)
    ):
        if source in ("name", "category") and key(text) == category:
            found[category] = metrics.normalise(batch.texts_of(row)[place])
            return


def order_of(found: Collected) -> tuple[I64, I64]:
    """Places of objects and of texts in an order that depends on the uids alone.

    A text stands where the first object that carries it stands.
    """
    objects = np.asarray(sorted(range(len(found.uids)), key=found.uids.__getitem__), np.int64)
    rank = np.empty(len(objects), np.int64)
    rank[objects] = np.arange(len(objects))
    first = [min(rows, key=rank.__getitem__) for rows in found.texts.rows_of]
    keys = [
        (int(rank[row]), int(np.flatnonzero(found.texts.texts_of[row] == text)[0]))
        for text, row in enumerate(first)
    ]
    return objects, np.asarray(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def directions(found: Collected, order: tuple[I64, I64] | None = None) -> dict[str, Direction]:
    """The directions of the encoder; with an ``order`` they also tell the rank of every query."""
    objects, texts = order or (None, None)
    result = _with_texts(found.shapes, found.texts, "3d", objects, texts)
    result |= _with_images(found.asking_view, found.pictured, found.category, "3d", objects)
    result["3d->3d"] = by_category(found.shapes, found.category, objects)
    return result | _with_classes(found, found.shapes, "3d", ranks=order is not None)


def ceiling(found: Collected) -> dict[str, Direction]:
    """The directions of the teacher's mean view in the place of the shape; {} without views."""
    if found.mean_view is None:
        return {}
    result = _with_texts(found.mean_view, found.texts, "views")
    result |= _with_images(found.asking_view, found.other_views, found.category, "views")
    result["views->views"] = by_category(found.mean_view, found.category)
    return result | _with_classes(found, found.mean_view, "views")


def _with_classes(
    found: Collected, gallery: F32, name: str, *, ranks: bool = False
) -> dict[str, Direction]:
    """Class names as queries; {} where no category is spelled out."""
    if not found.class_texts:
        return {}
    names = sorted(found.class_texts)
    members = metrics.groups(keys_of(found.category))
    queries = np.stack([found.class_texts[name] for name in names])
    order = np.arange(len(names)) if ranks else None
    asked = Direction(queries, gallery, lambda query: members[names[query]], order=order)
    return {f"class->{name}": asked}


def _with_texts(
    shapes: F32, texts: Texts, name: str, objects: I64 | None = None, order: I64 | None = None
) -> dict[str, Direction]:
    if not len(texts.embeds):
        return {}
    return {
        f"text->{name}": Direction(texts.embeds, shapes, texts.rows_of.__getitem__, order=order),
        f"{name}->text": Direction(shapes, texts.embeds, texts.texts_of.__getitem__, order=objects),
    }


def _with_images(
    images: F32 | None,
    gallery: F32 | None,
    category: Sequence[str | None],
    name: str,
    order: I64 | None = None,
) -> dict[str, Direction]:
    """Pictures as queries and back; {} without pictures or what they are compared with."""
    if images is None or gallery is None:
        return {}
    return {
        f"image->{name}": by_instance(images, gallery, order),
        f"{name}->image": by_instance(gallery, images, order),
        f"image->{name} class": by_category(gallery, category, order, images),
    }


def by_instance(queries: F32, gallery: F32, order: I64 | None = None) -> Direction:
    """Row q of the gallery is the one right answer to query q."""
    return Direction(queries, gallery, metrics.own_row, order=order)


def keys_of(category: Sequence[str | None]) -> list[str | None]:
    """Categories in the form in which they are compared; None for those that say nothing."""
    return [key(name or "") or None for name in category]


def by_category(
    embeds: F32,
    category: Sequence[str | None],
    order: I64 | None = None,
    queries: F32 | None = None,
) -> Direction:
    """All others of the same category are right; rows without a category ask nothing.

    Spellings of one name are one category, as everywhere (``labels.key``). ``queries`` (B, D) ask
    in the place of the embeddings of the same objects.
    """
    asked = embeds if queries is None else queries
    relevant = metrics.same_key(keys_of(category))
    return Direction(asked, embeds, relevant, exclude_self=True, order=order)


def summary(ranking: Ranking, order: I64 | None = None) -> dict[str, Any]:
    """The figures of one direction, for JSON; 0 is the rank of a query without a right answer."""
    asked = ranking.answerable
    n = int(asked.sum())
    hits = {k: int((ranking.first_rank[asked] <= k).sum()) for k in TOP_K}
    ranks = {}
    if order is not None:
        ranks["ranks"] = ranking.first_rank[order].tolist()
    return {
        **{f"recall@{k}": proportion(hits[k], n) for k in TOP_K},
        "median_rank": plain(metrics.median_rank(ranking)),
        "mean_rank": plain(metrics.mean_rank(ranking)),
        "map": plain(metrics.mean_average_precision(ranking)),
        "ndcg": plain(metrics.mean_ndcg(ranking)),
        "chance_recall@1": plain(metrics.chance_recall_at_1(ranking)),
        "n_queries": n,
        "n_without_answer": len(asked) - n,
        "n_candidates": ranking.n_candidates,
        "tied": ranking.tied,
        **ranks,
    }
