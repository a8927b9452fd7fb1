"""Which rows of which shard sets a run trains on, and which it holds out.

Rows have global numbers: set after set, part after part, in the reader's order. The held-out
slice is chosen by hash of the uid alone, so it is the same for every run on every machine, and a
shape stays on its side when the set grows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import InputError, content_hash
from pipeline.shards import Manifest, RowGroup, ShardSet, TeacherInfo
from trainer.config import Recipe


@dataclass(frozen=True)
class GroupAddress:
    """One row group and the global numbers of its rows."""

    source: int  # which shard set
    group: RowGroup
    start: int  # global number of its first row


def is_held_out(uid: str, fraction: float) -> bool:
    """Whether a shape belongs to the validation slice: hash(uid) as a number in [0, 1) < fraction.

    A shape that is held out at one fraction is held out at every larger one.
    """
    digest = hashlib.sha256(uid.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64


class Corpus:
    """The shard sets of a run, opened, checked and numbered."""

    def __init__(self, roots: Sequence[str | Path], recipe: Recipe) -> None:
        """Open the sets and read all uids.

        Raises ``InputError`` for a set that is empty, made by another teacher, with too few
        ordered points, or without embeddings that the loss reads; for a uid that comes twice;
        and when a side of the split is too small.
        """
        if not roots:
            raise InputError("--shards: none given; name at least one shard set")
        self.roots = [str(root) for root in roots]
        self.sets = [ShardSet.open(root) for root in roots]
        self.data, self.loss = recipe.data, recipe.loss
        for root, shards in zip(self.roots, self.sets, strict=True):
            self._check(root, shards.manifest)
        self.groups: list[GroupAddress] = []
        uids: list[str] = []
        n_texts = 0
        columns = ["split", *(["text_sources"] if self.loss.needs_text else [])]
        splits: list[str | None] = []
        columns += ["category"] if self.loss.needs_category else []
        names: list[str | None] = []
        for source, (root, shards) in enumerate(zip(self.roots, self.sets, strict=True)):
            if len(shards) == 0:
                raise InputError(f"--shards {root}: no rows; run `pipeline embed` to fill it")
            for group in shards.row_groups:
                self.groups.append(GroupAddress(source, group, len(uids)))
                batch = shards.read(group, columns)
                uids += batch.uid
                splits += batch.split or []
                names += batch.category or []
                n_texts += sum(len(sources) > 0 for sources in batch.text_sources or [])
        self._check_duplicates(uids)
        if self.loss.needs_text and n_texts == 0:
            raise InputError(
                f"--shards {', '.join(self.roots)}: no row has a text; add captions, or --set "
                "loss.align.text_weight=0 loss.distill.intra_text=false loss.distill.cross=false"
            )
        self.n_with_text = n_texts
        # Per row the number of its category name, -1 for none; None where no loss reads it.
        self.category: NDArray[np.int64] | None = None
        if self.loss.needs_category:
            self.category = self._numbers(names)
        held = np.array([is_held_out(uid, self.data.val_fraction) for uid in uids], np.bool_)
        self.uid_hash = content_hash("\n".join(sorted(uids)))
        used = np.array([split in (None, *self.data.splits) for split in splits], np.bool_)
        self.train_mask: NDArray[np.bool_] = used & ~held
        self.val_mask: NDArray[np.bool_] = used & held
        self._check_split()

    def __len__(self) -> int:
        return len(self.train_mask)

    def reopen(self) -> list[ShardSet]:
        """The sets opened once more: a thread must not share its files with another one."""
        return [ShardSet.open(root) for root in self.roots]

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

    def record(self) -> dict[str, Any]:
        """What a checkpoint says about its data. Names and hashes, no paths of this machine."""
        return {
            "shards": [
                {
                    "name": Path(root.rstrip("/")).name,
                    "config_hash": shards.manifest.config_hash,
                    "n_rows": len(shards),
                }
                for root, shards in zip(self.roots, self.sets, strict=True)
            ],
            "n_rows": len(self),
            "n_train": self.n_train,
            "n_val": self.n_val,
            "splits": list(self.data.splits),
            "n_with_text": self.n_with_text if self.loss.needs_text else None,
            "uid_hash": self.uid_hash,
        }

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
            raise InputError(
                f"--shards {root}: no image embeddings; embed it with views, or --set "
                "loss.align.image_weight=0 loss.distill.intra_image=false loss.distill.cross=false"
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

    def _check_split(self) -> None:
        batch, fraction = self.data.batch_size, self.data.val_fraction
        if self.n_train < batch:
            raise InputError(
                f"--shards: {self.n_train} rows to train on are fewer than a batch of {batch}; "
                f"--set data.batch_size={max(2, self.n_train // 2)} or embed more shapes"
            )
        if fraction > 0 and self.n_val < 2:
            raise InputError(
                f"--shards: data.val_fraction={fraction} holds out {self.n_val} of {len(self)} "
                f"rows; --set data.val_fraction={min(0.5, max(0.1, 10 / len(self))):.2g}, "
                "or 0 for no validation"
            )
