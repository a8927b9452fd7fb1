"""Dataset ``3d-future``: the furniture models of 3D-FUTURE, as unpacked.

``<model_id>/raw_model.obj`` (or ``normalized_model.obj``) with ``model.mtl``, ``texture.png`` and
``image.jpg``, in the root, in ``3D-FUTURE-model`` or in its parts ``3D-FUTURE-model-part<n>``.
``model_info.json`` is a list of ``{"model_id", "super-category", "category", "style", "theme",
"material"}``, where any but the first may be null. +y is up.
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
    make_record,
    names_in,
    read_json,
)
from pipeline.datasets.sources import Source, SourceOptions

_INFO = "model_info.json"
_MESHES = ("raw_model.obj", "normalized_model.obj")
_SPELLED = {"others": "", "none": "", "null": ""}  # labels that say nothing


@dataclass(frozen=True)
class Future3dDataset(LayoutDataset):
    """Models by identifier, part by part. ``uid`` is ``3d-future/<model_id>``.

    A folder is a model if it holds a mesh or ``model_info.json`` names it; models of parts that
    were not downloaded are not there. The category is the finer one, or else the super-category.
    Texts: both, and one that joins the category with style, theme and material. ``texture.png``
    is the texture of a model whose material file names none.
    """

    info: Path | None = None  # default: model_info.json in the root, or beside the models

    NAME: ClassVar[str] = "3d-future"
    EXPECTED: ClassVar[str] = (
        f"{_INFO} and folders <model_id>/ with raw_model.obj, or 3D-FUTURE-model* with them"
    )
    GET: ClassVar[str] = (
        "register for 3D-FUTURE at tianchi.aliyun.com (dataset 98063), download 3D-FUTURE-model "
        f"(one archive or four parts), unpack it, and give the folder with {_INFO} as --root"
    )
    TEXTURE: ClassVar[str | None] = "texture.png"

    def _check(self) -> None:
        super()._check()
        if self.info is not None and not self.info.is_file():
            raise InputError(f"--metadata {self.info} is not a file: give the {_INFO} of 3D-FUTURE")

    def _objects(self) -> Iterator[Record]:
        path = self._info_path()
        if path is None:
            raise self._wrong_layout(self.root)
        told = self._told(path)
        seen: set[str] = set()
        for part in self._parts():
            place = self.root / part
            for model in names_in(place):
                meshes = [name for name in _MESHES if (place / model / name).is_file()]
                if model in seen or not (meshes or model in told):
                    continue
                seen.add(model)
                category, texts = _category_and_texts(told.get(model, {}))
                yield make_record(
                    self.NAME,
                    model,
                    f"{part}{model}",
                    meshes[0] if meshes else _MESHES[0],
                    category=category,
                    texts=texts,
                )

    def _parts(self) -> list[str]:
        """The folders that hold models, relative to the root with a slash; the root's first."""
        parts = [""]
        for name in names_in(self.root):
            if name.lower().startswith("3d-future-model"):
                parts.append(f"{name}/")
                if (self.root / name / "3D-FUTURE-model").is_dir():  # unzip -d of an archive
                    parts.append(f"{name}/3D-FUTURE-model/")
        return parts

    def _info_path(self) -> Path | None:
        if self.info is not None:
            return self.info
        places = (self.root / part / _INFO for part in self._parts())
        return next((path for path in places if path.is_file()), None)

    def _tables(self) -> list[Path]:
        path = self._info_path()
        return [path] if path is not None and path.is_file() else []

    def _told(self, path: Path) -> dict[str, dict[str, Any]]:
        """The entries of ``model_info.json`` by model."""
        entries: Any = read_json(path, self.GET)
        told = {
            str(entry["model_id"]): entry
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and entry.get("model_id")
        }
        if not told:
            raise InputError(f"{path}: expected a list of objects with model_id; {self.GET}")
        return told


def _label(entry: dict[str, Any], name: str) -> str:
    words = as_words(entry.get(name))
    return _SPELLED.get(words, words)


def _category_and_texts(entry: dict[str, Any]) -> tuple[str, Texts]:
    upper, category = _label(entry, "super-category"), _label(entry, "category")
    details = [_label(entry, name) for name in ("style", "theme", "material")]
    texts: Texts = [(category, "category"), (upper, "category")]
    said = [word for word in [category or upper, *details] if word]
    if any(details):
        texts.append((", ".join(said), "attributes"))
    return category or upper, texts


def _build(options: SourceOptions) -> Future3dDataset:
    assert options.root is not None
    return Future3dDataset(options.root, up_axis=options.up_axis or "auto", info=options.metadata)


SOURCE = Source(
    name="3d-future",
    summary="3D-FUTURE: textured furniture with category, style, theme and material",
    licence="3D-FUTURE terms of use: non-commercial research, after registration",
    size="16,563 models; about 19 GB packed",
    get=Future3dDataset.GET,
    layout=Future3dDataset.EXPECTED,
    options=("root", "metadata", "up_axis"),
    required=("root",),
    build=_build,
)
