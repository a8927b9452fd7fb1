"""A source for `--dataset`: 500 procedural objects, and every mesh of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.datasets.base import Asset, Record
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.datasets.sources import Source, SourceOptions

COUNT = 500


@dataclass(frozen=True)
class Both:
    """The one, then the other."""

    folder: FolderDataset
    procedural: ProceduralDataset

    @property
    def name(self) -> str:
        return "both"

    @property
    def options(self) -> dict[str, Any]:
        return {"folder": self.folder.options, "procedural": self.procedural.options}

    def records(self) -> Iterator[Record]:
        yield from self.procedural.records()
        yield from self.folder.records()

    def count(self) -> int:
        return COUNT + self.folder.count()

    def load(self, record: Record) -> Asset:
        return (self.procedural if record.dataset == "procedural" else self.folder).load(record)


def build(options: SourceOptions) -> Both:
    return Both(FolderDataset(options.root or Path()), ProceduralDataset(count=COUNT, seed=3))


SOURCE = Source(
    name="both",
    summary="for tests",
    licence="CC0",
    size="some",
    get="give a folder of meshes",
    options=("root",),
    required=("root",),
    build=build,
)
