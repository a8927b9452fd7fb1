"""ShapeNetPart (Yi et al., SIGGRAPH Asia 2016): clouds whose points are labelled with parts.

The layout of ``shapenetcore_partanno_segmentation_benchmark_v0_normal``, which the field uses:

    synsetoffset2category.txt              Airplane<tab>02691156
    train_test_split/shuffled_{train,val,test}_file_list.json   ["shape_data/02691156/<id>", ...]
    02691156/<id>.txt                      x y z nx ny nz label, a point a line, +y up

Labels are numbered through all categories; which labels a category has is read from its shapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import InputError

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

SPLITS = ("train", "val", "test")
REMEDY = "give the folder shapenetcore_partanno_segmentation_benchmark_v0_normal, as it is unpacked"
_COLUMNS = 7


@dataclass(frozen=True)
class PartShape:
    """One labelled cloud."""

    uid: str  # <synset>/<id>
    category: str
    xyz: F32  # (N, 3), as in the file
    parts: I64  # (N,)


@dataclass(frozen=True)
class PartSet:
    """A folder of labelled clouds. Open it with ``open_parts``."""

    root: Path
    categories: dict[str, str]  # by synset

    def listed(self, split: str) -> list[str]:
        """``<synset>/<id>`` of every shape of a split. Raises ``InputError``."""
        path = self.root / "train_test_split" / f"shuffled_{split}_file_list.json"
        try:
            value: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: missing; {REMEDY}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON ({error}); download it again") from error
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{path}: not a list of names; download it again")
        names = ["/".join(item.split("/")[-2:]) for item in value]
        strange = next((name for name in names if name.split("/")[0] not in self.categories), None)
        if strange is not None or any(".." in name for name in names):
            raise InputError(f"{path}: names {strange or '..'}, of no category; download it again")
        if not names:
            raise InputError(f"{path}: names no shape; download it again")
        return names

    def shapes(self, split: str, limit: int | None = None) -> Iterator[PartShape]:
        """Read the shapes of a split, one at a time. Raises ``InputError`` for a damaged file.

        ``limit`` takes that many, evenly from the list.
        """
        names = self.listed(split)
        if limit is not None and limit < len(names):
            names = [names[i * len(names) // limit] for i in range(limit)]
        for name in names:
            yield self._read(name)

    def _read(self, name: str) -> PartShape:
        path = self.root / f"{name}.txt"
        try:
            values = np.loadtxt(path, np.float64, ndmin=2)
        except OSError as error:
            raise InputError(f"{path}: missing, though a list names it; {REMEDY}") from error
        except ValueError as error:
            raise InputError(f"{path}: not rows of numbers ({error}); download it again") from error
        if values.shape[1] != _COLUMNS or not len(values) or not np.isfinite(values).all():
            raise InputError(
                f"{path}: not points of x y z nx ny nz label ({values.shape[1]} columns); "
                "download it again"
            )
        parts = values[:, -1].astype(np.int64)
        category = self.categories[name.split("/")[0]]
        return PartShape(name, category, values[:, :3].astype(np.float32), parts)


def open_parts(root: Path) -> PartSet:
    """Open a folder. Raises ``InputError`` when it is not of the layout."""
    path = root / "synsetoffset2category.txt"
    if not path.is_file():
        raise InputError(f"{root}: has no synsetoffset2category.txt; {REMEDY}")
    pairs = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise InputError(f"{path}: not lines of a name and a synset; download it again")
    return PartSet(root, {synset: name for name, synset in pairs})
