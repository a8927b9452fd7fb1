"""Adding to a shard set: whole files, named by their content, atomically."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common import content_hash
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardSet
from pipeline.shards.schema import Failure, Row, encode_failures, encode_rows, row_schema
from pipeline.shards.storage import Storage, parquet_footer

# Small enough that a shuffle can read one at a time, large enough to read at full speed.
ROW_GROUP_ROWS = 64

# Noise to a compressor: stored as it is. Colours are not, many objects have few of them.
_UNCOMPRESSED = ("xyz", "image_embeds", "thumbnail_embed", "text_embeds")
# No dictionary for raw numbers, and no min/max statistics, which would copy whole clouds into the
# footer.
_DICTIONARY = ("dataset", "category", "split", "error")
_STATISTICS = ("uid", "category", "n_faces")


def write_part(root: str | Path, manifest: Manifest, rows: Sequence[Row]) -> str:
    """Write ``rows`` (at least one) as one part file and return its name.

    The same rows give the same name and the same bytes, so writing twice changes nothing.
    Raises ``ValueError`` for rows that break the contract (see ``encode_rows``), ``InputError``
    when the folder cannot be written.
    """
    name, data = encode_part(manifest, rows)
    Storage.at(root).write(name, data)
    return name


def encode_part(manifest: Manifest, rows: Sequence[Row]) -> tuple[str, bytes]:
    """Name and content of the part file of ``rows``. Raises ``ValueError`` as ``write_part``."""
    return _encode(encode_rows(rows, manifest), "part", rows[0].uid)


def encode_table(manifest: Manifest, table: pa.Table, label: str) -> tuple[str, bytes]:
    """Name and content of the part file of rows that another set stored (``ShardSet.table``).

    ``label`` stands in the name where ``write_part`` puts the first uid; parts are read in the
    order of their names. Raises ``ValueError`` for columns that are not those of the manifest.
    """
    schema = row_schema(manifest)
    if not table.schema.equals(schema, check_metadata=False):
        raise ValueError("the columns are not those that the manifest asks for")
    return _encode(table.replace_schema_metadata(schema.metadata), "part", label)


def write_failures(root: str | Path, failures: Sequence[Failure]) -> str:
    """Write ``failures`` (at least one) as one file and return its name.

    Raises as ``write_part`` does.
    """
    name, data = _encode(encode_failures(failures), "failures", failures[0].uid)
    Storage.at(root).write(name, data)
    return name


def written_uids(root: str | Path, uids: Sequence[str]) -> set[str]:
    """Those of ``uids`` that are rows of parts whose first row is one of them.

    That is every part that ``write_part`` made of some of these rows, as a task that was cut off
    and runs again finds it. Raises ``InputError`` as ``ShardSet`` does.
    """
    shards = ShardSet.open(root)
    slugs = {_slug(uid) for uid in uids}
    wanted, found = set(uids), set[str]()
    for part in shards.parts:
        if part.removeprefix("part-").rsplit("-", 3)[0] in slugs:
            for group in shards.groups_of(part):
                found.update(wanted.intersection(shards.read(group, ["uid"]).uid))
    return found


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", label)[:48]


def _encode(table: pa.Table, kind: str, label: str) -> tuple[str, bytes]:
    names = table.schema.names
    codecs = {
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name: "lz4"
        for field in table.schema
        if field.name not in _UNCOMPRESSED
    }
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression=codecs,
        use_dictionary=[name for name in _DICTIONARY if name in names],
        write_statistics=[name for name in _STATISTICS if name in names],
        store_schema=True,
        write_page_checksum=True,  # 4 bytes a page; the reader checks each page once
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    data = bytes(sink.getvalue().to_pybytes())
    # The second hash is of the footer, the one place that page checksums do not cover.
    footer = content_hash(parquet_footer(pa.BufferReader(data)))
    name = (
        f"{kind}-{_slug(label)}-{table.num_rows:05d}-{content_hash(data)[:16]}-{footer[:8]}.parquet"
    )
    return name, data
