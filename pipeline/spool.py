"""The records of a job in a temporary file beside the shards, from which workers read theirs.

Neither the driver nor a worker ever holds all records: the file is written as they stream by, in
row groups of ``GROUP``, and a task is a slice of a row group.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common import InputError, content_hash
from pipeline.datasets.base import Record
from pipeline.shards.storage import Storage, shown, within

GROUP = 64  # records in a row group: the largest task
_TASKS_PER_WORKER = 4  # at least, where there is enough to do: the last ones even out
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("uid", "dataset", "source", "key", "category", "split")),
        ("texts", pa.list_(pa.string())),
        ("text_sources", pa.list_(pa.string())),
        ("places", pa.list_(pa.int16())),
    ]
)
_FIELDS = [field.name for field in fields(Record)]


@dataclass(frozen=True)
class Todo:
    """One record, and which of a job's shard sets lack it."""

    record: Record
    places: tuple[int, ...]  # numbers of the sets


@dataclass(frozen=True)
class Spool:
    """The written file."""

    address: str  # path or URI of the file
    total: int  # records

    def tasks(self, workers: int) -> Iterator[pa.Table]:
        """One table (group, begin, end) for each task: small enough that every worker has some."""
        size = GROUP
        while size > 1 and self.total < size * workers * _TASKS_PER_WORKER:
            size //= 2
        for start in range(0, self.total, size):
            group, begin = divmod(start, GROUP)
            end = min(begin + size, self.total - group * GROUP)
            yield pa.table({"group": [group], "begin": [begin], "end": [end]})


def unseen(address: str, why: str) -> str:
    """What to tell when a worker does not find the file that the driver wrote."""
    folder = shown(address).rpartition("/")[0]
    return (
        f"--out {folder}: the worker on {platform.node()} does not see what the job put there "
        f"({why}); on a cluster, give a folder that all its machines share under one path, or an "
        "address such as s3://bucket/folder that all may read and write"
    )


class SpoolReader:
    """Reads tasks of a spool, on any worker."""

    def __init__(self, address: str) -> None:
        """Raises ``InputError`` where this machine does not see the file."""
        file = Storage.at(address)
        try:
            self._file = pq.ParquetFile(file.filesystem.open_input_file(file.path))
        except OSError as error:
            raise InputError(unseen(address, str(error.strerror or error))) from error

    def read(self, tasks: pa.Table) -> list[Todo]:
        """The records of the tasks."""
        found = []
        for task in tasks.to_pylist():
            group = self._file.read_row_group(task["group"])
            rows = group.slice(task["begin"], task["end"] - task["begin"]).to_pylist()
            found += [Todo(_record(row), tuple(row["places"])) for row in rows]
        return found


@contextmanager
def spooled(out: str, todo: Iterable[Todo]) -> Iterator[Spool]:
    """Write what there is to do to a hidden file in ``out``, and remove it in the end."""
    storage = Storage.at(out)
    name = f".tmp-records-{uuid.uuid4().hex[:12]}.parquet"
    try:
        total = _write(storage, name, todo)
        # Workers run in other folders: a local path must be a full one.
        yield Spool(within(storage.path if storage.is_local else storage.root, name), total)
    finally:
        storage.delete(name)


def _write(storage: Storage, name: str, todo: Iterable[Todo]) -> int:
    """Write the file; how many records it holds. Raises ``InputError`` where it cannot be."""
    total, items = 0, iter(todo)
    with storage.writing(name):
        stream = storage.create(name)
        writer = pq.ParquetWriter(stream, _SCHEMA)
    try:
        while rows := [
            {**asdict(item.record), "places": list(item.places)} for item in islice(items, GROUP)
        ]:
            with storage.writing(name):
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
            total += len(rows)
    finally:
        with storage.writing(name), stream:
            writer.close()
    return total


def with_split(record: Record, holdout: float) -> Record:
    """Put a record without a split into "test" or "train", by a hash of its uid.

    The same uid lands in the same split whatever else is in the set.
    """
    if not holdout or record.split is not None:
        return record
    place = int(content_hash(f"split/{record.uid}")[:13], 16) / 16**13
    return replace(record, split="test" if place < holdout else "train")


def _record(row: dict[str, Any]) -> Record:
    values: dict[str, Any] = {name: row[name] for name in _FIELDS}
    for name in ("texts", "text_sources"):
        values[name] = tuple(values[name])
    return Record(**values)
