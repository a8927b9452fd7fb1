"""Which files a shard set held when a run last finished, so that files lost since are noticed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import InputError
from pipeline.shards.storage import Storage, shown

CONTENTS = "contents.json"
_FORMAT = "mrd3d-contents"
_VERSION = 1
_KINDS = ("part-", "failures-", "images-")


@dataclass(frozen=True)
class Contents:
    """The files of a set, compared with those it held when a run last finished."""

    recorded: int  # files held then
    missing: list[str]  # held then, not now
    added: list[str]  # by a run that has not finished
    begun: bool = False  # a run that has not finished, whether or not it has added anything

    @property
    def finished(self) -> bool:
        """Whether the set is as a finished run left it, and no other has begun since."""
        return not (self.missing or self.added or self.begun)


def mark_unfinished(root: str | Path) -> None:
    """Record, before a run writes the first file of a set, that it has not finished.

    The files of a record that is there stay in it: what comes to the set will differ from them.
    Raises ``InputError`` when the folder cannot be written, or when that record is damaged.
    """
    storage = Storage.at(root)
    files = _recorded(storage)["files"] if storage.exists(CONTENTS) else []
    _write(storage, files, {"begun": True})


def record_contents(root: str | Path) -> None:
    """Record the files of the set, at the end of a run that left nothing to do.

    The record depends on the files alone, so equal sets have equal records. Raises ``InputError``
    when the folder cannot be written.
    """
    storage = Storage.at(root)
    _write(storage, _files(storage))


def compare_contents(root: str | Path) -> Contents | None:
    """The files of the set against its record.

    None without a record: the set was made by an older version or by other code. Raises
    ``InputError`` when the record is damaged.
    """
    storage = Storage.at(root)
    if not storage.exists(CONTENTS):
        return None
    record = _recorded(storage)
    held, there = set(record["files"]), set(_files(storage))
    begun = record.get("begun") is True
    return Contents(len(held), sorted(held - there), sorted(there - held), begun)


def _recorded(storage: Storage) -> dict[str, Any]:
    """The record that is there. Raises ``InputError`` when it is damaged."""
    name = storage.show(CONTENTS)
    remedy = "delete it and run the command that made the set again"
    try:
        value = json.loads(storage.read(CONTENTS))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON ({error}); {remedy}") from error
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise InputError(f"{name}: not the record of a shard set; {remedy}")
    if value.get("version") != _VERSION:
        raise InputError(f"{name}: version {value.get('version')!r} is unknown; upgrade mrd3d")
    files = value.get("files")
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise InputError(f"{name}: holds no list of files; {remedy}")
    return value


def has_lost_files(root: str | Path) -> bool:
    """Whether files of a finished run are gone. Raises as ``compare_contents`` does."""
    contents = compare_contents(root)
    return contents is not None and bool(contents.missing)


def what_lacks(root: str | Path) -> str | None:
    """For those who read a set: in one line, why it may hold less than it should.

    None when it is complete, or when there is no record. Raises as ``compare_contents`` does.
    """
    contents = compare_contents(root)
    if contents is not None and contents.missing:
        count = len(contents.missing)
        return f"{shown(root)}: files missing: {count}; `pipeline verify` names them"
    if contents is not None and contents.added:
        return f"{shown(root)}: the run that makes this set has not finished; reading what is there"
    return None


def _write(storage: Storage, files: list[str], more: dict[str, Any] | None = None) -> None:
    record = {"format": _FORMAT, "version": _VERSION, **(more or {}), "files": files}
    storage.write(CONTENTS, (json.dumps(record, indent=1) + "\n").encode())


def _files(storage: Storage) -> list[str]:
    """Sorted names of what holds rows, failures or kept views."""
    return [name for name in storage.list("", ".parquet") if name.startswith(_KINDS)]
