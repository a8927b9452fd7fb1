"""Dataset ``modelnet-points``: the sampled clouds of ModelNet40 that PointNet released.

Either of two layouts:

- ``modelnet40_normal_resampled``: ``<class>/<class>_<number>.txt`` (x, y, z, nx, ny, nz), and lists
  ``modelnet40_train.txt`` ... of names without suffix; files of the same names converted to npy,
  npz or ply do as well;
- ``modelnet40_ply_hdf5_2048``: ``ply_data_{train,test}<number>.h5`` with ``data``, ``label`` and
  ``normal``, and ``shape_names.txt``.

In both the y axis points up (PointNet turns them about it, "the up direction"). Their axes are the
(x, z, y) of the OFF files, a mirror image; they are taken as they were released.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.common import InputError
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.layouts import (
    LayoutDataset,
    as_words,
    lines_of,
    names_in,
    path_key,
    printable,
)
from pipeline.datasets.point_files import load_cloud
from pipeline.datasets.point_stores import read_labels
from pipeline.datasets.sources import Source, SourceOptions
from pipeline.scene import MeshError

SUBSETS = ("40", "10")
CLASSES_10 = frozenset(
    {
        *("bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table"),
        "toilet",
    }
)
_FOLDERS = ("modelnet40_normal_resampled", "modelnet40_ply_hdf5_2048")
_SUFFIXES = (".txt", ".npy", ".npz", ".ply", ".xyz", ".csv")  # the release's own first
_H5_NAME = re.compile(r"ply_data_(train|test)(\d+)\.h5")


@dataclass(frozen=True)
class ModelNetPointsDataset(LayoutDataset):
    """Clouds by name, ``modelnet-points/chair_0001``, or ``modelnet-points/ply_data_train0/17``.

    The root is the folder of one of the layouts or the one above it. The one text is the class.
    """

    subset: str = SUBSETS[0]

    NAME: ClassVar[str] = "modelnet-points"
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")
    EXPECTED: ClassVar[str] = "modelnet40_train.txt and class folders, or ply_data_train0.h5 ..."
    GET: ClassVar[str] = (
        "download modelnet40_normal_resampled.zip or modelnet40_ply_hdf5_2048.zip (named by the "
        "PointNet and PointNet++ repositories), unzip it, and give its folder as --root"
    )

    def load(self, record: Record) -> Asset:
        """Read one cloud; see ``load_cloud``. Raises ``MeshError``."""
        return load_cloud(self.root, record, self._up(), self.limits)

    def _objects(self) -> Iterator[Record]:
        base = self._base(*_FOLDERS)
        files = names_in(self.root / base, files=True)
        stores = sorted(
            (match[1] != "train", int(match[2]), name)
            for name in files
            if (match := _H5_NAME.fullmatch(name))
        )
        if stores:
            names = self._class_names(base)
            for test, _, file in stores:
                yield from self._from_h5(base + file, self.SPLITS[test], names)
        elif any(f"modelnet{self.subset}_{split}.txt" in files for split in self.SPLITS):
            for split in self.SPLITS if self.split is None else (self.split,):
                yield from self._from_list(base, split)
        else:
            raise self._wrong_layout(self.root / base)

    def _from_list(self, base: str, split: str) -> Iterator[Record]:
        path = self.root / base / f"modelnet{self.subset}_{split}.txt"
        for line in lines_of(path, Path.open, self.GET):
            name = line.strip()
            if not name:
                continue
            label = name.rpartition("_")[0]
            if not re.fullmatch(r"[\w-]+_\d+", name):
                raise InputError(f"{path}: {name[:40]!r} is not <class>_<number>; {self.GET}")
            stem = f"{base}{label}/{name}"
            suffix = next((s for s in _SUFFIXES if (self.root / (stem + s)).is_file()), ".txt")
            yield self._record(name, stem + suffix, None, label, split)

    def _from_h5(self, relative: str, split: str, names: list[str]) -> Iterator[Record]:
        path = self.root / relative
        try:
            labels = read_labels(path, self.limits)
        except MeshError as error:
            raise InputError(f"{path}: {error.message}; {self.GET}") from None
        for index, label in enumerate(labels):
            if not 0 <= label < len(names):
                raise InputError(
                    f"{path}: label {label}, expected 0 to {len(names) - 1}; {self.GET}"
                )
            if self.subset == "10" and names[label] not in CLASSES_10:
                continue
            native = f"{path.stem}/{index}"
            yield self._record(native, relative, index, names[label], split)

    def _record(
        self, native: str, relative: str, index: int | None, label: str, split: str
    ) -> Record:
        place = "" if index is None else f"#{index}"
        return Record(
            uid=f"{self.NAME}/{native}",
            dataset=self.NAME,
            source=printable(relative) + place,
            key=path_key(relative) + place,
            category=as_words(label),
            split=split,
            texts=(as_words(label),),
            text_sources=("category",),
        )

    def _class_names(self, base: str) -> list[str]:
        path = self.root / base / "shape_names.txt"
        return [line.strip() for line in lines_of(path, Path.open, self.GET) if line.strip()]

    def _tables(self) -> list[Path]:
        folder = self.root / self._base(*_FOLDERS)
        names = [f"modelnet{self.subset}_{split}.txt" for split in self.SPLITS]
        return [folder / name for name in (*names, "shape_names.txt") if (folder / name).is_file()]

    def _own_options(self) -> dict[str, Any]:
        return {"subset": self.subset}


def _build(options: SourceOptions) -> ModelNetPointsDataset:
    assert options.root is not None
    return ModelNetPointsDataset(
        options.root,
        split=options.split,
        up_axis=options.up_axis or "auto",
        subset=options.subset or SUBSETS[0],
    )


SOURCE = Source(
    name="modelnet-points",
    summary="the point clouds of ModelNet40 that PointNet released (txt or h5), train and test",
    licence="for academic use; copyright of the models is their authors'",
    size="12,311 clouds of 10,000 points, 1.7 GB packed (txt); 12,308 of 2,048, 0.4 GB (h5)",
    get=ModelNetPointsDataset.GET,
    layout=ModelNetPointsDataset.EXPECTED,
    options=("root", "up_axis", "subset", "split"),
    required=("root",),
    build=_build,
    subsets=SUBSETS,
)
