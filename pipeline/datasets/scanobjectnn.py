"""Dataset ``scanobjectnn``: the HDF5 files of ScanObjectNN, 15 classes of scanned objects.

``main_split/`` (with background points) and ``main_split_nobg/`` (without) hold
``training_*.h5`` and ``test_*.h5``: ``data`` (n, 2048, 3), ``label`` (n). Uy et al., "Revisiting
Point Cloud Classification", ICCV 2019. The y axis points up: the release turns its clouds about
y ("the up direction"), and scores models across its files and the y-up clouds of ModelNet40
without turning either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.common import InputError
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.layouts import LayoutDataset, first_entries, path_key, printable
from pipeline.datasets.point_files import load_cloud
from pipeline.datasets.point_stores import read_labels
from pipeline.datasets.sources import Source, SourceOptions
from pipeline.scene import MeshError

# By label, as in training_data/shape_names_ext.txt of the release.
CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table"),
    *("bed", "pillow", "sink", "sofa", "toilet"),
)
# Subset: its folder, and what its file names end with.
_FILES = {
    "OBJ_ONLY": ("main_split_nobg", "objectdataset.h5"),
    "OBJ_BG": ("main_split", "objectdataset.h5"),
    "PB_T50_RS": ("main_split", "objectdataset_augmentedrot_scale75.h5"),
}
SUBSETS = tuple(_FILES)
_PREFIXES = {"train": "training", "test": "test"}


@dataclass(frozen=True)
class ScanObjectNNDataset(LayoutDataset):
    """Clouds by subset, split and place in the file: ``scanobjectnn/<subset>/<split>/<index>``.

    The root is the folder that holds ``main_split``, or the one above it (``h5_files``). With
    ``split`` only the file of that split need be there. The one text is the class.
    """

    subset: str = SUBSETS[0]

    NAME: ClassVar[str] = "scanobjectnn"
    SPLITS: ClassVar[tuple[str, ...]] = tuple(_PREFIXES)
    EXPECTED: ClassVar[str] = "folders main_split/ and main_split_nobg/ with .h5 files"
    GET: ClassVar[str] = (
        "ask for h5_files.zip at hkust-vgd.github.io/scanobjectnn, unzip it, and give the folder "
        "h5_files as --root"
    )

    def load(self, record: Record) -> Asset:
        """Read one cloud; see ``load_cloud``. Raises ``MeshError``."""
        return load_cloud(self.root, record, self._up(), self.limits)

    def _objects(self) -> Iterator[Record]:
        for split in self.SPLITS if self.split is None else (self.split,):
            relative = self._file(split)
            for index, label in enumerate(self._labels(relative)):
                yield Record(
                    uid=f"{self.NAME}/{self.subset}/{split}/{index}",
                    dataset=self.NAME,
                    source=f"{printable(relative)}#{index}",
                    key=f"{path_key(relative)}#{index}",
                    category=CLASSES[label],
                    split=split,
                    texts=(CLASSES[label],),
                    text_sources=("category",),
                )

    def _file(self, split: str) -> str:
        """The file of a split, relative to the root. Raises ``InputError`` where it is missing."""
        folder, ending = _FILES[self.subset]
        base = self._base("h5_files")
        if not any((self.root / base / folder).is_dir() for folder, _ in _FILES.values()):
            raise self._wrong_layout(self.root)
        relative = f"{base}{folder}/{_PREFIXES[split]}_{ending}"
        if not (self.root / relative).is_file():
            found = self.root / base / folder
            raise InputError(
                f"--root {self.root}: expected {relative} for --subset {self.subset} ({split}), "
                f"found {first_entries(found) if found.is_dir() else f'no {folder}/'}; {self.GET}"
            )
        return relative

    def _labels(self, relative: str) -> list[int]:
        path = self.root / relative
        try:
            labels = read_labels(path, self.limits)
        except MeshError as error:
            raise InputError(f"{path}: {error.message}; {self.GET}") from None
        strange = np.setdiff1d(labels, np.arange(len(CLASSES)))
        if len(strange):
            raise InputError(
                f"{path}: label {strange[0]}, expected 0 to {len(CLASSES) - 1}; {self.GET}"
            )
        return [int(label) for label in labels]

    def _tables(self) -> list[Path]:
        splits = self.SPLITS if self.split is None else (self.split,)
        return [self.root / self._file(split) for split in splits]

    def _own_options(self) -> dict[str, Any]:
        return {"subset": self.subset}


def _build(options: SourceOptions) -> ScanObjectNNDataset:
    assert options.root is not None
    return ScanObjectNNDataset(
        options.root,
        split=options.split,
        up_axis=options.up_axis or "auto",
        subset=options.subset or SUBSETS[0],
    )


SOURCE = Source(
    name="scanobjectnn",
    summary="ScanObjectNN: clouds of scanned objects without colour, 15 classes, train and test",
    licence="on request, for research; see its page (scans of SceneNN and ScanNet)",
    size="2,890 clouds (OBJ_ONLY, OBJ_BG), 14,298 clouds (PB_T50_RS)",
    get=ScanObjectNNDataset.GET,
    layout=ScanObjectNNDataset.EXPECTED,
    options=("root", "up_axis", "subset", "split"),
    required=("root",),
    build=_build,
    subsets=SUBSETS,
)
