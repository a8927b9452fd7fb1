"""Dataset ``folder``: any directory of mesh files, with texts from a table or from their names."""

from __future__ import annotations

import fnmatch
import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pipeline.captions import GENERIC_NAMES, clean_name
from pipeline.common import InputError, file_hash
from pipeline.console import note
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.layouts import (
    SKIPPED_FOLDERS,
    first_entries,
    load_asset,
    path_key,
    printable,
)
from pipeline.datasets.sources import Source, SourceOptions
from pipeline.datasets.tables import Entry, Table, find_table, read_table
from pipeline.meshes import SUFFIXES, UP_AXES, Limits

ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


@functools.cache
def _tell(line: str) -> None:
    """Once: a source is listed several times in a job."""
    note(line)


@dataclass(frozen=True)
class FolderDataset:
    """All mesh files under ``root``: sorted by name, a folder's files before its subfolders.

    - ``uid`` is ``folder/`` and the path relative to the root without its suffix; the suffix stays
      where another mesh of the same name lies in the same folder.
    - Hidden files and folders are skipped; links to folders, and links to files outside the root,
      are not followed, and archives not unpacked; a note says how many there are.
    - Texts and categories come from a table (see ``pipeline.datasets.tables``): ``metadata``, or
      else ``metadata``, ``captions`` or ``manifest`` with ``.parquet`` or ``.csv`` in the root, or
      in the folder above if it names files under the root. ``auto_metadata=False`` uses none.
    - What the table does not say comes from the path: the name from the file, or from its folder
      where the file name is one that fits any file (``model.obj``) or a hash; the category from
      the folder in the layouts ``category/file`` and ``category/object/model.obj``.

    The table is held in memory while records are listed; the listing itself streams.
    """

    root: Path
    metadata: Path | None = None
    auto_metadata: bool = True
    pattern: str | None = None  # of the relative path or the file name, as in a shell: *_lod0.glb
    up_axis: str = "auto"  # see pipeline.meshes.load_mesh
    columns: tuple[tuple[str, str], ...] = ()  # (role, column) where names do not tell
    limits: Limits = field(default_factory=Limits)

    # What a source of other files has in their place.
    NAME: ClassVar[str] = "folder"
    SUFFIXES: ClassVar[tuple[str, ...]] = SUFFIXES
    THING: ClassVar[tuple[str, str]] = ("mesh", "meshes")

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
        table = self._table_path()
        return {
            "root": self.root.resolve().name,
            "pattern": self.pattern,
            "up_axis": self.up_axis,
            "metadata": None if table is None else {"file": table.name, "sha256": file_hash(table)},
            "columns": dict(self.columns),
            "limits": asdict(self.limits),
        }

    def count(self) -> int:
        """How many records there are: the names are listed, no mesh is opened."""
        self._check()
        return sum(len(files) for _, files in self._folders())

    def records(self) -> Iterator[Record]:
        """All records, in a fixed order.

        Raises ``InputError`` where the root is missing or holds no mesh, the table cannot be used,
        or the table names none of the meshes.
        """
        self._check()
        table_path = self._table_path()
        table = None
        if table_path is not None:
            root = self._table_root(table_path)
            table = read_table(table_path, root, dict(self.columns), self.NAME)
        total = matched = 0
        used: set[int] = set()
        # Until the table names one: a run over the first few must hear, too, that it names none.
        held: list[Record] = []
        passed: dict[str, list[str]] = {}
        for folder, files in self._folders(passed):
            prefix = f"{folder}/" if folder else ""
            for name, own in zip(files, own_names(files), strict=True):
                relative = prefix + name
                for record, entry in self._records_of(printable(prefix + own), relative, table):
                    total, matched = total + 1, matched + (entry is not None)
                    used.add(id(entry))
                    held.append(record)
                    if table is None or matched:
                        yield from held
                        held.clear()
        if not total:
            named = ", ".join(self.SUFFIXES)
            raise InputError(
                f"--root {self._shown_root()}: expected {self.THING[0]} files ({named}), "
                + (
                    f"none matches {self.pattern!r}: check --pattern"
                    if self.pattern
                    else f"found {self._found()}: check --root"
                )
            )
        if table is not None and not matched:
            raise InputError(
                f"{table.path} names none of the {total} {self.THING[1]} under "
                f"{self._shown_root()} (it names {table.example_key()!r}, for example): check its "
                f"column {next(iter(table.columns.values()))!r} or give another table"
            )
        told = table.told(used, total, matched) if table is not None else None
        if told is not None:
            _tell(told)
        if passed:
            parts = [
                f"{kind} ({len(names):,}, such as {names[0]!r})" for kind, names in passed.items()
            ]
            _tell(f"{self._shown_root()}: not read: {', '.join(parts)}")

    def _shown_root(self) -> str:
        return str(self.root)

    def _found(self) -> str:
        """What the root holds, for messages."""
        return first_entries(self.root)

    def _records_of(
        self, uid: str, relative: str, table: Table | None
    ) -> Iterator[tuple[Record, Entry | None]]:
        """The records of one file, and what the table says of each."""
        entry = table.find(printable(relative)) if table is not None else None
        yield make_record(self.NAME, uid, relative, entry), entry

    def load(self, record: Record) -> Asset:
        """Read and normalise one mesh; ``sha256`` is of the mesh file alone.

        Raises ``MeshError`` as ``load_mesh`` does; ``outside_reference`` for a file that is not
        under the root.
        """
        return load_asset(self.root, record, self.up_axis, self.limits)

    def _check(self) -> None:
        if not self.root.is_dir():
            raise InputError(
                f"--root {self.root} is not a directory: give a folder of {self.THING[1]}"
            )
        if self.up_axis != "auto" and self.up_axis not in UP_AXES:
            raise InputError(
                f"--up-axis {self.up_axis!r} is unknown: use auto or one of {', '.join(UP_AXES)}"
            )

    def _table_path(self) -> Path | None:
        if self.metadata is not None:
            if not self.metadata.is_file():
                raise InputError(f"--metadata {self.metadata} is not a file: give a CSV or Parquet")
            return self.metadata
        return find_table(self.root) if self.auto_metadata else None

    def _table_root(self, table: Path) -> Path:
        """The folder that paths in the table are relative to, unless they are to the table's."""
        del table
        return self.root

    def _folders(
        self, passed: dict[str, list[str]] | None = None
    ) -> Iterator[tuple[str, list[str]]]:
        """(folder relative to the root, its mesh files), both sorted, one folder at a time.

        ``passed`` takes what a user may have meant to be read and is not, by what it is.
        """
        base = os.path.realpath(self.root)
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(os.path.join(base, folder)) as entries:  # noqa: PTH118 (str in)
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                raise InputError(
                    f"{folder or self.root} cannot be listed ({error.strerror}): make it readable"
                ) from None
            prefix = f"{folder}/" if folder else ""
            files = [
                entry.name
                for entry in listed
                if entry.name[0] != "." and self._is_mesh(entry, prefix, base)
            ]
            if passed is not None:
                found = set(files)
                for entry in listed:
                    kind = None if entry.name in found else self._passed_over(entry, prefix)
                    if kind:
                        passed.setdefault(kind, []).append(prefix + entry.name)
            if files:
                yield folder, files
            pending += [
                prefix + entry.name
                for entry in reversed(listed)
                if entry.name[0] != "."
                and entry.name not in SKIPPED_FOLDERS
                and entry.is_dir(follow_symlinks=False)
            ]

    def _is_named(self, name: str, prefix: str) -> bool:
        """Whether a file of the folder ``prefix`` is one of the meshes by its name."""
        if not name.lower().endswith(self.SUFFIXES):
            return False
        return self.pattern is None or (
            fnmatch.fnmatchcase(prefix + name, self.pattern)
            or fnmatch.fnmatchcase(name, self.pattern)
        )

    def _passed_over(self, entry: os.DirEntry[str], prefix: str) -> str | None:
        """What an entry is that is not read; None where nobody would expect it to be."""
        if entry.name[0] == ".":
            return None
        if entry.is_symlink() and entry.is_dir():
            return "links to folders"
        if entry.is_symlink() and self._is_named(entry.name, prefix):
            return "links to nothing or out of the folder"
        return "archives" if entry.name.lower().endswith(ARCHIVES) and entry.is_file() else None

    def _is_mesh(self, entry: os.DirEntry[str], prefix: str, base: str) -> bool:
        if not self._is_named(entry.name, prefix):
            return False
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            return target.is_file() and target.is_relative_to(base)
        return not entry.is_dir()


def own_names(files: Sequence[str]) -> list[str]:
    """The files of one folder as uids name them: without suffix, unless that makes two alike."""
    stems = [PurePosixPath(name).stem for name in files]
    count, names = Counter(stems), set(files)
    return [
        stem if count[stem] == 1 and stem not in names else name
        for name, stem in zip(files, stems, strict=True)
    ]


def make_record(dataset: str, uid: str, relative: str, entry: Entry | None) -> Record:
    """The record of a file, by what the table says of it and, where it says nothing, its path."""
    texts: list[tuple[str, str]] = []
    category = split = None
    if entry is not None:
        texts += [(caption, "caption") for caption in entry.captions]
        texts += [(name, "name") for name in entry.names]
        if entry.tags:
            texts.append((", ".join(entry.tags), "tags"))
        category, split = entry.category, entry.split
    shown = printable(relative)
    folder_name, folder_category = _from_path(shown)
    if entry is None or not entry.names:
        texts.append(folder_name)
    return Record(
        uid=f"{dataset}/{uid}",
        dataset=dataset,
        source=shown,
        key=path_key(relative),
        category=category or folder_category,
        split=split,
        texts=tuple(text for text, _ in texts),
        text_sources=tuple(source for _, source in texts),
    )


def _from_path(relative: str) -> tuple[tuple[str, str], str | None]:
    """((raw name, its source), category) of a path relative to the root."""
    *folders, file = relative.split("/")
    named = [f for f in folders if clean_name(f) and f.lower() not in GENERIC_NAMES]
    text = (PurePosixPath(file).stem, "name")
    if not clean_name(file) and named:
        # object/model.obj, category/object/model.obj: the folder is the object.
        text = (named.pop(), "folder")
        folders = folders[:-1]
    if len(folders) == 1 and folders[0].lower() not in GENERIC_NAMES and clean_name(folders[0]):
        return text, clean_name(folders[0])
    return text, None


def _build(options: SourceOptions) -> FolderDataset:
    common: dict[str, Any] = {
        "metadata": options.metadata,
        "pattern": options.pattern,
        "up_axis": options.up_axis or "auto",
    }
    if options.root_uri is not None:
        from pipeline.datasets.remote import RemoteFolderDataset

        return RemoteFolderDataset(address=options.root_uri, **common)
    assert options.root is not None
    return FolderDataset(options.root, **common)


SOURCE = Source(
    name="folder",
    summary="any folder of meshes, searched recursively; texts from a table or from the names",
    licence="that of the files",
    size="any",
    get="give a folder of meshes, on disk or at an address such as s3://bucket/meshes",
    options=("root", "root_uri", "metadata", "up_axis", "pattern"),
    required=("root",),
    build=_build,
)
