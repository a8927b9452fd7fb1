"""The views themselves, kept beside the parts: side files of encoded pictures.

For every part ``part-X.parquet`` of a set with ``kept_images`` there is one side file
``images-X-H.parquet``, where H is the hash of its own footer. It has the same rows in the same
order and the same row groups, so a row group's address (``RowGroup``) serves for both. A side file
is written before its part: a part never lacks its pictures, whenever a run is killed, and a side
file without a part is of no consequence (``clean_orphans`` removes it).

Columns: ``uid``, ``views`` (V encoded pictures of the render's size, in the order of the cameras)
and ``thumbnail`` (null where there is none). The manifest's ``kept_images`` names the format:
``webp-90``, ``webp-lossless``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common import InputError, content_hash
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import READ_ERRORS, RowGroup, ShardSet, unreadable
from pipeline.shards.schema import CONFIG_KEY, VERSION_KEY, Row
from pipeline.shards.storage import Storage, parquet_footer
from pipeline.shards.writer import ROW_GROUP_ROWS, encode_part, encode_table

PREFIX, SUFFIX = "images-", ".parquet"
_COLUMNS = [
    pa.field("uid", pa.string(), nullable=False),
    pa.field("views", pa.list_(pa.field("item", pa.binary(), nullable=False)), nullable=False),
    pa.field("thumbnail", pa.binary()),
]


@dataclass(frozen=True)
class KeptImages:
    """The encoded pictures of one object."""

    uid: str
    views: Sequence[bytes]  # V
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class ImageBatch:
    """The encoded pictures of a row group, in the order of its rows (B)."""

    uid: list[str]
    views: list[list[bytes]]  # (B, V), or those that were asked for
    thumbnails: list[bytes | None]  # (B,)

    def __len__(self) -> int:
        return len(self.uid)


def image_schema(manifest: Manifest) -> pa.Schema:
    """Arrow schema of the side files of a set."""
    return pa.schema(
        _COLUMNS,
        {
            VERSION_KEY: str(manifest.contract_version).encode(),
            CONFIG_KEY: manifest.config_hash.encode(),
        },
    )


def write_part_with_images(
    root: str | Path, manifest: Manifest, rows: Sequence[Row], kept: Sequence[KeptImages]
) -> tuple[str, str]:
    """Write the pictures of ``rows``, then the part itself; names of the part and the side file.

    ``kept`` is one item per row, in their order. The same content gives the same names and bytes.
    Raises ``ValueError`` for items that do not fit the rows or the manifest, and as ``write_part``
    does.
    """
    _check(manifest, rows, kept)
    return _write_pair(root, manifest, encode_part(manifest, rows), kept)


def write_table(
    root: str | Path,
    manifest: Manifest,
    table: pa.Table,
    label: str,
    kept: Sequence[KeptImages] | None = None,
) -> str:
    """Write rows that another set stored, with their pictures if any; the name of the part.

    Raises ``ValueError`` as ``encode_table`` does, and for pictures that are not those of the rows.
    """
    named = encode_table(manifest, table, label)
    if kept is None:
        Storage.at(root).write(*named)
        return named[0]
    if manifest.kept_images is None or table.column("uid").to_pylist() != [k.uid for k in kept]:
        raise ValueError("the pictures are not those of the rows, in their order")
    return _write_pair(root, manifest, named, kept)[0]


def _write_pair(
    root: str | Path, manifest: Manifest, named: tuple[str, bytes], kept: Sequence[KeptImages]
) -> tuple[str, str]:
    """Write the pictures, then their part."""
    part, part_data = named
    data = _encode(manifest, kept)
    footer = content_hash(parquet_footer(pa.BufferReader(data)))
    name = f"{_prefix(part)}{footer[:8]}{SUFFIX}"
    storage = Storage.at(root)
    storage.write(name, data)
    storage.write(part, part_data)
    return part, name


def _prefix(part: str) -> str:
    """How the name of a part's side file begins."""
    return f"{PREFIX}{part.removeprefix('part-').removesuffix(SUFFIX)}-"


def _check(manifest: Manifest, rows: Sequence[Row], kept: Sequence[KeptImages]) -> None:
    if manifest.kept_images is None:
        raise ValueError("the manifest says that no pictures are kept")
    if [row.uid for row in rows] != [item.uid for item in kept]:
        raise ValueError("the pictures are not those of the rows, in their order")
    for row, item in zip(rows, kept, strict=True):
        if len(item.views) != manifest.n_views:
            raise ValueError(
                f"{item.uid}: {len(item.views)} pictures of {manifest.n_views} views are kept"
            )
        if (item.thumbnail is None) != (row.thumbnail_embed is None):
            raise ValueError(f"{item.uid}: thumbnail and thumbnail_embed do not go together")
        if any(not picture for picture in (*item.views, item.thumbnail or b"?")):
            raise ValueError(f"{item.uid}: an empty picture")


def _encode(manifest: Manifest, kept: Sequence[KeptImages]) -> bytes:
    schema = image_schema(manifest)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression={"uid": "lz4"},  # pictures are compressed already
        use_dictionary=False,
        write_statistics=["uid"],
        store_schema=True,
        write_page_checksum=True,
    ) as writer:
        # Group by group: one Arrow array holds at most 2 GiB of pictures.
        for start in range(0, len(kept), ROW_GROUP_ROWS):
            group = kept[start : start + ROW_GROUP_ROWS]
            columns = [
                pa.array([item.uid for item in group], schema.field("uid").type),
                pa.array([list(item.views) for item in group], schema.field("views").type),
                pa.array([item.thumbnail for item in group], schema.field("thumbnail").type),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return bytes(sink.getvalue().to_pybytes())


class ImageSet:
    """The kept pictures of a shard set. Open them with ``ImageSet.open``."""

    def __init__(self, shards: ShardSet) -> None:
        """Raises ``InputError`` when the set keeps no pictures."""
        if shards.manifest.kept_images is None:
            raise InputError(
                f"{shards.storage.root}: keeps no pictures; "
                "make the set again with `pipeline embed --keep-images webp`"
            )
        self.shards = shards
        self._last: tuple[str, pq.ParquetFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: the open file stays behind."""
        return {**self.__dict__, "_last": None}

    @classmethod
    def open(cls, root: str | Path) -> ImageSet:
        """Open the pictures of the set at a path or URI. Raises ``InputError``."""
        return cls(ShardSet.open(root))

    @property
    def format(self) -> str:
        """How the pictures are encoded, as the manifest tells it."""
        return str(self.shards.manifest.kept_images)

    @cached_property
    def files(self) -> dict[str, str]:
        """Side file by part. Raises ``InputError`` that names a part without one."""
        return {part: self.file_of(part) for part in self.shards.parts}

    def file_of(self, part: str) -> str:
        """The side file of one part. Raises ``InputError`` when there is none."""
        prefix = _prefix(part)
        if prefix not in self._by_prefix:
            raise InputError(
                f"{self.shards.storage.show(part)}: its pictures ({prefix}*{SUFFIX}) are "
                "missing; put the file back, or delete this one and run the same "
                "`pipeline embed` command again"
            )
        return self._by_prefix[prefix]

    @cached_property
    def _by_prefix(self) -> dict[str, str]:
        """Side file by what its name begins with."""
        found: dict[str, str] = {}
        for name in self.shards.storage.list(PREFIX, SUFFIX):
            prefix = name.removesuffix(SUFFIX)[:-8]
            if _belongs(name, prefix):
                # Two, where a part was written twice by different versions of the codec: both
                # are good.
                found.setdefault(prefix, name)
        return found

    def read(self, group: RowGroup, views: Sequence[int] | None = None) -> ImageBatch:
        """The pictures of a row group of the set's parts; of the ``views`` alone if given.

        Raises ``InputError`` that names the side file when it is truncated, damaged or foreign,
        ``IndexError`` for a view that the set does not have.
        """
        wanted = range(self.shards.manifest.n_views) if views is None else views
        name = self.file_of(group.part)
        try:
            file = self._open(name)
            table = file.read_row_group(group.index, use_threads=False)
            table.validate(full=True)
            batch = ImageBatch(
                table.column("uid").to_pylist(),
                table.column("views").to_pylist(),
                table.column("thumbnail").to_pylist(),
            )
            if batch.uid != self.shards.read(group, ["uid"]).uid:
                raise ValueError("its rows are not those of the part")
            if any(len(item) != self.shards.manifest.n_views for item in batch.views):
                raise ValueError(f"not {self.shards.manifest.n_views} views in every row")
        except READ_ERRORS as error:
            raise self._damaged(name, group.part, error) from error
        if views is None:
            return batch
        chosen = [[pictures[view] for view in wanted] for pictures in batch.views]
        return ImageBatch(batch.uid, chosen, batch.thumbnails)

    def batches(
        self, views: Sequence[int] | None = None, groups: Sequence[RowGroup] | None = None
    ) -> Iterator[ImageBatch]:
        """The pictures of all row groups (or of ``groups``), one at a time, in their order."""
        for group in self.shards.row_groups if groups is None else groups:
            yield self.read(group, views)

    def _open(self, name: str) -> pq.ParquetFile:
        """An opened and checked side file; the last one stays open."""
        if self._last and self._last[0] == name:
            return self._last[1]
        source = self.shards.storage.open(name)
        footer = parquet_footer(source)
        told = name.removesuffix(SUFFIX)[-8:]
        if not content_hash(footer).startswith(told):
            raise ValueError("the footer does not agree with the file name")
        file = pq.ParquetFile(
            source,
            metadata=pq.read_metadata(pa.BufferReader(footer)),
            page_checksum_verification=True,
        )
        expected = image_schema(self.shards.manifest)
        if not file.schema_arrow.equals(expected, check_metadata=False):
            raise ValueError("the columns are not those of kept pictures")
        if (file.schema_arrow.metadata or {}).get(CONFIG_KEY) != expected.metadata[CONFIG_KEY]:
            raise ValueError("it belongs to another shard set")
        self._last = (name, file)
        return file

    def _damaged(self, name: str, part: str, error: Exception) -> InputError:
        remedy = f"delete it and {part}, and run the same `pipeline embed` command again"
        return unreadable(self.shards.storage.show(name), error, "not of this set", remedy)


def _belongs(name: str, prefix: str) -> bool:
    """Whether a name is ``prefix``, 8 hexadecimal digits and the suffix."""
    rest = name.removeprefix(prefix).removesuffix(SUFFIX)
    return name.startswith(prefix) and len(rest) == 8 and set(rest) <= set("0123456789abcdef")


def clean_orphans(root: str | Path) -> int:
    """Remove side files whose part is not there, and doubles; returns how many.

    Only for a set that no other run is writing to: a side file is written before its part.
    """
    storage = Storage.at(root)
    names = storage.list(PREFIX, SUFFIX)
    if not names:
        return 0
    kept: set[str] = set()
    by_prefix = {_prefix(part) for part in storage.list("part-", SUFFIX)}
    for name in names:
        prefix = f"{name.removesuffix(SUFFIX)[:-8]}"
        if prefix in by_prefix and _belongs(name, prefix):
            by_prefix.remove(prefix)  # the first of several, which is the one that is read
            kept.add(name)
    for name in names:
        if name not in kept:
            storage.delete(name)
    return len(names) - len(kept)
