"""Reading an asset and the files it refers to, without ever leaving its folder.

A mesh file is hostile input: what it names is text, not a path to be trusted. Nothing is fetched
from a network; absolute paths, ``..``, URL schemes and symbolic links that lead out of the asset's
folder are refused (``outside_reference``). Where the caller names a root above that folder,
textures may also lie elsewhere under the root, never outside it.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from pipeline.meshes.parts import Limits
from pipeline.scene import MeshError

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")  # two letters or more: "C:" is a drive
_DRIVE = re.compile(r"^[A-Za-z]:")
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one alone

# Folders beside a mesh in which exporters leave its textures, one in another at most.
TEXTURE_FOLDERS = ("textures", "texture", "tex", "images", "maps", "materials")
_LISTED_ENTRIES = 20_000  # a larger folder is not searched for another spelling of a name
_NAMED_MISSING = 8  # missing files that one message names
_LONGEST = 4096  # characters of a reference: no system opens a longer path


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

    ``root`` bounds what is read for textures (``search=True``); it is ``base`` or a folder above
    it, such as the root of a dataset. ``texture`` names an image that stands in for the textures of
    a material library that names none.
    """

    def __init__(
        self,
        base: Path,
        root: Path | None,
        limits: Limits,
        used_bytes: int = 0,
        texture: str | None = None,
    ) -> None:
        self._base = Path(os.path.realpath(base))
        self._root = Path(os.path.realpath(root)) if root is not None else self._base
        if not self._base.is_relative_to(self._root):
            self._root = self._base
        self._budget = limits.file_bytes - used_bytes
        self.texture = texture if texture and self._is_file(self._base / texture) else None

    def read(self, reference: str, *, missing: str, search: bool = False) -> bytes:
        """The bytes of the file that ``reference`` names, relative to the asset's folder.

        With ``search`` the file may lie anywhere under the root; one that is not where the
        reference says is looked for by the end of its path, then by its name alone, in the
        asset's folder, its texture folders and those beside it, since exporters write paths of the
        machine they ran on. Raises ``MeshError``: ``missing`` where there is no such file,
        ``outside_reference`` where the reference leads out of the folder, ``too_large``.
        """
        path = self._locate(reference, missing, search)
        data = read_file(path, self._budget, f"referenced file {_shown(reference)}")
        self._budget -= len(data)
        return data

    def require(self, names: Iterable[str], *, missing: str) -> None:
        """Raise one ``MeshError`` that names all textures among ``names`` that are not there.

        What ``read`` with ``search`` would find counts as there. The kind is that of the first.
        """
        lost: list[str] = []
        first: MeshError | None = None
        for name in dict.fromkeys(names):
            try:
                self._locate(name, missing, search=True)
            except MeshError as error:
                first = first or error
                lost.append(name)
            if len(lost) > _NAMED_MISSING:
                break
        if first is None:
            return
        if len(lost) == 1:
            raise first
        more = " and more" if len(lost) > _NAMED_MISSING else ""
        named = ", ".join(_shown(name) for name in lost[:_NAMED_MISSING])
        raise MeshError(
            first.kind, f"textures not in the asset's folder or one beside it: {named}{more}"
        )

    def _locate(self, reference: str, missing: str, search: bool) -> Path:
        """The file that a reference means; raises ``missing`` or ``outside_reference``."""
        path: Path | None = None
        refusal: MeshError | None = None
        if len(reference) > _LONGEST or _SURROGATE.search(reference):
            raise MeshError(missing, f"{_shown(reference)} cannot be the name of a file")
        try:
            path = self._resolve(reference, self._root if search else self._base)
        except MeshError as error:
            refusal = error
        if path is None and search:
            path = self._find(reference)
        if path is None:
            beside = " or a texture folder beside it" if search else ""
            message = f"{_shown(reference)} is not in the asset's folder{beside}"
            raise refusal or MeshError(missing, message)
        return path

    def _resolve(self, reference: str, bound: Path) -> Path | None:
        """The file under ``bound``, None where there is none; raises ``outside_reference``."""
        outside = MeshError(
            "outside_reference",
            f"refers to {_shown(reference)}, which is outside the asset's folder",
        )
        for text in dict.fromkeys((unquote(reference), reference)):
            name = text.replace("\\", "/")
            if "\0" in name or name.startswith("/") or _SCHEME.match(name) or _DRIVE.match(name):
                raise outside
            target = Path(os.path.realpath(self._base / name))
            if not target.is_relative_to(bound):
                raise outside
            if self._is_file(target):
                return target
        return None

    def _find(self, reference: str) -> Path | None:
        """A file of the same name in the usual texture folders, inside ``root``."""
        text = unquote(reference).replace("\\", "/")
        *above, last = text.split("/")
        name = last.strip().lower()
        if not name or "\0" in text:
            return None
        places = [self._base]
        if self._base.parent.is_relative_to(self._root):
            places.append(self._base.parent)
        # .../wood/oak.png of another machine is wood/oak.png here.
        for depth in (2, 1):
            if len(above) >= depth and ".." not in above[-depth:] and all(above[-depth:]):
                tail = "/".join([*above[-depth:], last])
                for place in places:
                    target = Path(os.path.realpath(place / tail))
                    if target.is_relative_to(self._root) and self._is_file(target):
                        return target
        folders = [self._base]
        for place in places:
            for folder in self._entries(place, TEXTURE_FOLDERS):
                folders += [folder, *self._entries(folder, TEXTURE_FOLDERS)]
        for folder in folders:
            for candidate in self._entries(folder, (name,)):
                target = Path(os.path.realpath(candidate))
                if target.is_relative_to(self._root) and self._is_file(target):
                    return target
        return None

    # What a source whose files lie elsewhere answers in its own way.

    def _is_file(self, path: Path) -> bool:
        """Whether a path under the root is a file that can be read."""
        try:
            return path.is_file()
        except OSError:  # a name that is too long for the file system
            return False

    def _names(self, folder: Path) -> list[str]:
        """The entries of a folder, not more than are worth a search; [] where it is none."""
        try:
            with os.scandir(folder) as entries:
                return [entry.name for entry in itertools.islice(entries, _LISTED_ENTRIES)]
        except OSError:  # not a folder, or not readable
            return []

    def _entries(self, folder: Path, names: tuple[str, ...]) -> list[Path]:
        """Entries with one of the lower-case ``names``, whatever their case, sorted."""
        return [folder / name for name in sorted(self._names(folder)) if name.lower() in names]


def _shown(reference: str) -> str:
    """A reference as messages show it: quoted, cut where it is long."""
    return repr(reference if len(reference) <= 80 else reference[:77] + "...")
