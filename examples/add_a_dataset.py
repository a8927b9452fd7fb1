"""A source of one's own: a folder of meshes with a catalogue `items.jsonl`.

    {"id": "A-17", "file": "meshes/a17.glb", "title": "Oak chair", "kind": "chair"}

    pipeline preview --dataset examples/add_a_dataset.py --root catalogue --out sheet.jpg
    pipeline embed --dataset examples/add_a_dataset.py --root catalogue --out shards/catalogue

`LayoutDataset` brings the rest: options, messages, loading, limits, `--split` and `--up-axis`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.datasets.layouts import LayoutDataset, lines_of, make_record
from pipeline.datasets.sources import Source


@dataclass(frozen=True)
class CatalogueDataset(LayoutDataset):
    """One record a line; a line that is no item ends the job before it begins."""

    NAME: ClassVar[str] = "catalogue"
    EXPECTED: ClassVar[str] = "items.jsonl and the meshes that it names"
    GET: ClassVar[str] = "export the catalogue and give the folder that holds items.jsonl as --root"

    def _objects(self) -> Iterator[Record]:
        path = self.root / "items.jsonl"
        for number, line in enumerate(lines_of(path, open, self.GET), 1):
            try:
                item = json.loads(line)
                texts = [(item["title"], "name")]
                folder, file = item["file"].split("/", 1)
                kind = item.get("kind")
                yield make_record("catalogue", item["id"], folder, file, category=kind, texts=texts)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}: line {number} is no item ({error}); mend it") from None

    def _tables(self) -> list[Path]:
        return [self.root / "items.jsonl"]  # another catalogue is another set


SOURCE = Source(
    name="catalogue",
    summary="The catalogue of our shop",
    licence="ours",
    size="some thousand meshes",
    get=CatalogueDataset.GET,
    layout=CatalogueDataset.EXPECTED,
    options=("root", "up_axis"),
    required=("root",),
    build=lambda given: CatalogueDataset(given.root or Path(), up_axis=given.up_axis or "auto"),
)
