"""What tells which objects are alike, for batches that hold some that are (``data.near``).

The objects of a batch drawn at random are mostly easy to tell apart. Put together from groups of
objects that are alike it has harder negatives, and its relations more to tell. Who is alike to
whom is told by the teacher's pictures or texts, or by the student that the run begins with
(OpenShape's second stage, 2305.10764: batches of seeds and neighbours by the features of the first
stage). ``trainer.order`` makes the groups.

Vectors are whole numbers, and so are their products: the order of an epoch must be the same on
every machine that works on a batch.

Shape suffixes: N rows of all sets, D embedding width.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.common import InputError, atomic_path
from pipeline.console import ProgressBar
from trainer.distributed import rank, world_size
from trainer.index import Corpus, GroupAddress
from trainer.order import NEAR_SCALE
from trainer.parallel import collect, first_does

FILE = "near.npy"  # in the run folder: the weights that a run began with may be gone later

Vectors = NDArray[np.int16]


def find_vectors(
    corpus: Corpus,
    out: Path,
    device: torch.device,
    *,
    restored: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Vectors | None:
    """(N, D) by which rows are alike, zeros where nothing is known; None where nobody asks.

    ``restored``: those that the run in ``out`` has kept of a student. ``dtype``: it computes in.

    Raises ``InputError`` where no shard set has the embeddings that ``data.near_by`` names, the
    student cannot be loaded, or what was kept is damaged.
    """
    data = corpus.data
    if data.near == 1:
        return None
    if data.near_by != "student":
        return _by_teacher(corpus, data.near_by)
    if restored:
        return first_does(lambda: _kept(corpus, out / FILE))
    shares = collect(_by_student(corpus, device, dtype))
    vectors = np.zeros((len(corpus), shares[0][1].shape[1]), np.int16)
    for rows, values in shares:
        vectors[rows] = values
    return vectors


def keep_vectors(corpus: Corpus, vectors: Vectors | None, out: Path) -> None:
    """Write those of a student into the run folder, for a run that goes on."""
    if vectors is None or corpus.data.near_by != "student":
        return
    with atomic_path(out / FILE) as temporary, temporary.open("wb") as file:
        np.save(file, vectors)


def _kept(corpus: Corpus, file: Path) -> Vectors:
    try:
        vectors: Vectors = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{file}: missing or damaged, and the run cannot continue with the same batches; "
            "start another run"
        ) from error
    if len(vectors) != len(corpus):
        raise InputError(f"{file}: not of these shards; give the same sets, in the same order")
    return vectors


def whole(vectors_ND: NDArray[np.float32] | NDArray[np.float64]) -> Vectors:
    """Unit vectors times ``NEAR_SCALE``, rounded; zeros, and what is not finite, become zeros.

    Half-precision values, and sums of some, come out the same on every machine: their squares are
    added as whole numbers.

    >>> whole(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[1229, 1638], [0, 0]]
    """
    known_N1 = np.isfinite(vectors_ND).all(1, keepdims=True)
    vectors_ND = np.where(known_N1, vectors_ND, 0)
    largest = np.abs(vectors_ND).max(1, keepdims=True, initial=0.0).astype(np.float64)
    fine = np.rint(vectors_ND / np.where(largest > 0, largest, 1.0) * 2**20).astype(np.int64)
    norm = np.sqrt((fine * fine).sum(1, keepdims=True).astype(np.float64))
    vectors: Vectors = np.rint(fine * NEAR_SCALE / np.maximum(norm, 1.0)).astype(np.int16)
    return vectors


def _by_teacher(corpus: Corpus, modality: str) -> Vectors:
    """Mean over the views or texts of each training row, exact but for the last rounding."""
    column = f"{modality}_embeds"
    vectors = np.zeros((len(corpus), corpus.teacher.width), np.int16)

    def read(address: GroupAddress) -> None:
        batch = corpus.of_thread()[address.source].read(address.group, [column])
        sums = np.zeros((address.group.n_rows, corpus.teacher.width))
        if modality == "text":
            for place in range(len(sums)):
                sums[place] = batch.texts_of(place).astype(np.float64).sum(0)
        elif batch.image_embeds is not None:
            sums = batch.image_embeds.astype(np.float64).sum(1)
        rows = slice(address.start, address.start + len(sums))
        vectors[rows] = np.where(corpus.train_mask[rows, None], whole(sums), 0)

    with ThreadPoolExecutor(corpus.data.readers) as pool:
        list(pool.map(read, corpus.groups))
    if not vectors.any():
        what, other = ("text", "image") if modality == "text" else ("image", "text")
        raise InputError(
            f"--shards {', '.join(corpus.roots)}: no {what} embeddings, which data.near_by "
            f"compares; --set data.near_by={other}, or data.near=1"
        )
    return vectors


def _by_student(
    corpus: Corpus, device: torch.device, dtype: torch.dtype
) -> tuple[NDArray[np.int64], Vectors]:
    """Training rows of this process's share of the row groups, and their vectors.

    Of the student that the run begins with, of clouds as they are stored.
    """
    from trainer.student import load_student

    student = load_student(corpus.recipe.model.init, device.type)
    for root, shards in zip(corpus.roots, corpus.sets, strict=True):
        if shards.manifest.n_points < student.n_points:
            raise InputError(
                f"--shards {root}: {shards.manifest.n_points} points in a cloud, "
                f"{corpus.recipe.model.init} takes {student.n_points}; --set data.near_by=image"
            )
    every_row, every_vector = [np.zeros(0, np.int64)], [np.zeros((0, student.width), np.int16)]
    sets, share = corpus.reopen(), corpus.groups[rank() :: world_size()]
    total = corpus.n_train // world_size()
    half = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    with half, ProgressBar("embedding, to find what is alike", total, "shapes") as bar:
        for address in share:
            end = address.start + address.group.n_rows
            kept = np.flatnonzero(corpus.train_mask[address.start : end])
            if len(kept) == 0:
                continue
            batch = sets[address.source].read(address.group, ["xyz", "rgb", "has_color"])
            assert batch.xyz is not None
            assert batch.rgb is not None
            assert batch.has_color is not None
            found = student.encode_stored(batch.xyz[kept], batch.rgb[kept], batch.has_color[kept])
            every_row.append(address.start + kept)
            every_vector.append(whole(found))
            bar.advance(len(kept))
    return np.concatenate(every_row), np.concatenate(every_vector)
