"""Dataset ``folder`` on another store: ``--root s3://bucket/meshes`` and what else pyarrow opens.

Names are listed there; a mesh, and the files that it refers to, are fetched when it is loaded, into
a folder of its own that goes afterwards. What may be referred to, and how large it may be, is as
for a local folder.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes

import pyarrow.fs as pafs

from pipeline.common import InputError
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.folder import ARCHIVES, FolderDataset
from pipeline.datasets.layouts import SKIPPED_FOLDERS, load_asset
from pipeline.datasets.tables import AUTO_NAMES
from pipeline.meshes import UP_AXES, Limits
from pipeline.meshes.files import References
from pipeline.scene import MeshError
from pipeline.shards.storage import Storage, shown

_REMEMBERED_FOLDERS = 64  # whose names are kept for the search of textures
_CHUNK = 1 << 20
_NAMED = 5  # entries that a message names


@dataclass(frozen=True)
class RemoteFolderDataset(FolderDataset):
    """As ``FolderDataset``, of the files at ``address``; objects and manifest are the same.

    A table is found in the folder itself only, or given as a local file.
    """

    root: Path = Path()  # not used
    address: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """As of the same folder on disk: the address goes by its last name."""
        path = PurePosixPath(self._storage.path)
        # The parent takes the name from the root; everything else of it holds here too.
        return {**super().options, "root": path.name}

    def load(self, record: Record) -> Asset:
        """Fetch and read one mesh, as ``FolderDataset.load`` does.

        Raises ``MeshError`` as that does, and ``download_failed`` of the stage ``fetch`` where the
        store does not answer.
        """
        relative = os.fsdecode(unquote_to_bytes(record.key))
        with tempfile.TemporaryDirectory(prefix="mrd3d-mesh-") as name:
            root = Path(os.path.realpath(name))
            fetch = _Fetch(self._storage, root, self.limits)
            if not Path(os.path.realpath(root / relative)).is_relative_to(root):
                raise MeshError("outside_reference", f"{record.source} is not under the root")
            if not fetch.file(root / relative):
                raise MeshError("missing_file", "the mesh file does not exist")
            return load_asset(
                root,
                record,
                self.up_axis,
                self.limits,
                references=functools.partial(_RemoteReferences, fetch),
            )

    @property
    def _storage(self) -> Storage:
        return _storage(self.address)

    def _shown_root(self) -> str:
        return shown(self.address)

    def _found(self) -> str:
        names = sorted(info.base_name for info in _listed(self._storage, ""))
        return ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "") or "nothing"

    def _check(self) -> None:
        if self.up_axis != "auto" and self.up_axis not in UP_AXES:
            raise InputError(
                f"--up-axis {self.up_axis!r} is unknown: use auto or one of {', '.join(UP_AXES)}"
            )
        if not self._storage.is_there:
            raise InputError(
                f"--root {shown(self.address)}: there is nothing at this address; check it, and "
                "that its store lets you list it"
            )

    def _table_path(self) -> Path | None:
        if self.metadata is not None or not self.auto_metadata:
            return super()._table_path()
        return _table(self.address)

    def _table_root(self, table: Path) -> Path:
        return table.parent

    def _folders(
        self, passed: dict[str, list[str]] | None = None
    ) -> Iterator[tuple[str, list[str]]]:
        storage = self._storage
        pending = [""]
        while pending:
            folder = pending.pop()
            prefix = f"{folder}/" if folder else ""
            listed = sorted(_listed(storage, folder), key=lambda info: str(info.base_name))
            files = [
                info.base_name
                for info in listed
                if info.type == pafs.FileType.File
                and info.base_name[0] != "."
                and self._is_named(info.base_name, prefix)
            ]
            names = [info.base_name for info in listed if info.type == pafs.FileType.File]
            archives = [prefix + name for name in names if name.lower().endswith(ARCHIVES)]
            if passed is not None and archives:
                passed.setdefault("archives", []).extend(archives)
            if files:
                yield folder, files
            pending += [
                prefix + info.base_name
                for info in reversed(listed)
                if info.type == pafs.FileType.Directory
                and info.base_name[0] != "."
                and info.base_name not in SKIPPED_FOLDERS
            ]


class _Fetch:
    """Copies files of a store to the same places under a local folder."""

    def __init__(self, storage: Storage, root: Path, limits: Limits) -> None:
        self.storage, self.root, self._limit = storage, root, limits.file_bytes

    def file(self, path: Path) -> bool:
        """Bring the file that belongs at ``path``; whether there is one.

        Raises ``MeshError``: ``too_large``, ``download_failed``.
        """
        if path.is_file():
            return True
        name = path.relative_to(self.root).as_posix()
        try:
            info = self.storage.filesystem.get_file_info(self.storage.join(name))
            if info.type != pafs.FileType.File:
                return False
            if info.size > self._limit:
                raise MeshError(
                    "too_large", f"{name!r} has {info.size:,} bytes; the limit is {self._limit:,}"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                self.storage.filesystem.open_input_stream(self.storage.join(name)) as source,
                path.open("wb") as target,
            ):
                shutil.copyfileobj(source, target, _CHUNK)
            if path.stat().st_size != info.size:
                raise OSError("it was cut short")
        except FileNotFoundError:
            return False
        except OSError as error:
            path.unlink(missing_ok=True)
            reason = str(error.strerror or error)
            raise MeshError("download_failed", f"{name!r}: {reason}"[:300], "fetch") from None
        return True


class _RemoteReferences(References):
    """Fetches what an asset refers to when it is first looked for."""

    def __init__(self, fetch: _Fetch, *arguments: Any, **named: Any) -> None:
        self._fetch = fetch
        super().__init__(*arguments, **named)

    def _is_file(self, path: Path) -> bool:
        return path.is_relative_to(self._fetch.root) and self._fetch.file(path)

    def _names(self, folder: Path) -> list[str]:
        if not folder.is_relative_to(self._fetch.root):
            return []
        relative = folder.relative_to(self._fetch.root).as_posix()
        return _names(self._fetch.storage.root, "" if relative == "." else relative)


@functools.lru_cache(maxsize=4)
def _storage(address: str) -> Storage:
    return Storage.at(address)


@functools.lru_cache(maxsize=_REMEMBERED_FOLDERS)
def _names(address: str, folder: str) -> list[str]:
    return [info.base_name for info in _listed(_storage(address), folder)]


def _listed(storage: Storage, folder: str) -> list[pafs.FileInfo]:
    """The entries of a folder of the store. Raises ``InputError``."""
    selector = pafs.FileSelector(storage.join(folder) if folder else storage.path)
    selector.allow_not_found = True
    try:
        listed = storage.filesystem.get_file_info(selector)
    except OSError as error:
        raise InputError(
            f"{storage.show(folder)}: cannot be listed ({error.strerror or error}); check the "
            "address and the credentials"
        ) from error
    return [info for info in listed if info.base_name]


@functools.lru_cache(maxsize=4)
def _table(address: str) -> Path | None:
    """A local copy of the folder's table of texts, for the time of this process."""
    storage = _storage(address)
    name = next((name for name in AUTO_NAMES if storage.exists(name)), None)
    if name is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="mrd3d-table-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / name).write_bytes(storage.read(name))
    return folder / name
