"""Captions from files joined to records by their identifiers, on the driver, as records stream by.

The files go once into a temporary SQLite table on disk with an index over identifiers; each record
then costs one look-up. Memory stays at SQLite's page cache (``_CACHE_MB``) and two bytes a text,
and workers get records that carry their texts and never see a caption file.

A uid, path or hash names one object; a part of a path (a file's stem, an identifier) may be that
of several, which no record alone can tell: the first time that one matters, all records are listed
once more, and a text that fits several objects by a part is used for none.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_ASIN = re.compile(r"B0(?=\d*[A-Z])[0-9A-Z]{8}")  # ABO; one in ten has no digit after these
_DIGITS = frozenset("0123456789")
_LONG_HASH = 16
_HEX = re.compile(r"[0-9a-f]+|[0-9A-F]+")
# Where digits, lower and upper case meet; a capital letter and its word are one piece.
_EDGE = re.compile(r"(?<=[a-z])(?=[A-Z\d])|(?<=[A-Z])(?=\d)|(?<=\d)(?=[A-Za-z])")
_SHA256 = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{64}(?![0-9A-Za-z])")
# Also after a synset ("03001627_1a6f61..."), and before the number of a view ("..._003").
_PART = re.compile(
    rf"(?:\d{{8}}[_-])?({_UUID.pattern}|[0-9A-Za-z]{{8,}})(?:[_-](?:[A-Za-z]+[_-])?\d{{1,4}})?"
)
_NUMBERED = re.compile(r"(?=(?:[A-Za-z]*\d){2})[0-9A-Za-z]{8,}")
_SYNSET = re.compile(r"(\d{8})[_-]([0-9A-Za-z]+)")

# How a record is named by a key: by the whole of the file's key and of its own, by a part of the
# file's, by a part of its own.
_WHOLE, _PART_OF_FILE, _PART_OF_RECORD = range(3)
# What is known of a text: the best way in which a record claims it, and whether several do.
_CLAIMS = {_WHOLE: (5, 5), _PART_OF_FILE: (3, 4), _PART_OF_RECORD: (1, 2)}
_SEVERAL = (2, 4)


@dataclass
class _Match:
    """What one file says of one record: the rows of the record's best key in it."""

    rank: int
    rows: list[tuple[int, int, str, str]] = field(default_factory=list)  # how, text, source, raw


class CaptionJoin:
    """Joins the texts of caption files to records.

    A record is looked up by its uid, its uid without the dataset, its source path, and the last
    parts of these (a file's stem), best first; path-like identifiers of a file also count by the
    part of them that can only be an object's identifier, where no record has the whole. Use as a
    context manager: the table goes when it is left.
    """

    def __init__(
        self, files: Sequence[CaptionFile], listing: Callable[[], Iterable[Record]] = tuple
    ) -> None:
        """Read the files into the table; ``listing`` gives all records of the source, each time.

        Raises ``InputError`` as ``CaptionFile.entries`` does.
        """
        self._files = tuple(files)
        self._listing = listing
        self._listed = False
        self._claims: list[bytearray] = [bytearray() for _ in self._files]  # of each text
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

    def probe(self) -> None:
        """Raise as ``check`` does before a run begins, and forget what was counted.

        Reads on only until every file has named an object: mostly a handful of records.
        """
        if not self._files:
            return
        try:
            for _ in self.join(self._listing()):
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
        for index, file in enumerate(self._files):
            if not self.records or self.named[index]:
                continue
            told = f"--captions {file.path}: names none of the {self.records} objects"
            if several := self._several(index):
                raise InputError(
                    f"{told}, and {several} of its texts name several of them "
                    f"({self._one_of_several(index)[:80]!r}, for example); give uids, or paths as "
                    "the dataset has them"
                )
            raise InputError(
                f"{told} (it names {self._examples[index][:80]!r}, for example); give uids, "
                "identifiers or file names as the dataset has them"
            )

    def unused(self) -> list[int]:
        """How many texts of each file no record asked for."""
        return [n - sum(used) for n, used in zip(self.texts, self._used, strict=True)]

    @property
    def counts(self) -> dict[str, int]:
        """For a summary: ``captions_added``, ``_unused``, ``_ambiguous`` of them, ``_over_limit``.

        Ambiguous are those that name several objects.
        """
        unused = sum(self.unused())
        return {
            "captions_added": sum(self.texts) - unused - self._dropped,
            "captions_unused": unused,
            "captions_ambiguous": sum(map(self._several, range(len(self._files)))),
            "captions_over_limit": self._dropped,
        }

    def lines(self) -> list[str]:
        """One line for each file: how many objects it named, how much of it was used."""
        lines = []
        for index, (file, unused) in enumerate(zip(self._files, self.unused(), strict=True)):
            several = self._several(index)
            line = (
                f"{file.path.name}: captions for {self.named[index]} of {self.records} objects; "
                f"{unused - several} of its {self.texts[index]} texts are for others"
            )
            if several:
                line += (
                    f"; {several} name several objects and went to none "
                    f"({self._one_of_several(index)[:80]!r}, for example): give their uids or paths"
                )
            lines.append(line)
        return lines

    def _several(self, index: int) -> int:
        """How many texts of a file fit several objects."""
        return sum(map(self._claims[index].count, _SEVERAL))

    def _one_of_several(self, index: int) -> str:
        """The key of one of these."""
        assert self._table is not None
        claims = self._claims[index]
        text_id = min(place for state in _SEVERAL if (place := claims.find(state)) >= 0)
        (key,) = self._table.execute(
            "SELECT key FROM captions WHERE file = ? AND text_id = ? ORDER BY rowid LIMIT 1",
            (index, text_id),
        ).fetchone()
        return str(key)

    def _fill(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mrd3d-captions-")
        table = sqlite3.connect(Path(self._folder.name) / "captions.sqlite", isolation_level=None)
        self._table = table
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_MB * 1024}"):
            table.execute(f"PRAGMA {pragma}")
        table.execute(
            "CREATE TABLE captions "
            "(key TEXT, part INT, file INT, text_id INT, source TEXT, raw TEXT)"
        )
        table.execute("BEGIN")
        for index, file in enumerate(self._files):
            rows = self._rows(index, file)
            while batch := list(islice(rows, _ROWS)):
                table.executemany("INSERT INTO captions VALUES (?, ?, ?, ?, ?, ?)", batch)
        table.execute("CREATE INDEX by_key ON captions (key)")
        table.execute("COMMIT")
        self._claims = [bytearray(n) for n in self.texts]
        self._reset()

    def _rows(self, index: int, file: CaptionFile) -> Iterator[tuple[str, int, int, int, str, str]]:
        for identifier, source, raw in file.entries():
            key = _normal(identifier)
            if not key:
                continue
            text_id = self.texts[index]
            self.texts[index] += 1
            self._examples[index] = self._examples[index] or identifier
            text = _storable(raw[:_MOST_LENGTH])
            yield key, 0, index, text_id, source, text
            if synset := _SYNSET.fullmatch(key):  # ShapeNet has some models in several
                yield f"{synset[1]}/{synset[2]}", 0, index, text_id, source, text
            part = _object_part(key)
            if part and part != key:
                yield part, 1, index, text_id, source, text

    def _found(self, record: Record) -> list[tuple[str, str]]:
        """(source, raw text) of a record: of each file those under its best key."""
        added: list[tuple[str, str]] = []
        for file, match in self._matches(record):
            if not self._listed and any(how != _WHOLE for how, _, _, _ in match.rows):
                self._list()
            claims = self._claims[file]
            # What a better claim has, or several have alike, is not this record's.
            texts = [
                (text_id, source, raw)
                for how, text_id, source, raw in match.rows
                if how == _WHOLE or claims[text_id] == _CLAIMS[how][0]
            ]
            self.named[file] += bool(texts)
            for text_id, _, _ in texts:
                self._used[file][text_id] = 1
            self._dropped += max(0, len(texts) - _MOST_TEXTS)
            added += [(source, raw) for _, source, raw in texts[:_MOST_TEXTS]]
        return added

    def _list(self) -> None:
        """Go through all records and learn what claims each text."""
        self._listed = True
        for record in self._listing():
            for file, match in self._matches(record):
                claims = self._claims[file]
                for how, text_id, _, _ in match.rows:
                    once, several = _CLAIMS[how]
                    if claims[text_id] <= several:  # else another has it by a better claim
                        claims[text_id] = once if claims[text_id] < once else several

    def _matches(self, record: Record) -> Iterable[tuple[int, _Match]]:
        """(file, what it says of the record), of the files that know one of its keys."""
        assert self._table is not None
        whole = _whole_keys(record)
        keys = [*whole, *_part_keys(record, whole)]
        marks = ", ".join("?" * len(keys))
        rank = {key: place for place, key in enumerate(keys)}
        found: dict[int, _Match] = {}
        # rowid order is the order of the file.
        for key, part, file, text_id, source, raw in self._table.execute(
            "SELECT key, part, file, text_id, source, raw FROM captions "
            f"WHERE key IN ({marks}) ORDER BY file, rowid",
            keys,
        ):
            match = found.get(file)
            if match is None or rank[key] < match.rank:
                match = found[file] = _Match(rank[key])
            if rank[key] == match.rank:
                how = _PART_OF_RECORD if key not in whole else _PART_OF_FILE if part else _WHOLE
                match.rows.append((how, text_id, source, raw))
        return found.items()


def candidates(record: Record) -> list[str]:
    """The keys by which a record may stand in a caption file, best first.

    A file's stem is one of them only where it may tell objects apart: not ``model``, not ``001``.
    """
    return [*(whole := _whole_keys(record)), *_part_keys(record, whole)]


def _whole_keys(record: Record) -> list[str]:
    """Those of them that no other object of the source has, best first."""
    found = [_normal(record.uid), _normal(record.uid.partition("/")[2]), _normal(record.source)]
    # Objaverse-XL names files by their hash, and so do captions of it: its keys hold it. A hash
    # in the path may be that of a folder with other objects.
    found += [key for key in _SHA256.findall(record.key) if key not in record.source]
    return [key for key in dict.fromkeys(found) if key]


def _part_keys(record: Record, whole: Collection[str]) -> list[str]:
    """Those of them that another object may have as well, best first."""
    found: list[str] = []
    for path in (_normal(record.uid.partition("/")[2]), _normal(record.source)):
        part, stem = _object_part(path), path.rpartition("/")[2]
        found += [part] if part else []
        # Names are cleaned last: that takes longest.
        if stem in whole or stem in found or not stem:
            continue
        if _NUMBERED.fullmatch(stem) or _object_part(stem) or clean_name(stem):
            found.append(stem)
    return [key for key in dict.fromkeys(found) if key not in whole]


def _normal(identifier: str) -> str:
    path = _storable(identifier).strip().replace("\\", "/").removeprefix("./").strip("/")
    return _SUFFIX.sub("", path)


def _object_part(path: str) -> str:
    """The last part of a path that can only be an object's identifier; empty where none is."""
    for part in reversed(path.split("/")):
        match = _PART.fullmatch(part)
        if match and _is_identifier(match[1]):
            return match[1]
    return ""


def _is_identifier(text: str) -> bool:
    """Whether letters and digits are mixed as in a UUID or hash; not a word and its counter."""
    if _UUID.fullmatch(text) or _ASIN.fullmatch(text):
        return True
    edges = len(_EDGE.findall(text))
    if len(text) >= _LONG_HASH and _HEX.fullmatch(text):
        return edges >= 2
    # Signs drawn by chance from 36 or 62 stand beside one of another kind four times in ten. One
    # letter alone may be the sign between sizes: 100x200x300.
    mixed = _HEX.fullmatch(text) or 3 * edges > len(text)
    return bool(mixed) and edges >= 3 and len(set(text) - _DIGITS) > 1


def _storable(text: str) -> str:
    """``text`` without lone surrogates, which neither SQLite nor Arrow can hold."""
    return text if text.isascii() else text.encode("utf-8", "ignore").decode("utf-8")
