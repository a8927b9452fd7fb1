"""Which rows of which shard sets a run trains on, and which it holds out.

Rows have global numbers: set after set, part after part, in the reader's order. The held-out
slice is chosen by hash of the uid alone, so it is the same for every run on every machine, and a
shape stays on its side when the set grows.

Several sets are mixed as ``data.weights`` says: how often the rows of each come up in an epoch
(``trainer.order``).
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import InputError, canonical_json, content_hash
from pipeline.console import ProgressBar
from pipeline.shards import Manifest, RowGroup, ShardSet, TeacherInfo
from trainer.config import Recipe
from trainer.order import Order


@dataclass(frozen=True)
class GroupAddress:
    """One row group and the global numbers of its rows."""

    source: int  # which shard set
    group: RowGroup
    start: int  # global number of its first row


_OPEN_FILES = 256  # of all threads and sets together; 1,024 is a common limit of a process


def held_out(
    uids: Sequence[str], used: NDArray[np.bool_], fraction: float, most: int
) -> NDArray[np.bool_]:
    """Which of the ``used`` shapes are the validation slice: hash(uid) in [0, 1) < ``fraction``.

    Of more than ``most`` those with the smallest hashes, so that a shape that is held out at one
    fraction, or at one ``most``, is held out at every larger one.
    """
    hashes = np.array([_hash_number(uid) for uid in uids], np.uint64)
    held = used & (hashes < np.uint64(math.ceil(fraction * 2.0**64)))
    if held.sum() > most:
        held &= hashes <= np.partition(hashes[held], most - 1)[most - 1]
    return held


def _hash_number(uid: str) -> int:
    return int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8], "big")


def part_hash(sets: Sequence[ShardSet]) -> str:
    """Hash of what the rows of some sets hold: parts are named by their content."""
    return content_hash(canonical_json([shards.parts for shards in sets]))


def fraction_that_holds_out(uids: Sequence[str], wanted: int) -> float:
    """The smallest fraction, in hundredths, at which ``wanted`` of these shapes are held out."""
    last = sorted(map(_hash_number, uids))[wanted - 1]
    return (math.floor(100 * last / 2.0**64) + 1) / 100


@dataclass
class _Part:
    """What is read of one part file before the training."""

    groups: list[RowGroup] = field(default_factory=list)
    uids: list[str] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    has_text: list[bool] = field(default_factory=list)


class Corpus:
    """The shard sets of a run, opened, checked and numbered."""

    def __init__(self, roots: Sequence[str | Path], recipe: Recipe) -> None:
        """Open the sets and read all uids.

        Where no row has a text, ``recipe`` and ``loss`` are without the terms that read texts;
        where no set has views, without those that read pictures, and rows without text are not
        trained on.
        Raises ``InputError`` for a set that is empty, made by another teacher, with too few
        ordered points, or without embeddings that the loss cannot do without; for a uid that
        comes twice; and when a side of the split is too small.
        """
        if not roots:
            raise InputError("--shards: none given; name at least one shard set")
        self.roots = [str(root) for root in roots]
        self._mine = threading.local()
        self.sets = [ShardSet.open(root) for root in roots]
        self.recipe, self.data, self.loss = recipe, recipe.data, recipe.loss
        self._check_weights()
        self.left_out: list[str] = []  # keys that were changed because no set has such embeddings
        if self.loss.needs_image and not any(shards.manifest.n_views for shards in self.sets):
            self._leave_out_images()
        for root, shards in zip(self.roots, self.sets, strict=True):
            self._check(root, shards.manifest)
        self.groups: list[GroupAddress] = []
        self.n_rows_of = [0] * len(self.sets)
        uids: list[str] = []
        splits: list[str | None] = []
        names: list[str | None] = []
        has_text: list[bool] = []
        for source, part in self._read_parts():
            start = len(uids)
            for group in part.groups:
                self.groups.append(GroupAddress(source, group, start))
                start += group.n_rows
            uids += part.uids
            splits += part.splits
            names += part.names
            has_text += part.has_text
            self.n_rows_of[source] += len(part.uids)
        for root, count in zip(self.roots, self.n_rows_of, strict=True):
            if count == 0:
                raise InputError(f"--shards {root}: no rows; run `pipeline embed` to fill it")
        self._check_duplicates(uids)
        self.n_with_text = sum(has_text)
        if self.loss.needs_text and self.n_with_text == 0:
            self._leave_out_texts()
        # Per row the number of its category name, -1 for none; None where no loss reads it.
        self.category: NDArray[np.int64] | None = None
        if self.loss.needs_category:
            self.category = self._numbers(names)
        self.uid_hash = content_hash("\n".join(sorted(uids)))
        self.row_hash = content_hash("\n".join(uids))  # of their order too: rows go by numbers
        used = np.array([split in (None, *self.data.splits) for split in splits], np.bool_)
        self._require_split(used, splits)
        if self.loss.needs_text and not self.loss.needs_image:
            used &= np.array(has_text, np.bool_)  # no term reads anything of the others
        held = held_out(uids, used, self.data.val_fraction, self.data.val_rows)
        self.train_mask: NDArray[np.bool_] = used & ~held
        self.val_mask: NDArray[np.bool_] = held
        masks = (np.packbits(mask).tobytes() for mask in (self.train_mask, self.val_mask))
        self.split_hash = content_hash(*masks)
        self._check_split([uid for uid, kept in zip(uids, used, strict=True) if kept])

    def __len__(self) -> int:
        return len(self.train_mask)

    def reopen(self) -> list[ShardSet]:
        """The sets opened once more: a thread must not share its files with another one."""
        threads = self.data.readers + 2  # that read: these, validation and the one that asks first
        share = max(2, _OPEN_FILES // (threads * len(self.roots)))
        return [ShardSet.open(root, open_files=share) for root in self.roots]

    def of_thread(self) -> list[ShardSet]:
        """The sets as the calling thread alone reads them, opened when it first asks."""
        if not hasattr(self._mine, "sets"):
            self._mine.sets = self.reopen()
        sets: list[ShardSet] = self._mine.sets
        return sets

    def order(self, seed: int, vectors: NDArray[np.int16] | None = None) -> Order:
        """The order of the training rows for a seed.

        ``vectors``: by which ``data.near`` of them at a time are alike (``trainer.near``).
        """
        order = Order(
            np.array([address.start for address in self.groups], np.int64),
            np.array([address.group.n_rows for address in self.groups], np.int64),
            np.array([address.source for address in self.groups], np.int64),
            self.train_mask,
            weights=self.data.weights,
            seed=seed,
            batch_size=self.data.batch_size,
            window=self.data.shuffle_groups,
            near=self.data.near,
            vectors=vectors,
        )
        train = self.recipe.train
        epochs = train.steps / max(order.steps, 1) if train.steps else train.epochs
        # 0.07 of 100 epochs are 7.000000000000001 in floating point.
        order.near_from = math.ceil(self.data.near_after * epochs - 1e-9)
        return order

    @property
    def teacher(self) -> TeacherInfo:
        """The teacher that all sets share."""
        return self.sets[0].manifest.teacher

    @cached_property
    def n_train(self) -> int:
        """Rows to train on."""
        return int(self.train_mask.sum())

    @property
    def n_val(self) -> int:
        """Rows held out for validation."""
        return int(self.val_mask.sum())

    @property
    def one_category(self) -> bool:
        """Whether the loss reads categories, and all rows to train on are of one."""
        if self.category is None:
            return False
        found = np.unique(self.category[self.train_mask])
        return len(found) == 1 and bool(found[0] >= 0)

    def record(self) -> dict[str, Any]:
        """What a checkpoint says about its data. Names and hashes, no paths of this machine."""
        return {
            "shards": [
                {
                    "name": Path(root.rstrip("/")).name,
                    "config_hash": shards.manifest.config_hash,
                    "n_rows": count,
                    "weight": weight,
                }
                for root, shards, count, weight in zip(
                    self.roots,
                    self.sets,
                    self.n_rows_of,
                    self.data.weights or [1.0] * len(self.sets),
                    strict=True,
                )
            ],
            "n_rows": len(self),
            "n_train": self.n_train,
            "n_val": self.n_val,
            "splits": list(self.data.splits),
            "n_with_text": self.n_with_text if self.loss.needs_text else None,
            "uid_hash": self.uid_hash,
            "row_hash": self.row_hash,
            "split_hash": self.split_hash,
            "part_hash": part_hash(self.sets),
        }

    def describe(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Uid and shard set of some rows, and which of their embeddings are not finite.

        For the report of a diverged run: each row group is read anew.
        """
        starts = np.array([address.start for address in self.groups])
        columns = ["image_embeds", "text_embeds", "thumbnail_embed"]
        found = []
        for row in rows:
            address = self.groups[int(np.searchsorted(starts, row, side="right")) - 1]
            batch = self.sets[address.source].read(address.group, columns)
            place = int(row) - address.start
            vectors = {
                "image": None if batch.image_embeds is None else batch.image_embeds[place],
                "text": batch.texts_of(place),
                "thumbnail": None
                if batch.thumbnail_embeds is None
                else batch.thumbnail_embeds[place],
            }
            wrong = [k for k, v in vectors.items() if v is not None and not np.isfinite(v).all()]
            found.append(
                {
                    "uid": batch.uid[place],
                    "shards": self.roots[address.source],
                    "not_finite": wrong,
                }
            )
        return found

    def _read_parts(self) -> list[tuple[int, _Part]]:
        """Uids and the like of all parts of all sets, in order, by several threads."""
        columns = ["split", *(["text_sources"] if self.loss.needs_text else [])]
        columns += ["category"] if self.loss.needs_category else []

        def read(job: tuple[int, str]) -> tuple[int, _Part]:
            source, name = job
            shards, part = self.of_thread()[source], _Part()
            part.groups = shards.groups_of(name)
            for group in part.groups:
                batch = shards.read(group, columns)
                part.uids += batch.uid
                part.splits += batch.split or []
                part.names += batch.category or []
                part.has_text += [len(sources) > 0 for sources in batch.text_sources or []]
            return source, part

        jobs = [(source, name) for source, s in enumerate(self.sets) for name in s.parts]
        found = []
        with (
            ThreadPoolExecutor(max(1, min(self.data.readers, len(jobs)))) as pool,
            ProgressBar("read", len(jobs), "parts", after_s=2.0) as bar,
        ):
            for part in pool.map(read, jobs):
                found.append(part)
                bar.advance(1)
        return found

    def _leave_out_texts(self) -> None:
        """Switch off what reads texts. Raises ``InputError`` where nothing would align."""
        align, distill = self.loss.align, self.loss.distill
        images_cross = distill.cross and distill.cross_image and distill.cross_rows == "same"
        relations = distill.enabled and (distill.intra_image or images_cross)
        if align.image_weight == 0 and (align.text_weight > 0 or not relations):
            raise InputError(
                f"--shards {', '.join(self.roots)}: no row has a text, and the recipe aligns with "
                "texts alone; add captions, or --set loss.align.image_weight=1"
            )
        changes: dict[str, dict[str, Any]] = {"align": {}, "distill": {}}
        for name in ("text_weight", "joint_weight"):
            if getattr(align, name) > 0:
                changes["align"][name] = 0.0
        if align.drop_same_text:
            changes["align"]["drop_same_text"] = False
        if distill.enabled and not relations:
            changes["distill"]["enabled"] = False
        elif distill.enabled:
            wanted = {"intra_text": False, "cross": images_cross, "cross_text": False}
            if not images_cross:
                del wanted["cross_text"]  # a part of what is off as a whole
            changes["distill"] |= {k: v for k, v in wanted.items() if getattr(distill, k) != v}
        self._change(changes)

    def _leave_out_images(self) -> None:
        """Switch off what reads pictures. Raises ``InputError`` where nothing would align."""
        if self.loss.align.text_weight == 0:
            raise InputError(
                f"--shards {', '.join(self.roots)}: no image embeddings, and the recipe aligns "
                "with pictures alone; embed it with views, or --set loss.align.text_weight=1"
            )
        self._change(self._without_images())

    def _without_images(self) -> dict[str, dict[str, Any]]:
        """Keys of the loss, by section, that switch off what reads pictures."""
        align, distill = self.loss.align, self.loss.distill
        changes: dict[str, dict[str, Any]] = {"align": {}, "distill": {}}
        for name in ("image_weight", "joint_weight"):
            if getattr(align, name) > 0:
                changes["align"][name] = 0.0
        texts_cross = distill.cross and distill.cross_text and distill.cross_rows == "same"
        if distill.enabled and not (distill.intra_text or texts_cross):
            changes["distill"]["enabled"] = False
        elif distill.enabled:
            wanted = {"intra_image": False, "cross": texts_cross, "cross_image": False}
            if not texts_cross:
                del wanted["cross_image"]  # a part of what is off as a whole
            changes["distill"] |= {k: v for k, v in wanted.items() if getattr(distill, k) != v}
        return changes

    def _change(self, changes: dict[str, dict[str, Any]]) -> None:
        """Change keys of the loss, and tell them in ``left_out``."""
        align, distill = self.loss.align, self.loss.distill
        self.left_out += [f"loss.{part}.{key}" for part, keys in changes.items() for key in keys]
        self.loss = self.loss.model_copy(
            update={
                "align": align.model_copy(update=changes["align"]),
                "distill": distill.model_copy(update=changes["distill"]),
            }
        )
        self.recipe = self.recipe.model_copy(update={"loss": self.loss})

    def _check_weights(self) -> None:
        weights = self.data.weights
        if weights and len(weights) != len(self.roots):
            raise InputError(
                f"data.weights: {len(weights)} numbers for {len(self.roots)} shard sets; "
                "give one for each --shards, in their order"
            )

    def _check(self, root: str, manifest: Manifest) -> None:
        reason = self.teacher.mismatch(manifest.teacher)
        if reason:
            raise InputError(
                f"--shards {root}: made by {manifest.teacher.label}, {self.roots[0]} by "
                f"{self.teacher.label} ({reason}); train on sets of one teacher"
            )
        if manifest.n_points < self.data.n_points:
            raise InputError(
                f"--shards {root}: {manifest.n_points} points in a cloud, the recipe reads "
                f"{self.data.n_points}; --set data.n_points={manifest.n_points} or less"
            )
        if self.loss.needs_image and manifest.n_views == 0:
            options = "".join(
                f" --set loss.{part}.{key}={json.dumps(value)}"
                for part, keys in self._without_images().items()
                for key, value in keys.items()
            )
            otherwise = f"or{options}" if self.loss.align.text_weight > 0 else "or leave it out"
            raise InputError(
                f"--shards {root}: no image embeddings; embed it with views, {otherwise}"
            )

    def require_order(self, centroids: int) -> None:
        """Raise ``InputError`` unless the first ``centroids`` points are in farthest-point order.

        A cloud whose whole prefix is read as centroids needs no order.
        """
        for root, shards in zip(self.roots, self.sets, strict=True):
            ordered = shards.manifest.n_fps
            if ordered < centroids < self.data.n_points:
                raise InputError(
                    f"--shards {root}: {ordered} points are in farthest-point order, the backbone "
                    f"takes {centroids} centroids from them; embed the set again, or "
                    f"--set model.options.centroids={max(ordered, 1)}"
                )

    def _numbers(self, names: list[str | None]) -> NDArray[np.int64]:
        """Equal names of all sets get equal numbers."""
        number = {name: place for place, name in enumerate(sorted({n for n in names if n}))}
        if not number:
            raise InputError(
                f"--shards {', '.join(self.roots)}: no row has a category; "
                "--set loss.align.drop_same_category=false"
            )
        return np.array([number[name] if name else -1 for name in names], np.int64)

    def _check_duplicates(self, uids: list[str]) -> None:
        seen: set[str] = set()
        for uid in uids:
            if uid in seen:
                raise InputError(
                    f"--shards {', '.join(self.roots)}: uid {uid} comes twice; "
                    "give every set once, or remove the part written twice"
                )
            seen.add(uid)

    def _require_split(self, used: NDArray[np.bool_], splits: Sequence[str | None]) -> None:
        """Raise ``InputError`` where no row is ``used``, of splits that are not asked for."""
        if not used.any():
            known = sorted({split for split in splits if split is not None})
            better = json.dumps(["train" if "train" in known else known[0]])
            raise InputError(
                f"--shards {', '.join(self.roots)}: no row of data.splits "
                f"{json.dumps(self.data.splits)} (there are: {', '.join(known)}); "
                f"--set 'data.splits={better}'"
            )

    def _check_split(self, uids: Sequence[str]) -> None:
        """Raise ``InputError`` where the rows, whose ``uids`` are given, cannot be trained on."""
        batch, fraction = self.data.batch_size, self.data.val_fraction
        if self.n_train < batch:
            options = self._options_for(uids)
            raise InputError(
                f"--shards: {self.n_train} rows to train on are fewer than a batch of {batch}; "
                f"{f'{options} or ' if options else ''}embed more shapes"
            )
        order = self.order(0)
        for source, (root, weight) in enumerate(zip(self.roots, self.data.weights, strict=False)):
            if order.quota[source] == 0:
                raise InputError(
                    f"--shards {root}: with a weight of {weight:g} none of its rows is trained "
                    "on; raise it in data.weights, or leave the set out"
                )
            if order.quota[source] * batch > order.rows_per_epoch * len(order.rows[source]):
                raise InputError(
                    f"--shards {root}: with a weight of {weight:g} every row of it would be in a "
                    "batch twice; lower it in data.weights, or data.batch_size"
                )
        if fraction > 0 and self.n_val < 2:
            raise InputError(
                f"--shards: data.val_fraction={fraction} holds out {self.n_val} of {len(self)} "
                f"rows; {self._options_for(uids)}, or data.val_fraction=0 for no validation"
            )

    def _options_for(self, uids: Sequence[str]) -> str:
        """Options with which rows of these ``uids`` can be trained on; "" where none helps."""
        left, options = self.n_train, []
        if self.data.val_fraction > 0 and min(self.n_train, self.n_val) < 2:
            better, left = 0.0, len(uids)
            if len(uids) >= 4:
                better = fraction_that_holds_out(uids, max(2, min(10, len(uids) // 4)))
                every = np.ones(len(uids), np.bool_)
                left -= int(held_out(uids, every, better, self.data.val_rows).sum())
            options.append(f"--set data.val_fraction={better:g}")
        if left < 2:
            return ""
        if left < self.data.batch_size:
            options.append(f"--set data.batch_size={max(2, left // 2)}")
        return " ".join(options)
