"""Dataset ``omniobject3d``: the textured raw scans of OmniObject3D, as unpacked.

``raw_scans/<category>/<object>/Scan/Scan.obj`` with ``Scan.mtl`` and ``Scan.jpg``; an object is
named ``<category>_<number>``. Scans are in a canonical pose with +y up: the makers' own rendering
and evaluation scripts turn +y of a scan to +z of Blender. Where a scan differs, ``--up-axis``
overrides it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pipeline.datasets.base import Record
from pipeline.datasets.layouts import LayoutDataset, as_words, make_record, names_in
from pipeline.datasets.sources import Source, SourceOptions

_MESH = "Scan/Scan.obj"
_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class OmniObject3dDataset(LayoutDataset):
    """Scans by category and number. ``uid`` is ``omniobject3d/<category>/<object>``.

    The root is the data's root or its ``raw_scans``. Objects may also lie there without a folder
    for their category; then their ``uid`` has none. The one text is the category.
    """

    NAME: ClassVar[str] = "omniobject3d"
    EXPECTED: ClassVar[str] = f"raw_scans/<category>/<category>_<number>/{_MESH}"
    GET: ClassVar[str] = (
        "download raw/raw_scans of OpenXD-OmniObject3D-New from opendatalab.com (registration), "
        "unpack the archives, one per category, and give the folder with raw_scans as --root"
    )

    def _objects(self) -> Iterator[Record]:
        base = self._base("raw_scans")
        seen = False
        for category, scan, folder in self._scans(base):
            # The first object stands for the layout; a later one may lack its scan, and fails.
            if not seen and not (self.root / folder / "Scan").is_dir():
                raise self._wrong_layout(self.root / folder)
            seen = True
            words = as_words(category)
            yield make_record(
                self.NAME, scan, folder, _MESH, category=words, texts=[(words, "category")]
            )
        if not seen:
            raise self._wrong_layout(self.root / base)

    def _scans(self, base: str) -> Iterator[tuple[str, str, str]]:
        """(category, object, folder relative to the root) of every object."""
        for name in names_in(self.root / base):
            if (self.root / base / name / "Scan").is_dir():
                yield _NUMBER.sub("", name), name, f"{base}{name}"
                continue
            for scan in names_in(self.root / base / name):
                yield name, f"{name}/{scan}", f"{base}{name}/{scan}"


def _build(options: SourceOptions) -> OmniObject3dDataset:
    assert options.root is not None
    return OmniObject3dDataset(options.root, up_axis=options.up_axis or "auto")


SOURCE = Source(
    name="omniobject3d",
    summary="OmniObject3D: textured scans of everyday objects in 216 categories",
    licence="CC BY 4.0",
    size="6,000 scans, of which 90 % are public; 1.2 TB packed with all renderings and videos",
    get=OmniObject3dDataset.GET,
    layout=OmniObject3dDataset.EXPECTED,
    options=("root", "up_axis"),
    required=("root",),
    build=_build,
)
