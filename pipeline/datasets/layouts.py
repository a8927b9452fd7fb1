"""What the sources with a fixed folder layout share: listing, paths, messages, loading.

A source says which objects its folders hold (``LayoutDataset._objects``); everything else is here.
Paths go by ``/`` and are relative to the root. A record's key has two slashes where the folder of
the object ends and the mesh's place in it begins (``03001627/1a2b//models/model.obj``): textures
are looked for in that folder, and never outside it.
"""

from __future__ import annotations

import csv
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote_to_bytes

from pipeline.common import InputError, content_hash, file_hash
from pipeline.datasets.base import Asset, Record
from pipeline.meshes import UP_AXES, Limits, load_mesh
from pipeline.meshes.files import References, read_file
from pipeline.scene import MeshError

SKIPPED_FOLDERS = frozenset({"__MACOSX", "__pycache__"})
_TABLE_BYTES = 256 * 2**20  # of one metadata file that is read whole
_SHOWN = 5  # entries of a folder that a message names
Texts = list[tuple[str, str]]  # (text, its source)


def printable(path: str) -> str:
    """A path as valid Unicode: bytes of names that are not UTF-8 become escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def path_key(relative: str) -> str:
    """A relative path as a key: printable ASCII, from which ``load_asset`` has it back exactly."""
    return quote(os.fsencode(relative), safe="/ ")


def load_asset(
    root: Path,
    record: Record,
    up_axis: str,
    limits: Limits,
    *,
    texture: str | None = None,
    references: Callable[..., References] = References,
) -> Asset:
    """Read and normalise the mesh that ``record.key`` names under ``root``.

    ``sha256`` is of the mesh file alone. Raises ``MeshError`` as ``load_mesh`` does, and
    ``outside_reference`` for a file that is not under the root.
    """
    relative = os.fsdecode(unquote_to_bytes(record.key))
    folder = relative.partition("//")[0] if "//" in relative else ""
    path = root / relative
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise MeshError("outside_reference", f"{record.source} is not under the root")
    data = read_file(path, limits.file_bytes, "the mesh file")
    mesh = load_mesh(
        path,
        up_axis,
        limits,
        root=root / folder,
        data=data,
        texture=texture,
        references=references,
    )
    return Asset(mesh.normalised(), content_hash(data), len(data))


def make_record(
    dataset: str,
    native: str,
    folder: str,
    mesh: str,
    *,
    category: str | None = None,
    split: str | None = None,
    texts: Iterable[tuple[str, str]] = (),
) -> Record:
    """The record of the object in ``folder`` whose mesh lies at ``mesh`` in it.

    ``native`` is the object's own identifier; empty texts are left out.
    """
    texts = [(text, source) for text, source in texts if text.strip()]
    return Record(
        uid=f"{dataset}/{printable(native)}",
        dataset=dataset,
        source=printable(f"{folder}/{mesh}"),
        key=f"{path_key(folder)}//{path_key(mesh)}",
        category=category or None,
        split=split,
        texts=tuple(printable(text) for text, _ in texts),
        text_sources=tuple(source for _, source in texts),
    )


def as_words(label: object) -> str:
    """A label as plain words: ``NIGHT_STAND`` and ``night_stand`` -> ``night stand``."""
    return " ".join(str(label or "").replace("_", " ").lower().split())


def names_in(folder: Path, *, files: bool = False) -> list[str]:
    """The folders (or the files) in a folder, sorted, without hidden ones and links to folders.

    Raises ``InputError`` where it cannot be listed, or where a folder in it is a link out of it:
    a part of the data would be left out without a word.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] == "." or entry.name in SKIPPED_FOLDERS:
                    continue
                if files:
                    if entry.is_file():
                        found.append(entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    found.append(entry.name)
                elif entry.is_symlink() and entry.is_dir():
                    target = Path(os.path.realpath(entry.path))
                    if not target.is_relative_to(os.path.realpath(folder)):
                        raise InputError(
                            f"{printable(entry.path)} is a link out of its folder, which is not "
                            "followed: move the data there, or link the whole root"
                        )
    except OSError as error:
        raise InputError(
            f"{printable(str(folder))} cannot be listed ({error.strerror}): make it readable"
        ) from None
    return sorted(found)


def first_entries(folder: Path) -> str:
    """The first entries of a folder for a message: ``a, b, c and 7 more``, or ``nothing``."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        return f"an unreadable folder ({error.strerror})"
    shown = ", ".join(printable(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return shown + more if names else "nothing"


def read_json(path: Path, get: str) -> Any:
    """The content of a JSON file. Raises ``InputError`` that says ``get``, how to get it."""
    try:
        return json.loads(read_file(path, _TABLE_BYTES, path.name))
    except MeshError as error:
        what = "there is no such file" if error.kind == "missing_file" else error.message
        raise InputError(f"{path}: {what}; {get}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not whole JSON ({error}); {get}") from None


def lines_of(path: Path, opener: Any, get: str) -> Iterator[str]:
    """The lines of a text file that ``opener(path, "rt")`` opens, plain or compressed.

    Raises ``InputError`` for a file that is missing, cut short or not UTF-8.
    """
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as stream:
            yield from stream
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {get}") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read whole ({error}); {get}") from None


def csv_rows(path: Path, opener: Any, columns: Sequence[str], get: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header, one at a time; cells that a row lacks are empty.

    Raises ``InputError`` as ``lines_of`` does, and where the file is not CSV or lacks a column.
    """
    rows = csv.DictReader(lines_of(path, opener, get))
    try:
        for column in columns:
            if column not in (rows.fieldnames or ()):
                raise InputError(f"{path}: has no column {column}; {get}")
        for row in rows:
            yield {column: row[column] or "" for column in columns}
    except csv.Error as error:
        raise InputError(f"{path}: line {rows.line_num} is not CSV ({error}); {get}") from None


@dataclass(frozen=True)
class LayoutDataset(ABC):
    """Objects in a fixed folder layout under ``root``. A source adds its fields after these.

    ``up_axis`` is the source's own (``UP``) unless it names another. Records of one split only
    come with ``split``. An object whose folder is there and whose mesh is not is listed, and fails
    when it is loaded.
    """

    root: Path
    split: str | None = None
    up_axis: str = "auto"
    limits: Limits = field(default_factory=Limits)

    NAME: ClassVar[str]
    UP: ClassVar[str] = "+y"  # the axis that points up in the source's files
    SPLITS: ClassVar[tuple[str, ...]] = ()  # that the source has
    EXPECTED: ClassVar[str]  # the layout, for messages
    GET: ClassVar[str]  # how to get the data, for messages and `pipeline datasets`
    TEXTURE: ClassVar[str | None] = None  # see ``pipeline.meshes.load_mesh``

    @property
    def name(self) -> str:
        """The source's name."""
        return self.NAME

    @property
    def options(self) -> dict[str, Any]:
        """What the records depend on. The root goes by its last name: a moved folder is the same.

        Raises ``InputError`` as ``records`` does.
        """
        self._check()
        return {
            "root": self.root.resolve().name,
            "split": self.split,
            "up_axis": self._up(),
            "tables": {path.name: file_hash(path) for path in self._tables()},
            "limits": asdict(self.limits),
            **self._own_options(),
        }

    def count(self) -> int | None:
        """How many records there are: names and tables are read, no mesh is opened."""
        return sum(1 for _ in self.records())

    def records(self) -> Iterator[Record]:
        """All records, in a fixed order.

        Raises ``InputError`` where the root is not laid out as the source is, a table is missing
        or damaged, or nothing is left.
        """
        self._check()
        total = matched = 0
        for record in self._objects():
            total += 1
            if self.split is None or record.split == self.split:
                matched += 1
                yield record
        if not total:
            raise self._wrong_layout(self.root)
        if not matched:
            raise InputError(f"--split {self.split}: none of the {total} objects is in it")

    def load(self, record: Record) -> Asset:
        """Read and normalise one mesh; see ``load_asset``. Raises ``MeshError``."""
        return load_asset(self.root, record, self._up(), self.limits, texture=self.TEXTURE)

    @abstractmethod
    def _objects(self) -> Iterator[Record]:
        """All records of the source, in a fixed order, whatever their split."""

    def _tables(self) -> list[Path]:
        """The metadata files that the records depend on, those that are there."""
        return []

    def _own_options(self) -> dict[str, Any]:
        """Options beside those that all layouts have."""
        return {}

    def _up(self) -> str:
        return self.UP if self.up_axis == "auto" else self.up_axis

    def _check(self) -> None:
        if not self.root.is_dir():
            raise InputError(f"--root {self.root} is not a directory: {self.GET}")
        if self.up_axis != "auto" and self.up_axis not in UP_AXES:
            raise InputError(
                f"--up-axis {self.up_axis!r} is unknown: use auto or one of {', '.join(UP_AXES)}"
            )
        if self.split is not None and self.split not in self.SPLITS:
            has = f"use one of {', '.join(self.SPLITS)}" if self.SPLITS else "leave it out"
            raise InputError(f"--split {self.split}: {self.NAME} has no such split; {has}")

    def _wrong_layout(self, found_in: Path) -> InputError:
        """The error for a folder that does not hold what the layout says."""
        where = "--root" if found_in == self.root else "folder"
        return InputError(
            f"{where} {found_in}: expected {self.EXPECTED}, "
            f"found {first_entries(found_in)}; {self.GET}"
        )

    def _base(self, *names: str) -> str:
        """The first of the folders ``names`` that the root holds, relative to it with a slash.

        Empty where it holds none: then the root itself is taken for it.
        """
        return next((f"{name}/" for name in names if (self.root / name).is_dir()), "")
