"""What ``pipeline export --format openshape`` adds to OpenShape's layout, so that nothing is lost.

``meta_data/mrd3d.json`` holds the manifest of the exported set. Every object has one key more than
OpenShape's, ``mrd3d``: the columns that have no place there, and where each text went. Readers of
the release pass over both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import InputError
from pipeline.scene import MeshError
from pipeline.shards import Manifest

MANIFEST_FILE = "mrd3d.json"
KEY = "mrd3d"
COLUMNS = (
    "uid", "dataset", "source", "category", "split", "has_color", "sha256", "n_faces",
    "n_vertices", "n_bytes",
)  # fmt: skip
FORMAT = "mrd3d-openshape"
_SINGLE = ("blip_caption", "msft_caption")


@dataclass(frozen=True)
class OwnRow:
    """What an exported file says beyond OpenShape's keys."""

    columns: dict[str, Any]  # of ``COLUMNS``; checked like any row's when they are written
    places: list[tuple[str, int, str]]  # of each text: key, index under it, source

    def points(self, values: dict[Any, Any]) -> tuple[NDArray[Any], NDArray[np.uint8], bool]:
        """Points as they were, in their order. Raises ``MeshError`` when they are not."""
        xyz, rgb = values.get("xyz"), values.get("rgb")
        if not isinstance(xyz, np.ndarray) or not isinstance(rgb, np.ndarray):
            raise _broken("xyz or rgb is missing")
        if rgb.dtype.kind != "f" or not np.isfinite(rgb).all():
            raise _broken("rgb holds something else than colours")
        return xyz, np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8), self.columns["has_color"]

    def texts(self, values: dict[Any, Any]) -> list[tuple[str, str, Any]]:
        """Text, source and embedding of each text. Raises ``MeshError``."""
        found = []
        for key, index, source in self.places:
            texts, features = values.get(key), values.get(f"{key}_feat")
            if key in _SINGLE:
                texts, features = [texts], [features]
            if not isinstance(texts, list) or not isinstance(features, list):
                raise _broken(f"{key} is missing")
            if not 0 <= index < min(len(texts), len(features)):
                raise _broken(f"{key} has no item {index}")
            feature = features[index]
            embed = feature.get("original") if isinstance(feature, dict) else None
            found.append((texts[index], source, embed))
        return found


def own_row(values: dict[Any, Any]) -> OwnRow:
    """What our own exporter said of an object. Raises ``MeshError`` when it is not as written."""
    told = values.get(KEY)
    if not isinstance(told, dict) or not all(name in told for name in (*COLUMNS, "texts")):
        raise _broken(f"the key {KEY} is missing or not complete")
    if not isinstance(told["uid"], str) or not told["uid"]:
        raise _broken("the uid is no text")
    places = told["texts"]
    if not isinstance(places, list) or not all(
        isinstance(p, tuple)
        and len(p) == 3
        and isinstance(p[0], str)
        and isinstance(p[1], int)
        and isinstance(p[2], str)
        for p in places
    ):
        raise _broken(f"{KEY} tells no texts")
    return OwnRow({name: told[name] for name in COLUMNS}, places)


def placed_texts(
    texts: Sequence[str], sources: Sequence[str], embeds: NDArray[np.floating]
) -> tuple[dict[str, Any], list[tuple[str, int, str]]]:
    """OpenShape's text keys for the texts of a row, and where each of them is.

    Captions become BLIP's, then Azure's; ``retrieved`` ones keep their name; whatever is left is
    raw text. One embedding stands for both of OpenShape's versions.
    """
    values: dict[str, Any] = {
        "text": [],
        "text_feat": [],
        "retrieval_text": [],
        "retrieval_text_feat": [],
        **{f"{key}{tail}": empty for key in _SINGLE for tail, empty in (("", ""), ("_feat", {}))},
    }
    places: list[tuple[str, int, str]] = []
    free = list(_SINGLE)
    for text, source, embed in zip(texts, sources, embeds, strict=True):
        vector = np.asarray(embed, np.float32)[None]
        feature = {"original": vector, "prompt_avg": vector}
        if source == "caption" and free:
            key, index = free.pop(0), 0
            values[key], values[f"{key}_feat"] = text, feature
        else:
            key = "retrieval_text" if source == "retrieved" else "text"
            index = len(values[key])
            values[key].append(text)
            values[f"{key}_feat"].append(feature)
        places.append((key, index, source))
    return values, places


def manifest_text(manifest: Manifest) -> str:
    """Text of ``meta_data/mrd3d.json``."""
    value = {"format": FORMAT, "version": 1, "manifest": json.loads(manifest.to_json())}
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in ``meta_data/mrd3d.json``, or None where there is no such file.

    Raises ``InputError`` when it is damaged.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); export the set again") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f"{path}: not written by `pipeline export`; remove it")
    return Manifest.from_json(json.dumps(value.get("manifest")), str(path))


def _broken(message: str) -> MeshError:
    return MeshError("wrong_shape", f"{message}; the file was not exported so", stage="import")
