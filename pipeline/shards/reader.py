"""Reading a shard set: row groups as decoded numpy batches, without copies where possible.

Shape suffixes: B rows, N points, V views, K texts of one object, D embedding width.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.common import InputError, content_hash
from pipeline.shards.manifest import CONTRACT_VERSION, MANIFEST, Manifest, read_manifest
from pipeline.shards.schema import (
    CONFIG_KEY,
    FAILURE_SCHEMA,
    VERSION_KEY,
    Failure,
    Row,
    decode_xyz,
    row_schema,
)
from pipeline.shards.storage import Storage, parquet_footer

REMEDY = (
    "delete this file and run the same `pipeline embed` command again; make a set that was merged, "
    "split or filtered anew"
)
OPEN_FILES = 64
# Bytes that a row group may unfold to. The writer puts 64 rows in one, some megabytes; a page of a
# few bytes may repeat one value as often as its footer says.
_MAX_GROUP_BYTES = 1 << 30
_FOOTER_HASH = re.compile(r"-([0-9a-f]{8})\.parquet$")  # as the writer names files

# What pyarrow raises on damaged bytes; ValueError includes text that is not UTF-8.
READ_ERRORS = (pa.ArrowException, OSError, ValueError)
# What the machine is at fault for, not the file, and what to do.
_MACHINE_ERRORS = {
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), "raise the limit of open files, for example `ulimit -n 8192`"
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check the permissions"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT), "check the disk or the network"),
    errno.ENOMEM: "free memory",
    errno.ENOENT: "it was there a moment ago; run the command again",
}


@dataclass(frozen=True)
class RowGroup:
    """Address of a run of rows that is read at once."""

    part: str
    index: int
    n_rows: int


@dataclass(frozen=True)
class Batch:
    """Rows as arrays; a column that was not asked for is None. Arrays are read-only views."""

    uid: list[str]
    category: list[str | None] | None
    split: list[str | None] | None
    xyz: NDArray[np.int16] | None  # (B, N, 3); ``xyz_float`` for [-1, 1]
    rgb: NDArray[np.uint8] | None  # (B, N, 3)
    has_color: NDArray[np.bool_] | None  # (B,)
    image_embeds: NDArray[np.float16] | None  # (B, V, D); V is 0 when the set has no views
    texts: list[list[str]] | None
    text_sources: list[list[str]] | None
    text_embeds: NDArray[np.float16] | None  # (sum K, D), rows of all objects after another
    text_offsets: NDArray[np.int64] | None  # (B + 1,): object b has rows [b] to [b + 1]
    source: list[str] | None = None  # path or URL relative to the source's root
    # Read as the column ``thumbnail_embed``; of sets without thumbnails all False.
    thumbnail_embeds: NDArray[np.float16] | None = None  # (B, D); zeros where there is none
    has_thumbnail: NDArray[np.bool_] | None = None  # (B,)
    sha256: list[str] | None = None  # of the bytes of the mesh file

    def __len__(self) -> int:
        return len(self.uid)

    def xyz_float(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """(B, N, 3) float32 coordinates in [-1, 1]."""
        if self.xyz is None:
            raise ValueError("the column xyz was not read")
        return decode_xyz(self.xyz, out)

    def texts_of(self, row: int) -> NDArray[np.float16]:
        """(K, D) text embeddings of one row."""
        if self.text_embeds is None or self.text_offsets is None:
            raise ValueError("the column text_embeds was not read")
        return self.text_embeds[self.text_offsets[row] : self.text_offsets[row + 1]]


class ShardSet:
    """A shard set opened for reading. Open it with ``ShardSet.open``."""

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        *,
        verify: bool = True,
        open_files: int = OPEN_FILES,
    ) -> None:
        self.storage, self.manifest, self.verify = storage, manifest, verify
        self.open_files = open_files
        self._files: OrderedDict[tuple[str, bool], pq.ParquetFile] = OrderedDict()
        self._groups: dict[str, list[RowGroup]] = {}
        self._verified: dict[RowGroup, set[str]] = {}
        self._reading = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: open files stay behind."""
        kept = {**self.__dict__, "_files": OrderedDict(), "_verified": {}}
        del kept["_reading"]
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As ``__getstate__`` gave it."""
        self.__dict__.update(state)
        self._reading = threading.Lock()

    @classmethod
    def open(
        cls, root: str | Path, *, verify: bool = True, open_files: int = OPEN_FILES
    ) -> ShardSet:
        """Open the set at a path or URI. The ``open_files`` parts read last stay open.

        With ``verify`` the page checksums of a column are compared when it is first read from a
        row group, and not again: the first pass over the data runs at about half the speed, the
        later ones at full speed.

        Raises ``InputError`` when ``root`` holds no manifest or one of a newer contract. Parts
        are checked when they are first touched (``row_groups`` touches all).
        """
        return cls(Storage.at(root), read_manifest(root), verify=verify, open_files=open_files)

    @cached_property
    def schema(self) -> pa.Schema:
        """What every part must look like. Kept: the hash in it takes a millisecond."""
        return row_schema(self.manifest)

    @cached_property
    def parts(self) -> list[str]:
        """Names of the part files, sorted."""
        return self.storage.list("part-", ".parquet")

    @cached_property
    def row_groups(self) -> list[RowGroup]:
        """Every row group of every part, in a fixed order."""
        return [group for part in self.parts for group in self.groups_of(part)]

    def groups_of(self, part: str) -> list[RowGroup]:
        """The row groups of one part, kept. Raises ``InputError`` as ``read`` does."""
        if part not in self._groups:
            with self._reading:
                metadata = self._file(part).metadata
            self._groups[part] = [
                RowGroup(part, index, metadata.row_group(index).num_rows)
                for index in range(metadata.num_row_groups)
            ]
        return self._groups[part]

    def __len__(self) -> int:
        """Number of rows."""
        return sum(group.n_rows for group in self.row_groups)

    def read(self, group: RowGroup, columns: Iterable[str] | None = None) -> Batch:
        """One row group as arrays. ``columns`` names what is needed; ``uid`` is always read.

        Raises ``InputError`` that names the part when it is truncated, foreign or damaged.
        """
        asked = None if columns is None else list(columns)
        wanted = self._columns(asked)
        verified = self._verified.setdefault(group, set())
        check = self.verify and not verified.issuperset(wanted)
        try:
            table = self._row_group(group, wanted, check)
            batch = self._decode(table, group, asked)
        except READ_ERRORS as error:
            raise self._damaged(group.part, error) from error
        if check:
            verified.update(wanted)
        return batch

    def table(self, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group as it is stored; only the ``columns`` if given, in the schema's order.

        Page checksums are always compared, and text is checked to be UTF-8. Raises as ``read``
        does, ``KeyError`` for a column that the set does not have.
        """
        names = self.schema.names if columns is None else list(columns)
        for name in names:
            self.schema.field(name)
        try:
            table = self._row_group(group, names, True)
            table.validate(full=True)
            if table.num_rows != group.n_rows:
                raise ValueError(f"{table.num_rows} rows where the footer says {group.n_rows}")
        except READ_ERRORS as error:
            raise self._damaged(group.part, error) from error
        return table

    def decode(self, group: RowGroup, table: pa.Table, columns: Sequence[str]) -> Batch:
        """``columns`` of a row group that ``table`` gave, ``uid`` among them, as arrays.

        Raises ``InputError`` that names the part for text embeddings of a wrong length.
        """
        try:
            return self._decode(table, group, list(columns))
        except ValueError as error:
            raise self._damaged(group.part, error) from error

    def rows(self, group: RowGroup) -> list[Row]:
        """One row group as the rows that were written, with every column, for writing them again.

        Embeddings are float16, coordinates those of the int16 ones. Raises as ``read`` does.
        """
        batch = self.read(group)
        names = ["dataset", "sha256", "n_faces", "n_vertices", "n_bytes"]
        try:
            others = self._row_group(group, names).to_pylist()
        except READ_ERRORS as error:
            raise self._damaged(group.part, error) from error
        xyz = batch.xyz_float()
        parts: Any = batch  # every column was read: none is None
        return [
            Row(
                uid=batch.uid[at],
                source=parts.source[at],
                category=parts.category[at],
                split=parts.split[at],
                xyz=xyz[at],
                rgb=parts.rgb[at],
                has_color=bool(parts.has_color[at]),
                image_embeds=parts.image_embeds[at],
                texts=parts.texts[at],
                text_sources=parts.text_sources[at],
                text_embeds=batch.texts_of(at),
                thumbnail_embed=parts.thumbnail_embeds[at] if parts.has_thumbnail[at] else None,
                **other,
            )
            for at, other in enumerate(others)
        ]

    def batches(
        self,
        columns: Iterable[str] | None = None,
        groups: Sequence[RowGroup] | None = None,
    ) -> Iterator[Batch]:
        """All rows (or those of ``groups``, in that order), one row group at a time."""
        wanted = None if columns is None else list(columns)
        for group in self.row_groups if groups is None else groups:
            yield self.read(group, wanted)

    def uids(self) -> list[str]:
        """Uids of all rows, in reading order."""
        return [uid for batch in self.batches(["uid"]) for uid in batch.uid]

    @cached_property
    def places(self) -> dict[str, tuple[RowGroup, int]]:
        """Where every uid stands: its row group and the row in it. Kept: all uids are read."""
        return {
            uid: (group, row)
            for group in self.row_groups
            for row, uid in enumerate(self.read(group, ["uid"]).uid)
        }

    def failures(self) -> list[Failure]:
        """All recorded failures, in the order of the files."""
        return [Failure(**row) for row in self.failures_table().to_pylist()]

    def failures_table(self) -> pa.Table:
        """All recorded failures as an Arrow table of ``schema.FAILURE_SCHEMA``.

        Raises ``InputError`` that names the file when one is truncated, foreign or damaged.
        """
        tables = [self.read_failures(name) for name in self.storage.list("failures-", ".parquet")]
        return pa.concat_tables(tables) if tables else FAILURE_SCHEMA.empty_table()

    def read_failures(self, name: str) -> pa.Table:
        """One file of failures. Raises as ``failures_table`` does."""
        try:
            table = self._open(name, check_pages=True).read(use_threads=False)
            foreign = not table.schema.equals(FAILURE_SCHEMA, check_metadata=False)
            if not foreign:
                table.validate(full=True)  # text that is not UTF-8
        except READ_ERRORS as error:
            raise self._damaged(name, error) from error
        if foreign:
            raise InputError(f"{self.storage.show(name)}: not a failures table; {REMEDY}")
        return table.replace_schema_metadata(None)

    def _damaged(self, name: str, error: Exception) -> InputError:
        return unreadable(self.storage.show(name), error, "not Parquet", REMEDY)

    def _columns(self, columns: Iterable[str] | None) -> list[str]:
        names: list[str] = self.schema.names
        if columns is None:
            return names
        wanted = ["uid", *columns]
        unknown = set(wanted) - set(names) - {"image_embeds", "thumbnail_embed"}  # may be absent
        if unknown:
            raise ValueError(f"no such column: {', '.join(sorted(unknown))}")
        return [name for name in names if name in wanted]

    def _row_group(
        self, group: RowGroup, columns: Sequence[str], check_pages: bool = False
    ) -> pa.Table:
        """Some columns of a row group; by one thread at a time, or Arrow crashes."""
        with self._reading:
            file = self._file(group.part, check_pages)
            return file.read_row_group(group.index, columns=columns, use_threads=False)

    def _file(self, part: str, check_pages: bool = False) -> pq.ParquetFile:
        """An opened and checked part; the most recent ones stay open."""
        key = (part, check_pages)
        if key in self._files:
            self._files.move_to_end(key)
            return self._files[key]
        twin = self._files.get((part, not check_pages))
        try:
            file = self._open(part, check_pages, twin.metadata if twin else None)
            if not twin:
                self._check(part, file.schema_arrow)
                self._check_groups(part, file.metadata)
        except READ_ERRORS as error:
            raise self._damaged(part, error) from error
        self._files[key] = file
        if len(self._files) > self.open_files:
            self._files.popitem(last=False)[1].close(force=True)
        return file

    def _open(
        self, name: str, check_pages: bool, metadata: pq.FileMetaData | None = None
    ) -> pq.ParquetFile:
        """Open a file whose footer agrees with the hash of it at the end of the name."""
        source = self.storage.open(name)
        if metadata is None:
            footer = parquet_footer(source)
            told = _FOOTER_HASH.search(name)
            if told and not content_hash(footer).startswith(told[1]):
                raise ValueError("the footer does not agree with the file name")
            metadata = pq.read_metadata(pa.BufferReader(footer))
        return pq.ParquetFile(source, metadata=metadata, page_checksum_verification=check_pages)

    def _check(self, part: str, schema: pa.Schema) -> None:
        show = self.storage.show(part)
        metadata = schema.metadata or {}
        if VERSION_KEY not in metadata:
            raise InputError(f"{show}: Parquet, but not a part of a shard set; remove it")
        version = metadata[VERSION_KEY]
        if not version.isdigit() or int(version) > CONTRACT_VERSION:
            raise InputError(
                f"{show}: contract version {version.decode(errors='replace')} is newer than "
                f"{CONTRACT_VERSION}, the newest that this installation reads; upgrade mrd3d"
            )
        if metadata.get(CONFIG_KEY) != self.schema.metadata[CONFIG_KEY]:
            raise InputError(
                f"{show}: belongs to another shard set (config hash differs from that of "
                f"{MANIFEST}); move it back to its own folder"
            )
        expected = self.schema
        if not schema.equals(expected, check_metadata=False):
            wrong = [f.name for f in expected if f.name not in schema.names] or [
                f.name for f in expected if schema.field(f.name) != f
            ]
            what = f"column {wrong[0]} is" if wrong else "the columns are"
            raise InputError(f"{show}: {what} not as the manifest says; {REMEDY}")

    def _check_groups(self, part: str, metadata: pq.FileMetaData) -> None:
        """Refuse row groups that claim more than fits into memory, before any is taken."""
        n, v, d = self.manifest.n_points, self.manifest.n_views, self.manifest.teacher.width
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            claimed = group.num_rows * (9 * n + 2 * v * d)
            for place in range(group.num_columns):
                column = group.column(place)
                most = column.total_uncompressed_size
                if column.has_dictionary_page and column.physical_type == "BYTE_ARRAY":
                    most *= max(1, column.num_values)  # every value may be the whole dictionary
                claimed = max(claimed, most)
            if not 0 <= group.num_rows <= claimed <= _MAX_GROUP_BYTES:
                raise InputError(
                    f"{self.storage.show(part)}: row group {index} claims {group.num_rows:,} rows "
                    f"of up to {claimed:,} bytes; the limit is {_MAX_GROUP_BYTES:,}; {REMEDY}"
                )

    def _decode(self, table: pa.Table, group: RowGroup, asked: list[str] | None) -> Batch:
        """Arrow columns to numpy views. Raises ``ValueError`` for damaged ones."""

        def wanted(name: str) -> bool:
            return asked is None or name in asked

        n, v, d = self.manifest.n_points, self.manifest.n_views, self.manifest.teacher.width
        names = table.schema.names
        size = table.num_rows
        if size != group.n_rows:
            raise ValueError(f"{size} rows where the footer says {group.n_rows}")

        def numbers(name: str, dtype: str, shape: tuple[int, ...]) -> Any:
            if name not in names:
                return None
            return _fixed_view(table.column(name), dtype).reshape(size, *shape)

        def values(name: str) -> Any:
            return table.column(name).to_pylist() if name in names else None

        embeds, offsets = None, None
        if "text_embeds" in names:
            embeds, offsets = _variable_view(table.column("text_embeds"), d)
        image = numbers("image_embeds", "<f2", (v, d))
        if v == 0 and wanted("image_embeds"):
            image = np.zeros((size, 0, d), np.float16)
        thumbnails, there = None, None
        if wanted("thumbnail_embed"):
            thumbnails, there = np.zeros((size, d), np.float16), np.zeros(size, np.bool_)
            if "thumbnail_embed" in names:
                column = table.column("thumbnail_embed")
                there = column.is_valid().to_numpy()
                # Bytes of missing values are undefined: they stay zeros.
                thumbnails[there] = _fixed_view(column, "<f2").reshape(size, d)[there]
        color = table.column("has_color").to_numpy() if "has_color" in names else None
        return Batch(
            uid=table.column("uid").to_pylist(),
            category=values("category"),
            split=values("split"),
            xyz=numbers("xyz", "<i2", (n, 3)),
            rgb=numbers("rgb", "u1", (n, 3)),
            has_color=color,
            image_embeds=image,
            texts=values("texts"),
            text_sources=values("text_sources"),
            text_embeds=embeds,
            text_offsets=offsets,
            source=values("source"),
            thumbnail_embeds=thumbnails,
            has_thumbnail=there,
            sha256=values("sha256"),
        )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _fixed_view(column: pa.ChunkedArray, dtype: str) -> NDArray[Any]:
    array = _one_chunk(column)
    width = array.type.byte_width
    start = array.offset * width
    raw = np.frombuffer(array.buffers()[1], np.uint8)[start : start + len(array) * width]
    return raw.view(dtype)


def _variable_view(
    column: pa.ChunkedArray, width: int
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    array = _one_chunk(column)
    buffers = array.buffers()
    bounds = np.frombuffer(buffers[1], "<i4")[array.offset : array.offset + len(array) + 1]
    lengths = np.diff(bounds)
    if np.any(lengths % (2 * width)):
        raise ValueError(f"text_embeds is not a multiple of {width} float16 values")
    raw = np.zeros(0, np.uint8) if buffers[2] is None else np.frombuffer(buffers[2], np.uint8)
    raw = raw[bounds[0] : bounds[-1]]
    if raw.ctypes.data % 2:  # a view as float16 needs even addresses
        raw = raw.copy()
    offsets = np.concatenate([[0], np.cumsum(lengths // (2 * width))]).astype(np.int64)
    return raw.view("<f2").reshape(-1, width), offsets


def unreadable(name: str, error: Exception, foreign: str, remedy: str) -> InputError:
    """The error for a Parquet file that could not be read.

    ``foreign`` says what else a damaged file may be, ``remedy`` what to do about one: nobody must
    be told to delete a file that the machine failed to read.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in _MACHINE_ERRORS:
        reason = os.strerror(number)
        return InputError(f"{name}: cannot be read ({reason}); {_MACHINE_ERRORS[number]}")
    return InputError(f"{name}: truncated, damaged or {foreign} ({_first_line(error)}); {remedy}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
