"""Reading an asset and the files it refers to, without ever leaving its folder.

A mesh file is hostile input: what it names is text, not a path to be trusted. Nothing is fetched
from a network; absolute paths, ``..``, URL schemes and symbolic links that lead out of the asset's
folder are refused (``outside_reference``).
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from pipeline.meshes.parts import Limits
from pipeline.scene import MeshError

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")  # two letters or more: "C:" is a drive
_DRIVE = re.compile(r"^[A-Za-z]:")

# Folders beside a mesh in which exporters leave its textures.
TEXTURE_FOLDERS = (
    "textures",
    "texture",
    "tex",
    "images",
    "maps",
    "materials/textures",
    "materials",
)
_LISTED_ENTRIES = 20_000  # a larger folder is not searched for another spelling of a name


@contextmanager
def _closing_on_error(handle: int) -> Iterator[None]:
    """Close a file descriptor where the block fails."""
    try:
        yield
    except BaseException:
        os.close(handle)
        raise


def read_file(path: Path, limit: int, what: str) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises ``MeshError``: ``missing_file``, ``not_a_file``, ``too_large``, ``unreadable``.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise MeshError("missing_file", f"{what} does not exist") from None
    except OSError as error:
        raise MeshError("unreadable", f"{what} cannot be opened: {error.strerror}") from None
    with _closing_on_error(handle):
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise MeshError("not_a_file", f"{what} is not a regular file")
        if status.st_size > limit:
            raise MeshError(
                "too_large", f"{what} has {status.st_size:,} bytes; the limit is {limit:,}"
            )
        stream = os.fdopen(handle, "rb")
    with stream:
        return stream.read(status.st_size)  # read(limit) would take that much memory first


class References:
    """Reads files named inside an asset. ``base`` is the folder of the asset.

    ``root`` bounds the search for textures in sibling folders (``search=True``); it is ``base`` or
    a folder above it, such as the root of a dataset.
    """

    def __init__(self, base: Path, root: Path | None, limits: Limits, used_bytes: int = 0) -> None:
        self._base = Path(os.path.realpath(base))
        self._root = Path(os.path.realpath(root)) if root is not None else self._base
        if not self._base.is_relative_to(self._root):
            self._root = self._base
        self._budget = limits.file_bytes - used_bytes

    def read(self, reference: str, *, missing: str, search: bool = False) -> bytes:
        """The bytes of the file that ``reference`` names, relative to the asset's folder.

        With ``search`` a file that is not where the reference says is looked for by its name alone
        in the asset's folder, its texture folders and those beside it, since exporters write paths
        of the machine they ran on. Raises ``MeshError``: ``missing`` where there is no such file,
        ``outside_reference`` where the reference leads out of the folder, ``too_large``.
        """
        shown = reference if len(reference) <= 80 else reference[:77] + "..."
        path: Path | None = None
        refusal: MeshError | None = None
        try:
            path = self._resolve(reference, shown)
        except MeshError as error:
            refusal = error
        if path is None and search:
            path = self._find(reference)
        if path is None:
            raise refusal or MeshError(missing, f"{shown!r} is not in the asset's folder")
        data = read_file(path, self._budget, f"referenced file {shown!r}")
        self._budget -= len(data)
        return data

    def _resolve(self, reference: str, shown: str) -> Path | None:
        """The file under ``base``, None where there is none; raises ``outside_reference``."""
        outside = MeshError(
            "outside_reference", f"refers to {shown!r}, which is outside the asset's folder"
        )
        for text in dict.fromkeys((unquote(reference), reference)):
            name = text.replace("\\", "/")
            if "\0" in name or name.startswith("/") or _SCHEME.match(name) or _DRIVE.match(name):
                raise outside
            target = Path(os.path.realpath(self._base / name))
            if not target.is_relative_to(self._base):
                raise outside
            if target.is_file():
                return target
        return None

    def _find(self, reference: str) -> Path | None:
        """A file of the same name in the usual texture folders, inside ``root``."""
        name = unquote(reference).replace("\\", "/").rsplit("/", 1)[-1].strip().lower()
        if not name or "\0" in name:
            return None
        folders = [self._base]
        for place in (self._base, self._base.parent):
            if place.is_relative_to(self._root):
                for folder in _entries(place, TEXTURE_FOLDERS):
                    folders += [folder, *_entries(folder, TEXTURE_FOLDERS)]
        for folder in folders:
            for candidate in _entries(folder, (name,)):
                target = Path(os.path.realpath(candidate))
                if target.is_file() and target.is_relative_to(self._root):
                    return target
        return None


def _entries(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Entries of ``folder`` with one of the lower-case ``names``, whatever their case, sorted."""
    try:
        with os.scandir(folder) as entries:
            listed = [entry.name for entry in itertools.islice(entries, _LISTED_ENTRIES)]
    except OSError:  # not a folder, or not readable
        return []
    return [folder / name for name in sorted(listed) if name.lower() in names]
