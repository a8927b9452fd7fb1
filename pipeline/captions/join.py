"""Captions from files joined to records by their identifiers, on the driver, as records stream by.

The files go once into a temporary SQLite table on disk with an index over identifiers; each record
then costs one look-up. Memory stays at SQLite's page cache (``_CACHE_MB``) however many lines the
files have, and workers get records that carry their texts and never see a caption file.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType

from pipeline.captions.clean import clean_name
from pipeline.captions.files import CaptionFile
from pipeline.common import InputError
from pipeline.datasets.base import Record

_CACHE_MB = 64
_ROWS = 10_000  # put into the table at once
_MOST_TEXTS = 64  # of one file for one object: more is a key that names a class, not an object
_MOST_LENGTH = 4000  # characters of a raw text; cleaning reads no further

_SUFFIX = re.compile(
    r"\.(glb|gltf|obj|ply|stl|off|dae|fbx|blend|3ds|usdz?|npy|npz|h5|png|jpe?g|webp|txt|json|zip)$",
    re.IGNORECASE,
)
# What names one object wherever it stands: a UUID, or eight and more letters and digits mixed.
_UUID = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
_IDENTIFIER = rf"(?:{_UUID}|(?=(?:[A-Za-z]*\d){{2}})[0-9A-Za-z]{{8,}})"
_SHA256 = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{64}(?![0-9A-Za-z])")
# Also after a synset ("03001627_1a6f61..."), and before the number of a view ("..._003").
_PART = re.compile(rf"(?:\d{{8}}[_-])?({_IDENTIFIER})(?:[_-](?:[A-Za-z]+[_-])?\d{{1,4}})?")


class CaptionJoin:
    """Joins the texts of caption files to records.

    A record is looked up by its uid, its uid without the dataset, its source path, and the last
    parts of these (a file's stem), best first; path-like identifiers of a file also count by the
    part of them that can only be an object's identifier. Use as a context manager: the table goes
    when it is left.
    """

    def __init__(self, files: Sequence[CaptionFile]) -> None:
        """Read the files into the table. Raises ``InputError`` as ``CaptionFile.entries`` does."""
        self._files = tuple(files)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._table: sqlite3.Connection | None = None
        self.records = 0  # joined so far
        self.texts = [0] * len(self._files)  # of each file
        self.named = [0] * len(self._files)  # records that each file named
        self._examples = [""] * len(self._files)
        self._used: list[bytearray] = [bytearray() for _ in self._files]
        self._dropped = 0
        if self._files:
            try:
                self._fill()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> CaptionJoin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the table."""
        if self._table is not None:
            self._table.close()
            self._table = None
        if self._folder is not None:
            with suppress(OSError):
                self._folder.cleanup()
            self._folder = None

    def join(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records in order, each with its own texts first and then those of the files."""
        for record in records:
            self.records += 1
            added = self._found(record) if self._table is not None else []
            if not added:
                yield record
                continue
            yield replace(
                record,
                texts=(*record.texts, *(text for _, text in added)),
                text_sources=(*record.text_sources, *(source for source, _ in added)),
            )

    def probe(self, records: Iterable[Record]) -> None:
        """Raise as ``check`` does before a run begins, and forget what was counted.

        Reads on only until every file has named an object: mostly a handful of records.
        """
        if not self._files:
            return
        try:
            for _ in self.join(records):
                if all(self.named):
                    break
            self.check()
        finally:
            self._reset()

    def _reset(self) -> None:
        self.records = self._dropped = 0
        self.named = [0] * len(self._files)
        self._used = [bytearray(n) for n in self.texts]

    def check(self) -> None:
        """Raise ``InputError`` for a file that named none of the records joined, if any were."""
        for file, named, example in zip(self._files, self.named, self._examples, strict=True):
            if self.records and not named:
                raise InputError(
                    f"--captions {file.path}: names none of the {self.records} objects (it names "
                    f"{example[:80]!r}, for example); give uids, identifiers or file names as the "
                    "dataset has them"
                )

    def unused(self) -> list[int]:
        """How many texts of each file no record asked for."""
        return [n - sum(used) for n, used in zip(self.texts, self._used, strict=True)]

    @property
    def counts(self) -> dict[str, int]:
        """For a summary: ``captions_added``, ``captions_unused``, ``captions_over_limit``."""
        unused = sum(self.unused())
        return {
            "captions_added": sum(self.texts) - unused - self._dropped,
            "captions_unused": unused,
            "captions_over_limit": self._dropped,
        }

    def lines(self) -> list[str]:
        """One line for each file: how many objects it named, how much of it was used."""
        return [
            f"{file.path.name}: captions for {named} of {self.records} objects; "
            f"{unused} of its {texts} texts are for others"
            for file, named, texts, unused in zip(
                self._files, self.named, self.texts, self.unused(), strict=True
            )
        ]

    def _fill(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mrd3d-captions-")
        table = sqlite3.connect(Path(self._folder.name) / "captions.sqlite", isolation_level=None)
        self._table = table
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_MB * 1024}"):
            table.execute(f"PRAGMA {pragma}")
        table.execute(
            "CREATE TABLE captions (key TEXT, file INT, text_id INT, source TEXT, raw TEXT)"
        )
        table.execute("BEGIN")
        for index, file in enumerate(self._files):
            rows = self._rows(index, file)
            while batch := list(islice(rows, _ROWS)):
                table.executemany("INSERT INTO captions VALUES (?, ?, ?, ?, ?)", batch)
        table.execute("CREATE INDEX by_key ON captions (key)")
        table.execute("COMMIT")
        self._reset()

    def _rows(self, index: int, file: CaptionFile) -> Iterator[tuple[str, int, int, str, str]]:
        for identifier, source, raw in file.entries():
            key = _normal(identifier)
            if not key:
                continue
            text_id = self.texts[index]
            self.texts[index] += 1
            self._examples[index] = self._examples[index] or identifier
            text = _storable(raw[:_MOST_LENGTH])
            yield key, index, text_id, source, text
            part = _object_part(key)
            if part and part != key:
                yield part, index, text_id, source, text

    def _found(self, record: Record) -> list[tuple[str, str]]:
        """(source, raw text) of a record: of each file those under its best key."""
        assert self._table is not None
        keys = candidates(record)
        marks = ", ".join("?" * len(keys))
        rank = {key: place for place, key in enumerate(keys)}
        by_file: dict[int, dict[str, list[tuple[int, str, str]]]] = {}
        # rowid order is the order of the file.
        for key, file, text_id, source, raw in self._table.execute(
            "SELECT key, file, text_id, source, raw FROM captions "
            f"WHERE key IN ({marks}) ORDER BY file, rowid",
            keys,
        ):
            by_file.setdefault(file, {}).setdefault(key, []).append((text_id, source, raw))
        added: list[tuple[str, str]] = []
        for file, by_key in by_file.items():
            texts = by_key[min(by_key, key=rank.__getitem__)]
            self.named[file] += 1
            for text_id, _, _ in texts:
                self._used[file][text_id] = 1
            self._dropped += max(0, len(texts) - _MOST_TEXTS)
            added += [(source, raw) for _, source, raw in texts[:_MOST_TEXTS]]
        return added


def candidates(record: Record) -> list[str]:
    """The keys by which a record may stand in a caption file, best first.

    A file's stem is one of them only where it tells objects apart: not ``model``, not ``001``.
    """
    native = _normal(record.uid.partition("/")[2])
    source = _normal(record.source)
    found = [_normal(record.uid), native, source]
    # Objaverse-XL names files by their hash, and so do captions of it: its keys hold it.
    found += _SHA256.findall(record.key)
    for path in (native, source):
        part = _object_part(path)
        stem = path.rpartition("/")[2]
        found += [part] if part else []
        found += [stem] if stem and (part or clean_name(stem)) else []
    return [key for key in dict.fromkeys(found) if key]


def _normal(identifier: str) -> str:
    path = _storable(identifier).strip().replace("\\", "/").removeprefix("./").strip("/")
    return _SUFFIX.sub("", path)


def _object_part(path: str) -> str:
    """The last part of a path that can only be an object's identifier; empty where none is."""
    for part in reversed(path.split("/")):
        match = _PART.fullmatch(part)
        if match:
            return match[1]
    return ""


def _storable(text: str) -> str:
    """``text`` without lone surrogates, which neither SQLite nor Arrow can hold."""
    return text if text.isascii() else text.encode("utf-8", "ignore").decode("utf-8")
