"""Dataset ``modelnet``: ModelNet40 and ModelNet10, the OFF files of Princeton.

``ModelNet40/<class>/{train,test}/<class>_<number>.off``, +z up, without colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.datasets.layouts import LayoutDataset, as_words, make_record, names_in
from pipeline.datasets.sources import Source, SourceOptions

SUBSETS = ("40", "10")


@dataclass(frozen=True)
class ModelNetDataset(LayoutDataset):
    """Models by class, split and number. ``uid`` is ``modelnet/<subset>/<class>/<split>/<name>``.

    The root is the folder of the classes or the one above it. The one text is the class.
    """

    subset: str = SUBSETS[0]

    NAME: ClassVar[str] = "modelnet"
    UP: ClassVar[str] = "+z"
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")
    EXPECTED: ClassVar[str] = "folders <class>/train/ and <class>/test/ with .off files"
    GET: ClassVar[str] = (
        "download ModelNet40.zip or ModelNet10.zip from modelnet.cs.princeton.edu, unzip it, and "
        "give the folder ModelNet40 or ModelNet10 (or the one above it) as --root"
    )

    def _objects(self) -> Iterator[Record]:
        base = self._base(f"ModelNet{self.subset}")
        self._check_subset(base)
        found = False
        for label in names_in(self.root / base):
            for split in self.SPLITS:
                folder = f"{base}{label}/{split}"
                if not (self.root / folder).is_dir():
                    continue
                found = True
                for file in names_in(self.root / folder, files=True):
                    if not file.lower().endswith(".off"):
                        continue
                    yield make_record(
                        self.NAME,
                        f"{self.subset}/{label}/{split}/{file[:-4]}",
                        folder,
                        file,
                        category=as_words(label),
                        split=split,
                        texts=[(as_words(label), "category")],
                    )
        if not found:
            raise self._wrong_layout(self.root / base)

    def _check_subset(self, base: str) -> None:
        """Refuse the other subset's folder: its objects would go by a wrong name."""
        for other in SUBSETS:
            if other == self.subset or base:
                continue
            name = f"ModelNet{other}"
            if self.root.resolve().name == name or (self.root / name).is_dir():
                raise InputError(
                    f"--subset {self.subset}: --root {self.root} holds {name}; "
                    f"give --subset {other}"
                )

    def _own_options(self) -> dict[str, Any]:
        return {"subset": self.subset}


def _build(options: SourceOptions) -> ModelNetDataset:
    assert options.root is not None
    return ModelNetDataset(
        options.root,
        split=options.split,
        up_axis=options.up_axis or "auto",
        subset=options.subset or SUBSETS[0],
    )


SOURCE = Source(
    name="modelnet",
    summary="ModelNet40 and ModelNet10: uncoloured CAD models by class, train and test",
    licence="for academic use; copyright of the models is their authors'",
    size="12,311 models, 2 GB packed (40); 4,899 models, 450 MB packed (10)",
    get=ModelNetDataset.GET,
    layout=ModelNetDataset.EXPECTED,
    options=("root", "up_axis", "subset", "split"),
    required=("root",),
    build=_build,
    subsets=SUBSETS,
)
