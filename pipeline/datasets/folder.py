"""Dataset ``folder``: any directory of mesh files, with texts from a table or from their names."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from pipeline.captions import GENERIC_NAMES, clean_name
from pipeline.common import InputError, content_hash, file_hash
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.sources import Source, SourceOptions
from pipeline.datasets.tables import Entry, find_table, read_table
from pipeline.meshes import SUFFIXES, UP_AXES, Limits, load_mesh
from pipeline.meshes.files import read_file
from pipeline.scene import MeshError

_SKIPPED_FOLDERS = {"__MACOSX", "__pycache__"}


@dataclass(frozen=True)
class FolderDataset:
    """All mesh files under ``root``: sorted by name, a folder's files before its subfolders.

    - ``uid`` is ``folder/`` and the path relative to the root without its suffix; the suffix stays
      where another mesh of the same name lies in the same folder.
    - Hidden files and folders are skipped; links to folders, and links to files outside the root,
      are not followed.
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

    @property
    def name(self) -> str:
        """``folder``."""
        return "folder"

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
            table = read_table(table_path, self.root, dict(self.columns))
        total = matched = 0
        for folder, files in self._folders():
            stems = Counter(PurePosixPath(name).stem for name in files)
            for name in files:
                stem = PurePosixPath(name).stem
                alone = stems[stem] == 1 and stem not in files
                relative = f"{folder}/{name}" if folder else name
                entry = table.find(_printable(relative)) if table is not None else None
                total, matched = total + 1, matched + (entry is not None)
                uid = f"{folder}/{stem}" if folder and alone else stem if alone else relative
                yield _record(_printable(uid), relative, entry)
        if not total:
            raise InputError(
                f"no mesh files ({', '.join(SUFFIXES)}) under {self.root}"
                + (f" match {self.pattern!r}" if self.pattern else "")
                + ": check --root"
            )
        if table is not None and not matched:
            raise InputError(
                f"{table.path} names none of the {total} meshes under {self.root} "
                f"(it names {table.example_key()!r}, for example): check its column "
                f"{next(iter(table.columns.values()))!r} or give another table"
            )

    def load(self, record: Record) -> Asset:
        """Read and normalise one mesh; ``sha256`` is of the mesh file alone.

        Raises ``MeshError`` as ``load_mesh`` does; ``outside_reference`` for a file that is not
        under the root.
        """
        path = self.root / os.fsdecode(unquote_to_bytes(record.key))
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise MeshError("outside_reference", f"{record.source} is not under the root")
        data = read_file(path, self.limits.file_bytes, "the mesh file")
        mesh = load_mesh(path, self.up_axis, self.limits, root=self.root, data=data)
        return Asset(mesh.normalised(), content_hash(data), len(data))

    def _check(self) -> None:
        if not self.root.is_dir():
            raise InputError(f"--root {self.root} is not a directory: give a folder of meshes")
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

    def _folders(self) -> Iterator[tuple[str, list[str]]]:
        """(folder relative to the root, its mesh files), both sorted, one folder at a time."""
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
            if files:
                yield folder, files
            pending += [
                prefix + entry.name
                for entry in reversed(listed)
                if entry.name[0] != "."
                and entry.name not in _SKIPPED_FOLDERS
                and entry.is_dir(follow_symlinks=False)
            ]

    def _is_mesh(self, entry: os.DirEntry[str], prefix: str, base: str) -> bool:
        if not entry.name.lower().endswith(SUFFIXES):
            return False
        if self.pattern is not None and not (
            fnmatch.fnmatchcase(prefix + entry.name, self.pattern)
            or fnmatch.fnmatchcase(entry.name, self.pattern)
        ):
            return False
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            return target.is_file() and target.is_relative_to(base)
        return not entry.is_dir()


def _printable(path: str) -> str:
    """A path as valid Unicode: bytes of names that are not UTF-8 become escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _record(uid: str, relative: str, entry: Entry | None) -> Record:
    texts: list[tuple[str, str]] = []
    category = split = None
    if entry is not None:
        texts += [(caption, "caption") for caption in entry.captions]
        texts += [(name, "name") for name in entry.names]
        if entry.tags:
            texts.append((", ".join(entry.tags), "tags"))
        category, split = entry.category, entry.split
    shown = _printable(relative)
    folder_name, folder_category = _from_path(shown)
    if entry is None or not entry.names:
        texts.append(folder_name)
    return Record(
        uid=f"folder/{uid}",
        dataset="folder",
        source=shown,
        key=quote(os.fsencode(relative), safe="/ "),
        category=category or folder_category,
        split=split,
        texts=tuple(text for text, _ in texts),
        text_sources=tuple(source for _, source in texts),
    )


def _from_path(relative: str) -> tuple[tuple[str, str], str | None]:
    """((raw name, its source), category) of a path relative to the root."""
    *folders, file = relative.split("/")
    named = [folder for folder in folders if clean_name(folder)]
    text = (PurePosixPath(file).stem, "name")
    if not clean_name(file) and named:
        # object/model.obj, category/object/model.obj: the folder is the object.
        text = (named.pop(), "folder")
        folders = folders[:-1]
    if len(folders) == 1 and folders[0].lower() not in GENERIC_NAMES and clean_name(folders[0]):
        return text, clean_name(folders[0])
    return text, None


def _build(options: SourceOptions) -> FolderDataset:
    assert options.root is not None
    return FolderDataset(
        options.root,
        metadata=options.metadata,
        pattern=options.pattern,
        up_axis=options.up_axis or "auto",
    )


SOURCE = Source(
    name="folder",
    summary="any folder of meshes, searched recursively; texts from a table or from the names",
    licence="that of the files",
    size="any",
    get="give a folder of meshes",
    options=("root", "metadata", "up_axis", "pattern"),
    required=("root",),
    build=_build,
)
