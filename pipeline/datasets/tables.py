"""Texts and categories of a folder of meshes from a CSV or Parquet table beside it.

One row per object or per caption; rows of the same object are joined. Columns are recognised by
name (``ROLES``), or named with ``columns``. A row finds its object by a path column, relative to
the table's folder or to the root; or by an identifier: the path or file name, with or without its
suffix, or the uid; or, where there is neither, by its ``name`` column. An identifier that is the
path or uid of one object is not the file name of another. Letters with accents may be one code
point in a table and two in a file name, or the other way round (Unicode NFC and NFD).
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pipeline.common import InputError

# Roles of columns, and the names by which they are recognised, best first.
ROLES: dict[str, tuple[str, ...]] = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path"),
        *("mesh", "mesh_path", "model", "model_path"),
    ),
    "id": ("uid", "id", "uuid", "object_id", "model_id", "asset_id", "sha256"),
    "caption": ("caption", "captions", "text", "texts", "description", "descriptions"),
    "name": ("name", "title"),
    "tags": ("tags", "tag", "keywords"),
    "category": ("category", "class", "label"),
    "split": ("split", "subset"),
}
SPLITS = ("train", "val", "test")  # all that the contract has
# As tables spell them; None: said to be in none.
_SPLIT_WORDS: dict[str, str | None] = {
    **{name: name for name in SPLITS},
    "training": "train",
    **dict.fromkeys(("valid", "validation", "dev", "development"), "val"),
    "testing": "test",
    **dict.fromkeys(("none", "null", "nan")),
}
_OFTEN_NO_SPLIT = "subset"  # of another kind as often as not: what it holds decides
# File names that are looked for when no table is given, best first.
AUTO_NAMES = tuple(
    f"{stem}.{suffix}"
    for stem in ("metadata", "captions", "manifest")
    for suffix in ("parquet", "csv")
)
FIELD_LIMIT = 2**24  # characters in one CSV field
_PROBED_ROWS = 1000
_LISTED_FOLDERS = 64  # whose names are kept while paths are looked up
_Row = dict[str, Any]
_Names = Callable[[str], frozenset[str] | None]


@dataclass
class Entry:
    """What a table says of one object."""

    captions: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    category: str | None = None
    split: str | None = None


@dataclass
class Table:
    """Entries by path relative to the root, and by identifier; for one listing of the objects."""

    path: Path
    columns: dict[str, str]  # role -> the column that has it
    by_path: dict[str, Entry]
    by_id: dict[str, Entry]
    ignored: tuple[str, ...] = ()  # columns without a role
    contradicted: int = 0  # rows whose category or split is not the one that an object had
    source: str = "folder"  # the first part of uids
    whole: set[str] = field(default_factory=set)  # NFC identifiers that were a path or uid
    by_name: int = 0  # files found by their names alone

    def told(self, found: Collection[int], objects: int, matched: int) -> str | None:
        """What of the table is not used, in a line; None where all of it is.

        ``found`` are the identities of the entries that ``find`` gave, for ``matched`` of
        ``objects``.
        """
        keys = itertools.chain(self.by_path.items(), self.by_id.items())
        lost = [key for key, entry in keys if id(entry) not in found]
        parts = []
        if matched < objects:
            parts.append(f"says nothing of {objects - matched:,} of {objects:,} objects")
        if lost:
            parts.append(f"{len(lost):,} of its objects are not there ({lost[0]!r}, for example)")
        if self.by_name:
            parts.append(f"{self.by_name:,} found by their file names alone")
        if self.ignored:
            parts.append(f"columns not used: {', '.join(self.ignored)[:200]}")
        if self.contradicted:
            parts.append(
                f"{self.contradicted:,} rows contradict the category or split that their object has"
            )
        return f"{self.path}: {'; '.join(parts)}" if parts else None

    def find(self, relative: str) -> Entry | None:
        """The entry of a file by its path relative to the root, None where there is none.

        Files of the root are to be looked up first, as they are listed: their paths are what may
        look like the bare name of a file in a folder. What has no entry is looked up once more in
        NFC: macOS writes file names in NFD.
        """
        found = self._find(relative, self.by_path, self.by_id)
        return found or self._find(_composed(relative), *self._composed_keys)

    @functools.cached_property
    def _composed_keys(self) -> tuple[dict[str, Entry], dict[str, Entry]]:
        """``by_path`` and ``by_id`` with their keys in NFC."""
        by_path, by_id = (
            {_composed(key): entry for key, entry in entries.items()}
            for entries in (self.by_path, self.by_id)
        )
        return by_path, by_id

    def _find(
        self, relative: str, by_path: dict[str, Entry], by_id: dict[str, Entry]
    ) -> Entry | None:
        stem = re.sub(r"\.[^./]*$", "", relative)
        for key in (relative, stem):
            if key in by_path:
                return by_path[key]
        whole = [key for path in (relative, stem) for key in self._ids(path) if key in by_id]
        if whole:
            self.whole.update(map(_composed, whole))
            return by_id[whole[0]]
        for key in (relative.rsplit("/", 1)[-1], stem.rsplit("/", 1)[-1]):
            if key in by_id and _composed(key) not in self.whole:
                self.by_name += 1
                return by_id[key]
        return None

    def find_whole(self, place: str) -> Entry | None:
        """The entry of exactly this path relative to the root, or of its uid."""
        keys = (key for key in self._ids(place) if key in self.by_id)
        return self.by_path.get(place) or next((self.by_id[key] for key in keys), None)

    def _ids(self, path: str) -> tuple[str, str]:
        return f"{self.source}/{path}", path

    def example_key(self) -> str:
        """One key of the table, for messages."""
        return next(itertools.chain(self.by_path, self.by_id), "")


def _composed(text: str) -> str:
    """A text in Unicode's form NFC."""
    return unicodedata.normalize("NFC", text)


def find_table(root: Path) -> Path | None:
    """The table to use when none is given: one of ``AUTO_NAMES`` in the root or beside it.

    A table in the root counts always. One in the folder above counts only if it has a path column
    and one of its first 1,000 rows names an existing file under the root: a stray table of another
    data set must not label these objects.
    """
    for name in AUTO_NAMES:
        if (root / name).is_file():
            return root / name
    resolved = root.resolve()
    for name in AUTO_NAMES:
        table = resolved.parent / name
        if not table.is_file():
            continue
        try:
            columns = _roles(table, {})
            rows = itertools.islice(_rows(table), _PROBED_ROWS)
            values = [str(row.get(columns["path"]) or "") for row in rows]
        except (InputError, KeyError):
            continue  # not a table of ours; naming it with --metadata would say why
        names = _kept_names()
        keys = (_path_key(value, resolved.parent, resolved, names) for value in values)
        if any(key and (resolved / key).is_file() for key in keys):
            return table
    return None


def read_table(path: Path, root: Path, columns: Mapping[str, str], source: str = "folder") -> Table:
    """Read a table. ``columns`` names the column of a role where it is not recognised by name.

    Raises ``InputError`` for a file that cannot be read, a role or column that does not exist, a
    split that is none, or a table without a key or without anything to say.
    """
    roles = _roles(path, columns)
    by_path: dict[str, Entry] = {}
    by_id: dict[str, Entry] = {}
    key_role = next(role for role in ("path", "id", "name") if role in roles)
    root, folder, contradicted = root.resolve(), path.resolve().parent, 0
    names = _kept_names()
    for row in _rows(path):
        value = str(row.get(roles[key_role]) or "").strip()
        if not value:
            continue
        if key_role == "path":
            key = _path_key(value, folder, root, names)
            if not key:
                continue
            entry = by_path.setdefault(key, Entry())
        else:
            entry = by_id.setdefault(value, Entry())
        split = _split(row.get(roles["split"]), path, roles["split"]) if "split" in roles else None
        contradicted += _add(entry, row, roles, split)
    ignored = tuple(name for name in _header(path) if name and name not in roles.values())
    return Table(path, roles, by_path, by_id, ignored, contradicted, source)


def _add(entry: Entry, row: _Row, roles: dict[str, str], split: str | None) -> bool:
    """Join a row to an object; whether it says another category or split than the object has."""

    def texts(role: str) -> list[str]:
        return cell_texts(row.get(roles[role])) if role in roles else []

    entry.captions += texts("caption")
    entry.names += [name for name in texts("name") if name not in entry.names]
    entry.tags += [tag for tag in texts("tags") if tag not in entry.tags]
    category = next(iter(texts("category")), None)
    entry.category, entry.split = entry.category or category, entry.split or split
    return category not in (None, entry.category) or split not in (None, entry.split)


def _split(cell: Any, path: Path, column: str) -> str | None:
    """The split that a cell names. Raises ``InputError`` where it is none: no row must get lost."""
    texts = cell_texts(cell)
    found = {_SPLIT_WORDS.get(text.lower(), "") for text in texts} or {None}
    split = found.pop()
    if found or split == "":
        raise InputError(
            f"{path}: column {column!r} holds {'|'.join(texts)[:80]!r}, which is no split: write "
            f"{', '.join(SPLITS)} or nothing, or give the column another name"
        )
    return split


def _holds_splits(path: Path, column: str) -> bool:
    """Whether all that a column holds are splits."""
    parquet = path.suffix.lower() == ".parquet"
    for row in parquet_rows(path, [column]) if parquet else _rows(path):
        if not all(text.lower() in _SPLIT_WORDS for text in cell_texts(row.get(column))):
            return False
    return True


def cell_texts(value: Any) -> list[str]:
    """A cell as texts: a list, JSON of a list, or texts with ``|`` between them."""
    if value is None or value != value:  # NaN is not equal to itself
        return []
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = [value]
        else:
            value = value.split("|")
    if not isinstance(value, list | tuple):
        value = [value]
    return [text for item in value if item is not None and (text := str(item).strip())]


def _path_key(value: str, folder: str | Path, root: Path, names: _Names) -> str:
    """A path from a table in ``folder``, relative to the root, with ``/``; empty if it leads out.

    It is relative to the folder, or to the root where nothing lies there.
    """
    value = value.strip().replace("\\", "/")
    if not value or "\0" in value:
        return ""
    absolute = os.path.normpath(f"{folder}/{value}" if value[0] != "/" else value)
    beside = os.path.relpath(absolute, root).replace(os.sep, "/")
    plain = os.path.normpath(value).replace(os.sep, "/")
    if plain.startswith(("/", "..")):
        plain = ""
    if beside.startswith("..") or (plain and plain != beside and not _is_there(absolute, names)):
        return plain
    return beside


def _is_there(path: str, names: _Names) -> bool:
    """Whether a file has this path, or has it without its suffix, or is its folder.

    ``clouds.h5/12`` is a cloud of ``clouds.h5``.
    """
    folder, name = os.path.split(path)
    listed = names(folder)
    return listed is None or _composed(name) in listed


def _kept_names() -> _Names:
    """``_file_names`` that lists a folder once for the rows of a table that lie in it."""
    return functools.lru_cache(_LISTED_FOLDERS)(_file_names)


def _file_names(folder: str) -> frozenset[str] | None:
    """NFC names of the files of a folder, with their suffixes and without; None for a file."""
    try:
        with os.scandir(folder) as entries:
            files = [_composed(entry.name) for entry in entries if not entry.is_dir()]
    except NotADirectoryError:
        return None
    except (OSError, ValueError):  # also a name that no file can have
        return frozenset()
    return frozenset(files).union(name.rpartition(".")[0] for name in files)


def _roles(path: Path, columns: Mapping[str, str]) -> dict[str, str]:
    """The column of each role. Raises ``InputError`` where the table cannot be used."""
    header = _header(path)
    spelled = {name.strip().lower(): name for name in header}
    roles: dict[str, str] = {}
    for role, names in ROLES.items():
        found = next((spelled[name] for name in names if name in spelled), None)
        if found is None or (
            found == spelled.get(_OFTEN_NO_SPLIT)
            and role not in columns
            and not _holds_splits(path, found)
        ):
            continue
        roles[role] = found
    for role, column in columns.items():
        if role not in ROLES:
            raise InputError(f"column role {role!r} is unknown: use one of {', '.join(ROLES)}")
        if column not in header:
            raise InputError(
                f"{path} has no column {column!r}: its columns are {', '.join(header)[:300]}"
            )
        roles[role] = column
    if not {"path", "id", "name"} & roles.keys():
        raise InputError(
            f"{path} has no column that says which mesh a row is for: name one "
            f"'path', 'uid' or 'name' (its columns: {', '.join(header)[:300]})"
        )
    if not {"caption", "name", "tags", "category", "split"} & roles.keys():
        raise InputError(
            f"{path} has no text column: name one 'caption', 'name', 'tags' or 'category' "
            f"(its columns: {', '.join(header)[:300]})"
        )
    return roles


def _header(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        return parquet_names(path)
    with _csv_errors(path), path.open(newline="", encoding="utf-8-sig") as stream:
        return next(csv.reader(stream, delimiter=delimiter(stream)), [])


def _rows(path: Path) -> Iterator[_Row]:
    """Rows as dictionaries, one at a time or one batch at a time."""
    if path.suffix.lower() == ".parquet":
        yield from parquet_rows(path)
        return
    csv.field_size_limit(FIELD_LIMIT)
    with _csv_errors(path), path.open(newline="", encoding="utf-8-sig") as stream:
        separator = delimiter(stream)
        reader = csv.DictReader(stream, strict=True, delimiter=separator)
        for row in reader:
            if None in row:
                raise InputError(
                    f"{path}, line {reader.line_num}: more fields than the header has; "
                    f"quote texts that hold {SEPARATORS[separator]}"
                )
            yield row


SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def delimiter(stream: TextIO) -> str:
    """What separates the fields of a CSV file that is at its start, by its first line.

    A comma, or else the semicolon or tab that spreadsheets write in some languages.
    """
    line = stream.readline(FIELD_LIMIT)
    stream.seek(0)
    return next((mark for mark in SEPARATORS if mark in line), ",")


def parquet_names(path: Path) -> list[str]:
    """Names of the columns of a Parquet file. Raises ``InputError``."""
    try:
        return list(open_parquet(path).schema_arrow.names)
    except ValueError as error:  # UnicodeDecodeError, and what Arrow calls invalid
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path}: damaged ({reason}); fetch or write it again") from None


def parquet_rows(path: Path, columns: list[str] | None = None) -> Iterator[_Row]:
    """Rows of a Parquet file, one batch at a time; only the ``columns`` if given.

    Raises ``InputError`` where it is damaged or holds what Python has no value for.
    """
    import pyarrow as pa

    file = open_parquet(path)
    try:
        for batch in file.iter_batches(batch_size=4096, columns=columns):
            yield from batch.to_pylist()
    # Text that is not UTF-8, a date beyond the calendar, a kind that is not implemented.
    except (OSError, pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path}: damaged ({reason}); fetch or write it again") from None


def open_parquet(path: Path) -> Any:
    """The Parquet file, ready to be read. Raises ``InputError`` where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as Parquet ({message[:200]}): give a Parquet or CSV file"
        ) from None


class _csv_errors:  # noqa: N801 (reads as a statement)
    """Turn what goes wrong while reading a CSV file into ``InputError``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise InputError(
                f"{self._path} cannot be read ({error.strerror}): check --metadata"
            ) from None
        if isinstance(error, csv.Error) and "unexpected end" in str(error):
            raise InputError(
                f"{self._path} ends inside of a quoted value: close the quote"
            ) from None
        if isinstance(error, UnicodeDecodeError | csv.Error):
            raise InputError(
                f"{self._path} is not a UTF-8 CSV file ({error}): save it as UTF-8 CSV or Parquet"
            ) from None
