"""Figures of an encoder on rows that no training has seen, from the shards alone.

No teacher is loaded: class texts, captions and images are those that the shards hold, as the
teacher embedded them. What is measured, all by cosine, exact, ties counting as wrong
(``trainer.metrics``):

- ``zeroshot_top1``, ``_top3``, ``_top5``, ``zeroshot_class_mean``: the category of each object
  among the categories of all held-out objects. The text of a class is the one of source ``name``
  that reads as the category does (``coffee_mug``, "coffee mug"); of a category that no text
  spells out, the mean of the names of its objects that are not held out. Classes with neither are
  left out with their objects, and counted.
- ``text_recall@1``, ``@5``: one query per distinct text (captions, or names where there are no
  captions); every held-out object that carries its words is right.
- ``image_recall@1``, ``@5``: view 0 of an object; its own shape is right.
- ``shape_map``: mean average precision over the other objects of the same category.

Figures are shares in [0, 1]. What the shards have no data for is left out.
Shape suffixes: B rows, N points, C classes, D width.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import InputError, content_hash
from pipeline.shards import Batch, ShardSet, TeacherInfo
from trainer import metrics
from trainer.index import part_hash
from trainer.metrics import normalise

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

ALL_TEXTS = "all"
# Tried in this order when no source is asked for: a caption tells objects apart, a name seldom.
PREFERRED = ("caption", "name")
# By its category is called an object that has no name, or none that the teacher knows.
_ALSO = {"name": ("name", "category")}
TOP_K = (1, 3, 5)
RECALL_K = (1, 5)

# (xyz int16 (B, N, 3), rgb uint8 (B, N, 3), has_color (B,)) to (B, D) float32, L2-normalised.
Encode = Callable[[NDArray[np.int16], NDArray[np.uint8], NDArray[np.bool_]], F32]


def category_key(name: str) -> str:
    """Form in which names are compared: lower case, ``_`` and ``-`` as spaces, single spaces."""
    return " ".join(re.split(r"[\s_\-]+", name.casefold())).strip()


@dataclass(frozen=True)
class Texts:
    """The distinct texts of a set and which object carries which.

    The same words from two sources are two texts, as they are embedded differently (templates or
    none), but who carries the words carries both.
    """

    embeds: F32  # (K, D)
    rows_of: list[I64]  # for each text the rows that carry its words, rising
    texts_of: list[I64]  # for each row the texts of its words, in an order that no other row sets
    words: list[str]  # (K,) lower case, single spaces


class TextGatherer:
    """Collects distinct texts of one source; case and spaces do not distinguish."""

    def __init__(self, source: str) -> None:
        self.sources = _ALSO.get(source, (source,))
        self.number: dict[tuple[str, str], int] = {}
        self.embeds: list[NDArray[np.float16]] = []
        self.words_of: list[list[str]] = []  # of each row

    def add(self, batch: Batch, row: int) -> None:
        """Take in the texts of the next object: ``row`` of a batch with all text columns."""
        assert batch.texts is not None
        assert batch.text_sources is not None
        embeds = batch.texts_of(row)
        mine: dict[str, None] = {}
        pairs = zip(batch.texts[row], batch.text_sources[row], strict=True)
        for place, (text, source) in enumerate(pairs):
            if ALL_TEXTS not in self.sources and source not in self.sources:
                continue
            words = sys.intern(" ".join(text.casefold().split()))
            number = self.number.setdefault((words, source), len(self.number))
            if number == len(self.embeds):
                self.embeds.append(embeds[place])
            mine[words] = None
        self.words_of.append(list(mine))

    def finish(self, width: int) -> Texts:
        """All texts that were taken in."""
        embeds = np.stack(self.embeds) if self.embeds else np.zeros((0, width), np.float16)
        numbers: dict[str, list[int]] = {}
        for (words, _), number in sorted(self.number.items()):  # equal words by their source
            numbers.setdefault(words, []).append(number)
        carriers: dict[str, list[int]] = {}
        for row, mine in enumerate(self.words_of):
            for words in mine:
                carriers.setdefault(words, []).append(row)
        rows = {words: np.asarray(found, np.int64) for words, found in carriers.items()}
        said = [words for words, _ in self.number]
        return Texts(
            normalise(embeds),
            [rows[words] for words in said],
            [
                np.asarray([n for words in mine for n in numbers[words]], np.int64)
                for mine in self.words_of
            ],
            said,
        )


class ClassTexts:
    """Text embeddings of categories, found among the names of objects."""

    def __init__(self, keys: Iterable[str]) -> None:
        """``keys`` are the categories wanted, in the form of ``category_key``."""
        self.keys = sorted(keys)
        self._wanted = frozenset(self.keys)
        self._spelled: dict[str, F32] = {}
        self._sums: dict[str, F32] = {}  # of the names of objects that are not held out

    @property
    def complete(self) -> bool:
        """Whether no further object can add anything."""
        return len(self._spelled) == len(self._wanted)

    def add(self, batch: Batch, row: int, *, held_out: bool) -> None:
        """Take in the names of an object. Of one that is held out only a name that is a class.

        Such a text is the same whichever object carries it, so it tells nothing of that one.
        """
        assert batch.texts is not None
        assert batch.text_sources is not None
        assert batch.category is not None
        category = category_key(batch.category[row] or "")
        embeds = batch.texts_of(row)
        pairs = zip(batch.texts[row], batch.text_sources[row], strict=True)
        for place, (text, source) in enumerate(pairs):
            if source not in _ALSO["name"]:
                continue
            key = category_key(text)
            if key in self._wanted and key not in self._spelled:
                self._spelled[key] = normalise(embeds[place])
            if category in self._wanted and not held_out:
                self._sums[category] = self._sums.get(category, 0) + normalise(embeds[place])

    def table(self) -> tuple[F32, list[str], int]:
        """(C, D) texts of the categories that have one, these, and how many are means of names."""
        known = [key for key in self.keys if key in self._spelled or key in self._sums]
        if not known:
            return np.zeros((0, 0), np.float32), [], 0
        vectors = [self._spelled.get(key, self._sums.get(key)) for key in known]
        means = sum(key not in self._spelled for key in known)
        return normalise(np.stack([v for v in vectors if v is not None])), known, means


@dataclass(frozen=True)
class Figures:
    """What was measured of one encoder."""

    metrics: dict[str, float]
    protocol: dict[str, Any]  # counts that say what the figures are of
    class_rank: list[int]  # rank of the true class per classified object, in the rows' order


@dataclass
class HeldOut:
    """Rows of some shard sets, chosen by split. Open it with ``HeldOut.open``."""

    sets: list[ShardSet]
    names: list[str]  # of the sets, without their folders
    keep: dict[str, bool] = field(repr=False)  # uid to whether the row is held out
    categories: set[str]  # of the held-out rows, in the form of ``category_key``
    split: str | None  # None: all rows are

    @classmethod
    def open(
        cls, roots: Sequence[str | Path], split: str = "test", *, or_all: bool = False
    ) -> HeldOut:
        """The rows of ``split``; with ``or_all``, all rows of sets without any such row.

        Raises ``InputError`` for sets of several teachers, and when no row is of that split.
        """
        sets = [ShardSet.open(root) for root in roots]
        names = [Path(str(root).rstrip("/")).name for root in roots]
        listed = ", ".join(str(root) for root in roots)
        for root, shards in zip(roots[1:], sets[1:], strict=True):
            reason = sets[0].manifest.teacher.mismatch(shards.manifest.teacher)
            if reason:
                raise InputError(
                    f"--eval-shards {root}: made by another teacher than {roots[0]} ({reason}); "
                    "give sets of one teacher"
                )
        rows = [
            (uid, of, category_key(category or ""))
            for shards in sets
            for batch in shards.batches(["split", "category"])
            for uid, of, category in zip(
                batch.uid, batch.split or [], batch.category or [], strict=True
            )
        ]
        known = sorted({of for _, of, _ in rows if of is not None})
        whole = or_all and split not in known
        if not rows or (split not in known and not whole):
            raise InputError(
                f"--shards {listed}: no row of split {split!r} to evaluate on (there are: "
                f"{', '.join(known) or 'none'}); give --eval-shards, embed with --holdout, "
                "or mark some with `pipeline split`"
            )
        keep = {uid: whole or of == split for uid, of, _ in rows}
        categories = {category for uid, _, category in rows if keep[uid] and category}
        return cls(sets, names, keep, categories, None if whole else split)

    @property
    def teacher(self) -> TeacherInfo:
        """The teacher that all sets share."""
        return self.sets[0].manifest.teacher

    @property
    def n_points(self) -> int:
        """Points that every cloud has."""
        return min(shards.manifest.n_points for shards in self.sets)

    def uids(self) -> list[str]:
        """Those of the held-out rows, in order."""
        return [uid for uid, kept in self.keep.items() if kept]

    def identity(self) -> dict[str, Any]:
        """Names and hashes of what is measured on; equal ones mean equal rows and embeddings."""
        uids = self.uids()
        return {
            "shards": [
                {"name": name, "config_hash": shards.manifest.config_hash}
                for name, shards in zip(self.names, self.sets, strict=True)
            ],
            "split": self.split,
            "n_rows": len(uids),
            "uid_hash": content_hash("\n".join(sorted(uids))),
            "part_hash": part_hash(self.sets),
        }

    def require_unseen(self, trained: Iterable[str]) -> None:
        """Raise ``InputError`` when one of the uids that are trained on is held out."""
        seen = [uid for uid in trained if self.keep.get(uid)]
        if seen:
            raise InputError(
                f"--eval-shards: {len(seen)} of its objects are trained on, {seen[0]} among them; "
                "give other shards, or leave their split out of data.splits"
            )

    def measure(self, encode: Encode, n_points: int) -> Figures:
        """Embed the rows with ``encode``, which gets the first ``n_points``, and compare.

        Raises ``InputError`` when the clouds are smaller.
        """
        if self.n_points < n_points:
            raise InputError(
                f"{', '.join(self.names)}: clouds of {self.n_points} points, the model takes "
                f"{n_points}; make shards with at least that many (--points)"
            )
        gathered = _Gathered()
        captions, names = (TextGatherer(source) for source in PREFERRED)
        classes = ClassTexts(self.categories)
        views = all(shards.manifest.n_views > 0 for shards in self.sets)
        for shards, group, rows in self._groups():
            if not len(rows) and classes.complete:
                continue
            batch = shards.read(group, ["category", "texts", "text_sources", "text_embeds"])
            chosen = set(rows.tolist())
            for row in range(len(batch)):
                classes.add(batch, row, held_out=row in chosen)
                if row in chosen:
                    captions.add(batch, row)
                    names.add(batch, row)
            if not len(rows):
                continue
            columns = ["xyz", "rgb", "has_color"]
            clouds = shards.read(group, [*columns, "image_embeds"] if views else columns)
            assert clouds.xyz is not None
            assert clouds.rgb is not None
            assert clouds.has_color is not None
            gathered.shapes.append(
                encode(
                    clouds.xyz[rows, :n_points],
                    clouds.rgb[rows, :n_points],
                    clouds.has_color[rows],
                )
            )
            if views:
                assert clouds.image_embeds is not None
                gathered.images.append(normalise(clouds.image_embeds[rows, 0]))
            assert batch.category is not None
            gathered.categories += [batch.category[int(row)] for row in rows]
        source, texts = PREFERRED[0], captions.finish(self.teacher.width)
        if not len(texts.embeds):
            source, texts = PREFERRED[1], names.finish(self.teacher.width)
        return gathered.figures(classes, texts, source)

    def _groups(self) -> Iterator[tuple[ShardSet, Any, I64]]:
        """Every row group with the places of its held-out rows."""
        for shards in self.sets:
            for group in shards.row_groups:
                uids = shards.read(group, []).uid
                yield shards, group, np.flatnonzero([self.keep[uid] for uid in uids])


@dataclass
class _Gathered:
    """The held-out rows, embedded."""

    shapes: list[F32] = field(default_factory=list)
    images: list[F32] = field(default_factory=list)
    categories: list[str | None] = field(default_factory=list)

    def figures(self, classes: ClassTexts, texts: Texts, source: str) -> Figures:
        shapes = np.concatenate(self.shapes)
        found: dict[str, float] = {}
        protocol: dict[str, Any] = {"n_rows": len(shapes)}
        keys = [category_key(name) if name else "" for name in self.categories]
        table_CD, known, means = classes.table()
        number = {key: place for place, key in enumerate(known)}
        labelled = np.flatnonzero([key in number for key in keys])
        ranks = np.zeros(0, np.int64)
        if len(labelled) and len(known) > 1:
            truth = np.array([number[keys[row]] for row in labelled], np.int64)
            result = metrics.class_ranks_chunked(shapes[labelled], table_CD, truth)
            ranks = result.rank
            matrix = metrics.confusion(truth, result.predicted, len(known))
            found |= {f"zeroshot_top{k}": metrics.topk_accuracy(ranks, k) for k in TOP_K}
            found["zeroshot_class_mean"] = metrics.class_mean(matrix)
            protocol |= {"n_classes": len(known), "n_classified": len(labelled)}
            protocol |= {"classes_by_mean_of_names": means}
        if len(texts.embeds):
            by_text = metrics.rank_queries(texts.embeds, shapes, texts.rows_of.__getitem__)
            found |= {f"text_recall@{k}": metrics.recall_at_k(by_text, k) for k in RECALL_K}
            protocol |= {"text_source": source, "n_texts": len(texts.embeds)}
        if self.images:
            by_image = metrics.rank_pairs(np.concatenate(self.images), shapes)
            found |= {f"image_recall@{k}": metrics.recall_at_k(by_image, k) for k in RECALL_K}
        by_shape = metrics.rank_groups(shapes, [key or None for key in keys])
        if by_shape.answerable.any():
            found["shape_map"] = metrics.mean_average_precision(by_shape)
        return Figures(found, protocol, ranks.tolist())
