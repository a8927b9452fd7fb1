"""Rows of shards in memory, and which of an object's views and texts a batch has.

An object has V views, perhaps a thumbnail, and K texts of one or more sources. Ways to choose:

- ``one``: one of them, each as likely. For images the thumbnail, where there is one, stands for
  the view with probability ``data.thumbnail`` (OpenShape: 0.5).
- ``source`` (texts): a source, each as likely, then a text of it. With the sources name, caption
  and retrieved this is what OpenShape does.
- ``mean``: the normalised mean of all.
- ``all``: every one is a positive of its object; the normalised mean stands for the object in
  relations and in validation.

``mean`` and ``all`` count the thumbnail as a view unless ``data.thumbnail`` is 0. With
``data.image_views`` they are of that many views drawn anew for each epoch, without repeats, and
the thumbnail stands for one of them with its probability (MixCon3D: 4 views).

Shape suffixes: B rows of a batch, R rows of a block, D embedding width, S vectors of all objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.shards import ShardSet
from trainer.config import DataConfig
from trainer.index import Corpus, GroupAddress

IntArray = NDArray[np.int64]
HalfArray = NDArray[np.float16]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """Some rows in memory; embeddings of all rows lie after another (``offsets``, R + 1)."""

    row: IntArray  # (R,) global row numbers, ascending
    xyz: NDArray[np.int16]  # (R, N, 3)
    rgb: NDArray[np.uint8]
    image: HalfArray  # (sum V, D)
    image_offsets: IntArray
    thumbnail: HalfArray  # (number of thumbnails, D)
    thumbnail_offsets: IntArray
    text: HalfArray  # (sum K, D)
    text_offsets: IntArray
    # (sum K,) share of a text in its row when sources are equally likely, summed up over the row,
    # plus the row's place: ascending. Empty unless texts are sampled by source.
    text_key: NDArray[np.float64]

    @property
    def n_bytes(self) -> int:
        """Size in memory."""
        return sum(array.nbytes for array in vars(self).values())


@dataclass(frozen=True)
class Chosen:
    """Vectors of one modality for the rows of a batch."""

    values: HalfArray  # (B, D); zeros where there is none
    there: BoolArray  # (B,)
    every: tuple[HalfArray, IntArray] | None = None  # (S, D), (S,) place of the object in the batch


@dataclass(frozen=True)
class Draws:
    """Numbers in [0, 1) per global row: for the view, the text, and thumbnail or not."""

    view: NDArray[np.float64]
    text: NDArray[np.float64]
    thumbnail: NDArray[np.float64]

    @classmethod
    def of(cls, seed: int, epoch: int, n_rows: int) -> Draws:
        """Those of an epoch. Epoch -1 is the validation slice: always the same."""
        rng = np.random.default_rng([seed, 7919, epoch + 1])
        return cls(rng.random(n_rows), rng.random(n_rows), rng.random(n_rows))


def read_block(
    corpus: Corpus, sets: Sequence[ShardSet], groups: Sequence[GroupAddress], mask: BoolArray
) -> Block:
    """The rows of ``groups`` that ``mask`` (over global rows) keeps, points cut to the prefix.

    ``sets`` are those of the corpus as the calling thread has opened them. Points, colours and
    views are written to their places as they are read: a second copy of a large set would not fit.
    """
    data, width = corpus.data, corpus.teacher.width
    kept = [
        (address, address.start + np.flatnonzero(mask[address.start :][: address.group.n_rows]))
        for address in sorted(groups, key=lambda item: item.start)
    ]
    kept = [(address, rows) for address, rows in kept if len(rows)]
    by_source = data.text_sampling == "source"
    thumbnails = corpus.loss.needs_image and data.thumbnail > 0
    columns = ["xyz", "rgb"]
    columns += ["image_embeds"] if corpus.loss.needs_image else []
    columns += ["thumbnail_embed"] if thumbnails else []
    if corpus.loss.needs_text:
        columns += ["text_embeds", *(["text_sources"] if by_source else [])]
    views = [s.manifest.n_views if corpus.loss.needs_image else 0 for s in sets]
    image_n = np.repeat([views[a.source] for a, _ in kept], [len(rows) for _, rows in kept])
    image_offsets = _offsets(image_n.astype(np.int64))
    row = np.concatenate([np.zeros(0, np.int64), *[rows for _, rows in kept]])
    xyz = np.empty((len(row), data.n_points, 3), np.int16)
    rgb = np.empty((len(row), data.n_points, 3), np.uint8)
    image = np.empty((image_offsets[-1], width), np.float16)
    names = ("thumbnail", "thumbnail_n", "text", "text_n", "share")
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    end = 0
    for address, rows in kept:
        keep = rows - address.start
        batch = sets[address.source].read(address.group, columns)
        assert batch.xyz is not None
        assert batch.rgb is not None
        place, end = end, end + len(keep)
        xyz[place:end] = batch.xyz[keep, : data.n_points]
        rgb[place:end] = batch.rgb[keep, : data.n_points]
        if corpus.loss.needs_image and batch.image_embeds is not None:
            found = batch.image_embeds[keep].reshape(-1, width)
            image[image_offsets[place] : image_offsets[end]] = found
        there = np.zeros(len(keep), np.bool_)
        if thumbnails and batch.thumbnail_embeds is not None and batch.has_thumbnail is not None:
            there = batch.has_thumbnail[keep]
            parts["thumbnail"].append(batch.thumbnail_embeds[keep[there]])
        parts["thumbnail_n"].append(there.astype(np.int64))
        counts = np.zeros(len(keep), np.int64)
        if batch.text_embeds is not None and batch.text_offsets is not None:
            counts = np.diff(batch.text_offsets)[keep]
            parts["text"].append(pick_all(batch.text_embeds, batch.text_offsets, keep)[0])
        parts["text_n"].append(counts)
        if by_source and batch.text_sources is not None:
            parts["share"] += [source_shares(batch.text_sources[int(at)]) for at in keep]

    def joined(name: str, empty: NDArray[Any]) -> NDArray[Any]:
        found = parts.pop(name)  # let go of once it is joined
        return np.concatenate(found) if found else empty

    none = np.zeros((0, width), np.float16)
    n_vectors = {name: joined(f"{name}_n", np.zeros(0, np.int64)) for name in ("thumbnail", "text")}
    shares = joined("share", np.zeros(0))
    owner = np.repeat(np.arange(len(n_vectors["text"])), n_vectors["text"])
    return Block(
        row=row,
        xyz=xyz,
        rgb=rgb,
        image=image,
        image_offsets=image_offsets,
        thumbnail=joined("thumbnail", none),
        thumbnail_offsets=_offsets(n_vectors["thumbnail"]),
        text=joined("text", none),
        text_offsets=_offsets(n_vectors["text"]),
        text_key=shares + owner if by_source else shares,
    )


def source_shares(sources: Sequence[str]) -> NDArray[np.float64]:
    """Summed-up probabilities of a row's texts when each source is as likely as another.

    >>> source_shares(["name", "caption", "caption"]).tolist()
    [0.5, 0.75, 1.0]
    """
    counts = {source: sources.count(source) for source in sources}
    return np.cumsum([1 / (len(counts) * counts[source]) for source in sources])


def _offsets(counts: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def pick_one(
    values_KD: HalfArray, offsets: IntArray, rows: IntArray, draw_B: NDArray[np.float64]
) -> tuple[HalfArray, BoolArray]:
    """One of each row's vectors, chosen by a number in [0, 1); zeros and False where none is."""
    counts = offsets[rows + 1] - offsets[rows]
    chosen = offsets[rows] + np.minimum((draw_B * counts).astype(np.int64), counts - 1)
    return _taken(values_KD, chosen, counts > 0)


def pick_keyed(
    values_KD: HalfArray,
    offsets: IntArray,
    key_K: NDArray[np.float64],
    rows: IntArray,
    draw_B: NDArray[np.float64],
) -> tuple[HalfArray, BoolArray]:
    """As ``pick_one``, with the probabilities of ``Block.text_key``."""
    chosen = np.searchsorted(key_K, rows + draw_B, side="right")
    # Rounding of the sums must not lead into the next row.
    chosen = np.clip(chosen, offsets[rows], np.maximum(offsets[rows + 1] - 1, offsets[rows]))
    return _taken(values_KD, chosen, offsets[rows + 1] > offsets[rows])


def _taken(values_KD: HalfArray, chosen: IntArray, there: BoolArray) -> tuple[HalfArray, BoolArray]:
    out = np.zeros((len(chosen), values_KD.shape[1]), np.float16)
    out[there] = values_KD[chosen[there]]
    return out, there


def pick_all(values_KD: HalfArray, offsets: IntArray, rows: IntArray) -> tuple[HalfArray, IntArray]:
    """All vectors of some rows, (S, D), and the place of each one's row among them, (S,)."""
    counts = offsets[rows + 1] - offsets[rows]
    owner = np.repeat(np.arange(len(rows), dtype=np.int64), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return values_KD[np.repeat(offsets[rows], counts) + within], owner


def mean_of(values_SD: HalfArray, owner: IntArray, n_rows: int) -> tuple[HalfArray, BoolArray]:
    """Normalised mean of each row's vectors; zeros and False where there is none.

    ``owner`` ascends.
    """
    out = np.zeros((n_rows, values_SD.shape[1]), np.float16)
    rows, starts = np.unique(owner, return_index=True)
    if len(rows):
        sums = np.add.reduceat(values_SD.astype(np.float32), starts, axis=0)
        out[rows] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    there = np.zeros(n_rows, np.bool_)
    there[rows] = True
    return out, there


def pick_mean(
    values_KD: HalfArray, offsets: IntArray, rows: IntArray
) -> tuple[HalfArray, BoolArray]:
    """Normalised mean of each row's vectors; zeros and False where there is none."""
    return mean_of(*pick_all(values_KD, offsets, rows), len(rows))


def sample_images(
    block: Block, local: IntArray, rows: IntArray, draws: Draws, data: DataConfig
) -> Chosen:
    """Image vectors of the rows at places ``local`` of a block, whose global numbers are ``rows``.

    See the module for the ways to choose.
    """
    if data.image_sampling == "one":
        values, there = pick_one(block.image, block.image_offsets, local, draws.view[rows])
        thumbnail = pick_one(block.thumbnail, block.thumbnail_offsets, local, np.zeros(len(rows)))
        chosen = thumbnail[1] & (draws.thumbnail[rows] < data.thumbnail)
        values[chosen] = thumbnail[0][chosen]
        return Chosen(values, there | chosen)
    views = pick_all(block.image, block.image_offsets, local)
    thumbnails = pick_all(block.thumbnail, block.thumbnail_offsets, local)
    if data.image_views:
        views, thumbnails = _some_views(views, thumbnails, draws, rows, data)
    owner = np.concatenate([views[1], thumbnails[1]])
    order = np.argsort(owner, kind="stable")
    every = np.concatenate([views[0], thumbnails[0]])[order], owner[order]
    return _summed_up(every, len(rows), data.image_sampling)


Vectors = tuple[HalfArray, IntArray]  # (S, D), and the place of each one's row


def _some_views(
    views: Vectors, thumbnails: Vectors, draws: Draws, rows: IntArray, data: DataConfig
) -> tuple[Vectors, Vectors]:
    """``data.image_views`` of each row's vectors, thumbnails among them by their probability."""
    there = draws.thumbnail[rows[thumbnails[1]]] < data.thumbnail
    thumbnails = thumbnails[0][there], thumbnails[1][there]
    wanted_B = np.full(len(rows), data.image_views)
    wanted_B[thumbnails[1]] -= 1
    owner = views[1]
    starts_B = np.searchsorted(owner, np.arange(len(rows)))
    place = np.arange(len(owner)) - starts_B[owner]
    key = _mixed((draws.view[rows] * 2.0**53).astype(np.uint64)[owner] + place.astype(np.uint64))
    order = np.lexsort((key, owner))
    kept = np.sort(order[place < wanted_B[owner]])  # the first ones of each row, by key
    return (views[0][kept], owner[kept]), thumbnails


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers that look drawn by lot, the same for the same values (SplitMix64)."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sample_texts(
    block: Block, local: IntArray, rows: IntArray, draws: Draws, data: DataConfig
) -> Chosen:
    """Text vectors, as ``sample_images``."""
    if data.text_sampling == "one":
        return Chosen(*pick_one(block.text, block.text_offsets, local, draws.text[rows]))
    if data.text_sampling == "source":
        keys, draw = block.text_key, draws.text[rows]
        return Chosen(*pick_keyed(block.text, block.text_offsets, keys, local, draw))
    every = pick_all(block.text, block.text_offsets, local)
    return _summed_up(every, len(rows), data.text_sampling)


def _summed_up(every: tuple[HalfArray, IntArray], n_rows: int, sampling: str) -> Chosen:
    values, there = mean_of(*every, n_rows)
    return Chosen(values, there, every if sampling == "all" else None)
