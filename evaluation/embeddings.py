"""The embeddings file: one Parquet with a vector per object and the record of what made it.

Columns: uid, source (string), category, split (string, null), texts, text_sources
(list<string>), embed (fixed-size binary, D little-endian float32 or float16, L2-normalised).
Key-value metadata ``mrd3d.embeddings``: JSON with teacher, model, data, count, dtype.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.common import InputError, atomic_path, versions
from pipeline.shards import TeacherInfo
from trainer.metrics import normalise as normalise  # one definition for all that compare

FORMAT = "mrd3d-embeddings"
VERSION = 1
KEY = b"mrd3d.embeddings"
REMEDY = "make it again with `evaluation encode`"

DType = Literal["float32", "float16"]
LISTS = ("uid", "source", "category", "split", "texts", "text_sources")
_READ_ROWS = 4096  # at a time


@dataclass(frozen=True)
class ModelInfo:
    """Which encoder made vectors: a student's checkpoint, or the teacher on rendered views."""

    kind: str  # "student" or "teacher-views"
    name: str  # for tables
    path: str = ""  # where the checkpoint was; tried again for shape queries
    hash: str = ""  # sha256 of its weights; a shape query with other weights is refused
    step: int = 0


@dataclass(frozen=True)
class EmbeddingsMeta:
    """What all rows of an embeddings file have in common."""

    teacher: TeacherInfo
    model: ModelInfo
    data: dict[str, Any]  # kind ("shards" or "meshes"), name, config_hash, background ...


@dataclass(frozen=True)
class EmbeddingRows:
    """Some rows; the lists run in parallel to the vectors."""

    uid: list[str]
    source: list[str]
    category: list[str | None]
    split: list[str | None]
    texts: list[list[str]]
    text_sources: list[list[str]]
    vectors: NDArray[np.float32]  # (B, D) L2-normalised

    def __len__(self) -> int:
        return len(self.uid)


@dataclass(frozen=True)
class Embeddings:
    """A whole embeddings file."""

    meta: EmbeddingsMeta
    rows: EmbeddingRows


def _schema(width: int, dtype: DType) -> pa.Schema:
    texts = pa.list_(pa.string())
    return pa.schema(
        [
            pa.field("uid", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("category", pa.string()),
            pa.field("split", pa.string()),
            pa.field("texts", texts, nullable=False),
            pa.field("text_sources", texts, nullable=False),
            pa.field("embed", pa.binary(np.dtype(dtype).itemsize * width), nullable=False),
        ]
    )


def write_embeddings(
    path: Path, meta: EmbeddingsMeta, batches: Iterable[EmbeddingRows], dtype: DType = "float32"
) -> int:
    """Write ``batches`` as they come, atomically, and return the number of rows.

    Raises ``InputError`` when there are no rows or two of one uid, and ``ValueError`` when a vector
    has the wrong width or norm.
    """
    width = meta.teacher.width
    schema = _schema(width, dtype)
    count = 0
    known: set[str] = set()
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="lz4") as writer,
    ):
        for batch in batches:
            _check_vectors(batch, width)
            require_distinct(batch.uid, str(path), known)
            raw = np.ascontiguousarray(batch.vectors, np.dtype(dtype).newbyteorder("<"))
            embed = pa.FixedSizeBinaryArray.from_buffers(
                schema.field("embed").type, len(batch), [None, pa.py_buffer(raw)]
            )
            names = [name for name in schema.names if name != "embed"]
            arrays = [pa.array(getattr(batch, n), schema.field(n).type) for n in names]
            writer.write_table(pa.Table.from_arrays([*arrays, embed], schema=schema))
            count += len(batch)
        if not count:
            raise InputError(f"{path}: nothing to write, no object was selected or readable")
        record = {
            "format": FORMAT,
            "version": VERSION,
            "count": count,
            "dtype": dtype,
            **asdict(meta),
            "versions": versions("mrd3d", "torch", "numpy", "pyarrow"),
        }
        writer.add_key_value_metadata({KEY: json.dumps(record)})
    return count


def require_distinct(uids: Iterable[str], name: str, known: set[str] | None = None) -> None:
    """Raise ``InputError`` where a uid of ``name`` is there twice, or is ``known``; they become so.

    An index finds, replaces and removes objects by uid.
    """
    known = set() if known is None else known
    for uid in uids:
        if uid in known:
            raise InputError(
                f"{name}: two objects have the uid {uid}; give every object one of its own, once"
            )
        known.add(uid)


def _check_vectors(batch: EmbeddingRows, width: int) -> None:
    if batch.vectors.shape != (len(batch), width):
        raise ValueError(f"vectors have shape {batch.vectors.shape}, not {(len(batch), width)}")
    norms = np.linalg.norm(batch.vectors, axis=1)
    if not np.all(np.abs(norms - 1) < 1e-2):
        worst = batch.uid[int(np.argmax(np.abs(norms - 1)))]
        raise ValueError(f"{worst}: embedding is not L2-normalised or not finite")


def read_embeddings(path: Path) -> Embeddings:
    """Read and validate an embeddings file.

    Raises ``InputError`` when it is missing, truncated, not such a file, of a newer version, or
    when its rows do not match its own record.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; {REMEDY}")
    try:
        with pq.ParquetFile(path) as file:
            raw_meta = (file.metadata.metadata or {}).get(KEY)
            if raw_meta is None:
                raise InputError(f"{path}: Parquet, but not an embeddings file; {REMEDY}")
            record = parse_record(raw_meta, str(path), FORMAT, VERSION, REMEDY)
            meta = meta_from_record(record, str(path), REMEDY)
            dtype = record.get("dtype")
            if dtype not in ("float32", "float16"):
                raise InputError(f"{path}: unknown dtype {dtype!r}; {REMEDY}")
            width, count = meta.teacher.width, file.metadata.num_rows
            if not file.schema_arrow.equals(_schema(width, dtype), check_metadata=False):
                raise InputError(
                    f"{path}: columns do not fit its record (teacher width {width}, {dtype}); "
                    f"{REMEDY}"
                )
            if count != record.get("count"):
                raise InputError(
                    f"{path}: holds {count} rows, its record says {record.get('count')}; {REMEDY}"
                )
            return Embeddings(meta, _rows(file, width, dtype, path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: truncated or not Parquet; {REMEDY}") from error


def _rows(file: pq.ParquetFile, width: int, dtype: DType, path: Path) -> EmbeddingRows:
    """All rows, read a part at a time: the whole file beside its vectors is several times them."""
    count, done = file.metadata.num_rows, 0
    vectors = np.empty((count, width), np.float32)
    lists: dict[str, list[Any]] = {name: [] for name in LISTS}
    for batch in _batches(file):
        batch.validate(full=True)  # text that is not UTF-8
        array = batch.column("embed")
        raw = np.frombuffer(array.buffers()[1], np.dtype(dtype).newbyteorder("<"))
        part = vectors[done : done + len(array)]
        part[:] = raw.reshape(-1, width)[array.offset : array.offset + len(array)]
        norms = np.linalg.norm(part, axis=1, keepdims=True)
        if not np.all(np.abs(norms - 1) < 1e-2):
            raise InputError(f"{path}: holds vectors that are not L2-normalised; {REMEDY}")
        part /= norms
        for name, values in lists.items():
            values += batch.column(name).to_pylist()
        done += len(array)
    return EmbeddingRows(**lists, vectors=vectors)


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Some rows at a time. Asked for all row groups at once, Arrow holds what it has read."""
    for group in range(file.metadata.num_row_groups):
        yield from file.iter_batches(_READ_ROWS, row_groups=[group])


def parse_record(raw: bytes, name: str, wanted: str, version: int, remedy: str) -> dict[str, Any]:
    """JSON record of the format ``wanted``, at most of ``version``. Raises ``InputError``."""
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: its record is not JSON; {remedy}") from error
    if not isinstance(record, dict) or record.get("format") != wanted:
        raise InputError(f"{name}: not of the format {wanted}; {remedy}")
    found = record.get("version")
    if not isinstance(found, int) or found < 1:
        raise InputError(f"{name}: version {found!r} is not a number; {remedy}")
    if found > version:
        raise InputError(
            f"{name}: version {found} is newer than {version}, the newest that this installation "
            "reads; upgrade mrd3d"
        )
    return record


def meta_from_record(record: dict[str, Any], name: str, remedy: str) -> EmbeddingsMeta:
    """Teacher, model and data of a JSON record. Raises ``InputError`` that names the field."""
    teacher = TeacherInfo.from_json(record.get("teacher"), name, remedy)
    model = _build(ModelInfo, record.get("model"), name, "model", remedy)
    data = record.get("data")
    if not isinstance(data, dict):
        raise InputError(f"{name}: field data is missing; {remedy}")
    return EmbeddingsMeta(teacher, model, data)


def _build(owner: Any, value: Any, name: str, field: str, remedy: str) -> Any:
    known = {item.name for item in fields(owner)}
    if not isinstance(value, dict) or not set(value) <= known:
        raise InputError(f"{name}: field {field} is missing or damaged; {remedy}")
    try:
        return owner(**value)
    except TypeError as error:
        raise InputError(f"{name}: field {field} is incomplete; {remedy}") from error


def concatenate(batches: Sequence[EmbeddingRows]) -> EmbeddingRows:
    """Join rows of equal width (at least one batch)."""
    lists: dict[str, Any] = {
        name: [item for batch in batches for item in getattr(batch, name)] for name in LISTS
    }
    return EmbeddingRows(**lists, vectors=np.concatenate([b.vectors for b in batches]))
