"""Dataset ``points``: any directory of point clouds, with or without colour and normals."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pipeline.datasets.base import Asset, Record
from pipeline.datasets.folder import FolderDataset, make_record
from pipeline.datasets.layouts import printable
from pipeline.datasets.point_files import SUFFIXES, count_clouds, is_point_file, load_cloud
from pipeline.datasets.sources import Source, SourceOptions
from pipeline.datasets.tables import AUTO_NAMES, Entry, Table
from pipeline.scene import MeshError

_NOT_CLOUDS = ("readme", "license", "licence")


@dataclass(frozen=True)
class PointsDataset(FolderDataset):
    """All point files under ``root``; order, uids, texts and tables are those of ``folder``.

    - What is read of each format: see ``pipeline.datasets.point_files``. ``.txt``, ``.csv`` and
      ``.asc`` files count where they begin with lines of three or more numbers; tables and files
      called README or LICENSE do not.
    - A file of n clouds gives n records, ``points/<path with suffix>/<index>``. Its name does not
      name one of them: their texts come from the table (a row whose path is ``clouds.h5/12`` is
      for one cloud, ``clouds.h5`` for all of them), their category from there or from the folder.
    - ``up_axis``: the files do not say, and ``auto`` is +y.
    """

    NAME: ClassVar[str] = "points"
    SUFFIXES: ClassVar[tuple[str, ...]] = SUFFIXES
    THING: ClassVar[tuple[str, str]] = ("point", "point files")

    def count(self) -> int:
        """How many records there are; headers of files that may hold many clouds are read."""
        self._check()
        total = 0
        for folder, files in self._folders():
            for name in files:
                clouds = self._clouds(f"{folder}/{name}" if folder else name)
                total += 1 if clouds is None else clouds
        return total

    def load(self, record: Record) -> Asset:
        """Read one cloud; see ``load_cloud``. Raises ``MeshError``."""
        up_axis = "+y" if self.up_axis == "auto" else self.up_axis
        return load_cloud(self.root, record, up_axis, self.limits)

    def _records_of(
        self, uid: str, relative: str, table: Table | None
    ) -> Iterator[tuple[Record, Entry | None]]:
        clouds = self._clouds(relative)
        if clouds is None:
            yield from super()._records_of(uid, relative, table)
            return
        shown = printable(relative)
        of_all = None if table is None else table.find(shown)
        for index in range(clouds):
            # Not ``Table.find``: it would take the index for a file's name.
            place = f"{shown}/{index}"
            own = None if table is None else table.find_whole(place)
            entry = own or of_all
            record = make_record(self.NAME, place, relative, entry)
            texts = list(zip(record.texts, record.text_sources, strict=True))
            if entry is None or not entry.names:
                texts.pop()  # what was made of the file's name
            yield (
                replace(
                    record,
                    source=f"{shown}#{index}",
                    key=f"{record.key}#{index}",
                    texts=tuple(text for text, _ in texts),
                    text_sources=tuple(source for _, source in texts),
                ),
                entry,
            )

    def _clouds(self, relative: str) -> int | None:
        """How many clouds a file holds; None for one, and where ``load`` will say why not."""
        try:
            return count_clouds(Path(os.path.realpath(self.root)) / relative, self.limits)
        except MeshError:
            return None

    def _is_mesh(self, entry: os.DirEntry[str], prefix: str, base: str) -> bool:
        if not super()._is_mesh(entry, prefix, base):
            return False
        name = entry.name.lower()
        if name.rpartition(".")[0] in _NOT_CLOUDS or (not prefix and name in AUTO_NAMES):
            return False
        if self.metadata is not None and entry.path == os.path.realpath(self.metadata):
            return False
        return is_point_file(Path(entry.path))


def _build(options: SourceOptions) -> PointsDataset:
    assert options.root is not None
    return PointsDataset(
        options.root,
        metadata=options.metadata,
        pattern=options.pattern,
        up_axis=options.up_axis or "auto",
    )


SOURCE = Source(
    name="points",
    summary=(
        "any folder of point clouds (ply, npy, npz, h5, xyz, txt, pts, csv), with or without "
        "colour and normals"
    ),
    licence="that of the files",
    size="any",
    get="give a folder of point clouds",
    options=("root", "metadata", "up_axis", "pattern"),
    required=("root",),
    build=_build,
)
