"""Rows as objects, and as Arrow columns.

Shape suffixes: B rows, N points, V views, K texts of one object, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.shards.manifest import Manifest

POINT_SCALE = 32767  # int16 value of coordinate 1.0
NEUTRAL_RGB = 102  # 0.4 of 255: what the field gives to clouds without colour
VERSION_KEY = b"mrd3d.contract_version"
CONFIG_KEY = b"mrd3d.config_hash"


@dataclass(frozen=True)
class Row:
    """One object. Quantised when written: xyz to 1/32767, embeddings to float16."""

    uid: str
    dataset: str
    source: str
    category: str | None
    split: str | None
    # (N, 3) in [-1, 1], +y up; or int16, as ``quantised`` gives it
    xyz: NDArray[np.float32] | NDArray[np.int16]
    rgb: NDArray[np.uint8]  # (N, 3) sRGB
    has_color: bool
    image_embeds: NDArray[np.floating]  # (V, D) L2-normalised
    texts: Sequence[str]  # K
    text_sources: Sequence[str]  # K
    text_embeds: NDArray[np.floating]  # (K, D) L2-normalised
    sha256: str
    n_faces: int
    n_vertices: int
    n_bytes: int
    thumbnail_embed: NDArray[np.floating] | None = None  # (D,) L2-normalised; set has thumbnails


@dataclass(frozen=True)
class Failure:
    """One object that could not become a row. ``error`` is a short stable kind to count by."""

    uid: str
    dataset: str
    source: str
    stage: str
    error: str
    message: str


FAILURE_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in ("uid", "dataset", "source", "stage", "error", "message")
    ]
)


def row_schema(manifest: Manifest) -> pa.Schema:
    """Arrow schema of the parts of a set.

    ``image_embeds`` is absent when there are no views, ``thumbnail_embed`` without thumbnails.
    """
    n, v, d = manifest.n_points, manifest.n_views, manifest.teacher.width
    columns = [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("split", pa.string()),
        pa.field("xyz", pa.binary(6 * n), nullable=False),
        pa.field("rgb", pa.binary(3 * n), nullable=False),
        pa.field("has_color", pa.bool_(), nullable=False),
        pa.field("image_embeds", pa.binary(2 * v * d), nullable=False),
        pa.field("thumbnail_embed", pa.binary(2 * d)),
        pa.field("texts", pa.list_(pa.string()), nullable=False),
        pa.field("text_sources", pa.list_(pa.string()), nullable=False),
        pa.field("text_embeds", pa.binary(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("n_faces", pa.int64(), nullable=False),
        pa.field("n_vertices", pa.int64(), nullable=False),
        pa.field("n_bytes", pa.int64(), nullable=False),
    ]
    absent = {
        *(["image_embeds"] if v == 0 else []),
        *([] if manifest.thumbnails else ["thumbnail_embed"]),
    }
    columns = [column for column in columns if column.name not in absent]
    metadata = {
        VERSION_KEY: str(manifest.contract_version).encode(),
        CONFIG_KEY: manifest.config_hash.encode(),
    }
    return pa.schema(columns, metadata)


def encode_rows(rows: Sequence[Row], manifest: Manifest) -> pa.Table:
    """Rows as an Arrow table of ``row_schema``.

    Raises ``ValueError`` that names the uid and the column for a value that breaks the contract:
    these are programming errors of a writer, never of a user's file.
    """
    if not rows:
        raise ValueError("no rows: a part holds at least one")
    schema = row_schema(manifest)
    for row in rows:
        _check_row(row, manifest)
    _check_unique([row.uid for row in rows])
    columns: dict[str, Any] = {
        "xyz": _fixed(np.stack([_quantise(r.xyz) for r in rows]), schema.field("xyz").type),
        "rgb": _fixed(np.stack([r.rgb for r in rows]), schema.field("rgb").type),
        "text_embeds": pa.array(
            [np.ascontiguousarray(r.text_embeds, "<f2").tobytes() for r in rows], pa.binary()
        ),
    }
    if manifest.n_views:
        columns["image_embeds"] = _fixed(
            np.stack([np.asarray(r.image_embeds, "<f2") for r in rows]),
            schema.field("image_embeds").type,
        )
    if manifest.thumbnails:
        columns["thumbnail_embed"] = pa.array(
            [
                None
                if r.thumbnail_embed is None
                else np.asarray(r.thumbnail_embed, "<f2").tobytes()
                for r in rows
            ],
            schema.field("thumbnail_embed").type,
        )
    arrays = []
    for field in schema:
        if field.name in columns:
            arrays.append(columns[field.name])
            continue
        values = [getattr(row, field.name) for row in rows]
        if pa.types.is_list(field.type):
            values = [list(value) for value in values]
        arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def encode_failures(failures: Sequence[Failure]) -> pa.Table:
    """Failures as an Arrow table of ``FAILURE_SCHEMA``.

    Raises ``ValueError`` that names the uid and the column for a value that is not text. Text
    about the failed object may hold anything, file names that are not UTF-8 included: what cannot
    be stored is escaped.
    """
    if not failures:
        raise ValueError("no failures: a file holds at least one")
    for item in failures:
        _check_text(item.uid, "uid", item.uid)
        for name in FAILURE_SCHEMA.names[1:]:
            _check_text(item.uid, name, getattr(item, name), strict=False)
    failures = [
        Failure(*(_storable(getattr(item, name)) for name in FAILURE_SCHEMA.names))
        for item in failures
    ]
    return pa.table(
        {f.name: [getattr(item, f.name) for item in failures] for f in FAILURE_SCHEMA},
        schema=FAILURE_SCHEMA,
    )


def decode_xyz(
    xyz_i16: NDArray[np.int16], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Stored int16 coordinates to float32 in [-1, 1], into ``out`` when given."""
    # Convert, then scale in place: a third faster than one multiplication of mixed types.
    floats = np.empty(xyz_i16.shape, np.float32) if out is None else out
    floats[...] = xyz_i16
    floats *= np.float32(1 / POINT_SCALE)
    return floats


def quantised(row: Row) -> Row:
    """``row`` with its arrays as they are stored: half the size to hand to a writer elsewhere.

    Raises ``ValueError`` where xyz leaves [-1, 1].
    """
    _check_range(row)
    thumbnail = row.thumbnail_embed
    return replace(
        row,
        xyz=_quantise(row.xyz),
        image_embeds=np.asarray(row.image_embeds, "<f2"),
        text_embeds=np.asarray(row.text_embeds, "<f2"),
        thumbnail_embed=None if thumbnail is None else np.asarray(thumbnail, "<f2"),
    )


def _check_range(row: Row) -> None:
    if row.xyz.dtype == np.dtype("<i2"):  # checked when it was quantised
        return
    # 1e-4: rounding of a vertex at distance 1 must pass, a cloud in millimetres must not.
    if not np.isfinite(row.xyz).all() or np.abs(row.xyz).max(initial=0) > 1 + 1e-4:
        raise ValueError(f"{row.uid}: xyz leaves [-1, 1] or is not finite")


def _quantise(xyz: NDArray[Any]) -> NDArray[np.int16]:
    if xyz.dtype == np.dtype("<i2"):
        return xyz
    scaled = np.clip(xyz, -1, 1).astype(np.float64) * POINT_SCALE
    stored: NDArray[np.int16] = np.rint(scaled).astype("<i2")
    return stored


def _fixed(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, buffer])


def _check_row(row: Row, manifest: Manifest) -> None:
    n, v, d = manifest.n_points, manifest.n_views, manifest.teacher.width
    _check_text(row.uid, "uid", row.uid)
    if not row.uid:
        raise ValueError("a row has an empty uid")
    for name in ("dataset", "source", "sha256"):
        _check_text(row.uid, name, getattr(row, name))
    for name in ("category", "split"):
        if getattr(row, name) is not None:
            _check_text(row.uid, name, getattr(row, name))
    for name in ("texts", "text_sources"):
        for text in getattr(row, name):
            _check_text(row.uid, name, text)
    if not isinstance(row.has_color, bool | np.bool_):
        raise ValueError(f"{row.uid}: has_color is {row.has_color!r}, expected a bool")
    for name in ("n_faces", "n_vertices", "n_bytes"):
        value = getattr(row, name)
        number = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not number or not 0 <= value < 2**63:
            raise ValueError(f"{row.uid}: {name} is {value!r}, expected a count")
    k = len(row.texts)
    if len(row.text_sources) != k:
        raise ValueError(f"{row.uid}: text_sources has {len(row.text_sources)} for {k} texts")
    shapes: dict[str, tuple[NDArray[Any], tuple[int, ...], str]] = {
        "xyz": (row.xyz, (n, 3), "i" if row.xyz.dtype == np.dtype("<i2") else "f"),
        "rgb": (row.rgb, (n, 3), "u"),
        "image_embeds": (row.image_embeds, (v, d), "f"),
        "text_embeds": (row.text_embeds, (k, d), "f"),
    }
    if row.thumbnail_embed is not None:
        if not manifest.thumbnails:
            raise ValueError(
                f"{row.uid}: thumbnail_embed is there, the manifest says no thumbnails"
            )
        shapes["thumbnail_embed"] = (row.thumbnail_embed, (d,), "f")
    for name, (array, shape, kind) in shapes.items():
        if array.shape != shape:
            raise ValueError(f"{row.uid}: {name} has shape {array.shape}, expected {shape}")
        if array.dtype.kind != kind or (kind == "u" and array.dtype != np.uint8):
            expected = "uint8" if kind == "u" else "a float type"
            raise ValueError(f"{row.uid}: {name} is {array.dtype}, expected {expected}")
    _check_range(row)
    for name in ("image_embeds", "text_embeds", "thumbnail_embed"):
        embeds = getattr(row, name)
        if embeds is None:
            continue
        if not np.isfinite(embeds).all():
            raise ValueError(f"{row.uid}: {name} is not finite")
        norms = np.linalg.norm(np.asarray(embeds, np.float32), axis=-1)
        if not np.all(np.abs(norms - 1) < 1e-2):
            raise ValueError(f"{row.uid}: {name} is not L2-normalised")


def _check_text(uid: object, name: str, value: object, *, strict: bool = True) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{uid}: {name} is {value!r}, expected text")
    if strict and _storable(value) != value:
        raise ValueError(f"{_storable(str(uid))}: {name} is not valid Unicode: {value!r}")


def _storable(text: str) -> str:
    """The text with lone surrogates (bytes of a file name that are not UTF-8) escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _check_unique(uids: Sequence[str]) -> None:
    seen: set[str] = set()
    for uid in uids:
        if uid in seen:
            raise ValueError(f"{uid}: this uid comes twice in one part")
        seen.add(uid)
