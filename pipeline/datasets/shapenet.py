"""Dataset ``shapenet``: ShapeNetCore v1 and v2, as unpacked from the archives of shapenet.org.

``<synset>/<model>/model.obj`` (v1) or ``<synset>/<model>/models/model_normalized.obj`` (v2), beside
``taxonomy.json``: a list of ``{"synsetId", "name", "children", "numInstances"}`` where ``name``
holds the lemmas of the WordNet synset with commas between. Models are aligned: +y is up. The
official split (SHREC 2016) is ``all.csv`` with ``id,synsetId,subSynsetId,modelId,split``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.datasets.layouts import (
    LayoutDataset,
    Texts,
    as_words,
    csv_rows,
    make_record,
    names_in,
    read_json,
)
from pipeline.datasets.sources import Source, SourceOptions

_SYNSET_DIGITS = 8
_SPLIT_COLUMNS = ("synsetId", "subSynsetId", "modelId", "split")
_GET_SPLIT = (
    "fetch http://shapenet.cs.stanford.edu/shapenet/obj-zip/SHREC16/all.csv into the --root"
)
_GET_TAXONOMY = "take taxonomy.json from the archive of ShapeNetCore and put it into the --root"


@dataclass(frozen=True)
class ShapeNetDataset(LayoutDataset):
    """Models by synset, then by identifier. ``uid`` is ``shapenet/<synset>/<model>``.

    The category is the first lemma of the synset; the texts are all its lemmas, and those of the
    finer synset where ``all.csv`` names one. The split comes from ``all.csv``, where it is there;
    that table (51,000 short rows) is held while records are listed.
    """

    taxonomy: Path | None = None  # default: taxonomy.json in the root

    NAME: ClassVar[str] = "shapenet"
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    EXPECTED: ClassVar[str] = (
        "folders <synset>/<model>/ with model.obj (v1) or models/model_normalized.obj (v2), "
        "such as 03001627"
    )
    GET: ClassVar[str] = (
        "ask for access at shapenet.org (or the ShapeNet organisation on Hugging Face), download "
        "ShapeNetCore v2 (or v1), unzip it, and give the folder of the synsets as --root; put "
        "taxonomy.json of the archive there, and all.csv (SHREC16) for the official split"
    )

    def _objects(self) -> Iterator[Record]:
        synsets = [name for name in names_in(self.root) if _is_synset(name)]
        if not synsets:
            raise self._wrong_layout(self.root)
        lemmas = self._lemmas()
        split_path = self.root / "all.csv"
        if self.split is not None and not split_path.is_file():
            raise InputError(f"--split {self.split}: {split_path} is not there; {_GET_SPLIT}")
        splits = _read_splits(split_path) if split_path.is_file() else {}
        seen = False
        for synset in synsets:
            if synset not in lemmas:
                raise InputError(
                    f"{self._taxonomy_path()} does not name {synset}, which --root holds; "
                    f"{_GET_TAXONOMY}"
                )
            for model in names_in(self.root / synset):
                folder = f"{synset}/{model}"
                newer = (self.root / folder / "models").is_dir()
                # The first model stands for the layout; a later one may lack its mesh, and fails.
                if not seen and not newer and not (self.root / folder / "model.obj").is_file():
                    raise self._wrong_layout(self.root / folder)
                seen = True
                finer, split = splits.get((synset, model), (synset, None))
                words = [*lemmas[synset], *lemmas.get(finer, ())]
                texts: Texts = [(word, "category") for word in dict.fromkeys(words)]
                yield make_record(
                    self.NAME,
                    folder,
                    folder,
                    "models/model_normalized.obj" if newer else "model.obj",
                    category=as_words(lemmas[synset][0]),
                    split=split,
                    texts=texts,
                )

    def _check(self) -> None:
        super()._check()
        if self.taxonomy is not None and not self.taxonomy.is_file():
            raise InputError(
                f"--metadata {self.taxonomy} is not a file: give the taxonomy.json of ShapeNetCore"
            )

    def _tables(self) -> list[Path]:
        return [path for path in (self._taxonomy_path(), self.root / "all.csv") if path.is_file()]

    def _taxonomy_path(self) -> Path:
        return self.taxonomy or self.root / "taxonomy.json"

    def _lemmas(self) -> dict[str, list[str]]:
        """The lemmas of every synset that the taxonomy names."""
        path = self._taxonomy_path()
        entries: Any = read_json(path, _GET_TAXONOMY)
        found: dict[str, list[str]] = {}
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict) or not entry.get("synsetId"):
                continue
            words = [as_words(word) for word in str(entry.get("name") or "").split(",")]
            if any(words):
                found[_padded(entry["synsetId"])] = [word for word in words if word]
        if not found:
            raise InputError(
                f"{path}: expected a list of objects with synsetId and name; {_GET_TAXONOMY}"
            )
        return found


def _is_synset(name: str) -> bool:
    return len(name) == _SYNSET_DIGITS and name.isascii() and name.isdigit()


def _padded(synset: object) -> str:
    """A synset with its leading zeros, which tools that read numbers drop."""
    return str(synset).strip().zfill(_SYNSET_DIGITS)


def _read_splits(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(synset, model) -> (finer synset, split)."""
    return {
        (_padded(row["synsetId"]), row["modelId"]): (_padded(row["subSynsetId"]), row["split"])
        for row in csv_rows(path, open, _SPLIT_COLUMNS, _GET_SPLIT)
        if row["split"]
    }


def _build(options: SourceOptions) -> ShapeNetDataset:
    assert options.root is not None
    return ShapeNetDataset(
        options.root,
        split=options.split,
        up_axis=options.up_axis or "auto",
        taxonomy=options.metadata,
    )


SOURCE = Source(
    name="shapenet",
    summary="ShapeNetCore v1 and v2: models of 55 classes, names of WordNet, the SHREC split",
    licence="ShapeNet terms: non-commercial research and education, after registration",
    size="51,300 models; about 25 GB (v2) or 30 GB (v1) packed",
    get=ShapeNetDataset.GET,
    layout=ShapeNetDataset.EXPECTED,
    options=("root", "metadata", "up_axis", "split"),
    required=("root",),
    build=_build,
)
