"""Where shards live: local folders and remote stores behind one small surface."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.common import InputError, atomic_path

_TAIL = 1 << 16  # read in one go from the end of a Parquet file; most footers fit


def parquet_footer(source: pa.NativeFile) -> bytes:
    """Last bytes of a Parquet file: its metadata, their length and the magic number.

    Raises ``ValueError`` when the file does not end so.
    """
    size = source.size()
    source.seek(max(0, size - _TAIL))
    tail = bytes(source.read())
    if len(tail) < 12 or tail[-4:] != b"PAR1":
        raise ValueError("no Parquet footer at the end")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > size:
        raise ValueError("the Parquet footer is longer than the file")
    if length > len(tail):
        source.seek(size - length)
        tail = bytes(source.read())
    return tail[-length:]


def is_uri(root: str | Path) -> bool:
    """Whether this is an address with a scheme, not a local path."""
    return "://" in str(root)


def within(root: str, name: str) -> str:
    """The path or URI of ``name`` in a folder; options after ``?`` stay at the end of a URI."""
    base, mark, options = root.partition("?") if is_uri(root) else (root, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def shown(root: str | Path) -> str:
    """A path or URI for messages: without the keys and the options that a URI may hold."""
    text = str(root)
    if not is_uri(text):
        return text
    return re.sub(r"://[^/@]*@", "://", text.partition("?")[0])


@dataclass(frozen=True)
class Storage:
    """A folder on some file system. ``root`` is the path or URI as the user gave it."""

    root: str
    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def at(cls, root: str | Path) -> Storage:
        """Resolve a local path or a URI (``s3://``, ``gs://``, any fsspec scheme).

        Raises ``InputError`` when no installed file system understands the URI.
        """
        text = str(root)
        if not is_uri(text):
            path = Path(text).expanduser().absolute()
            return cls(text, pafs.LocalFileSystem(), path.as_posix())
        try:
            filesystem, path_in = pafs.FileSystem.from_uri(text)
        except OSError as error:
            raise InputError(
                f"{shown(text)}: not reachable ({error}); check the address and the credentials"
            ) from error
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            try:
                import fsspec

                handler, path_in = fsspec.core.url_to_fs(text)
            except (ImportError, ValueError, OSError) as error:
                raise InputError(
                    f"{shown(text)}: no file system for this address ({error}); "
                    "give a local path or install the fsspec package of that store"
                ) from error
            if "file" in handler.protocol:  # fsspec's spelling of a local path: keep renames
                return cls(text, pafs.LocalFileSystem(), path_in)
            filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(handler))
        return cls(text, filesystem, path_in)

    @property
    def is_local(self) -> bool:
        """Whether files can be renamed atomically in place."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def is_there(self) -> bool:
        """Whether there is anything at the address, a folder or a file."""
        with self._reading(shown(self.root)):
            self._forget()
            info = self.filesystem.get_file_info(self.path)
        return bool(info.type != pafs.FileType.NotFound)

    def join(self, name: str) -> str:
        """Path of a file of the folder inside ``filesystem``."""
        return f"{self.path.rstrip('/')}/{name}"

    def show(self, name: str) -> str:
        """Path of a file as the user would write it, for messages."""
        return within(shown(self.root), name)

    def list(self, prefix: str, suffix: str) -> list[str]:
        """Sorted names of the files that start and end so; [] when the folder is missing."""
        return sorted(self.sizes(prefix, suffix))

    def sizes(self, prefix: str = "", suffix: str = "") -> dict[str, int]:
        """Bytes by name of the files that start and end so."""
        with self._reading(shown(self.root)):
            self._forget()
            selector = pafs.FileSelector(self.path, allow_not_found=True)
            infos = self.filesystem.get_file_info(selector)
        return {
            info.base_name: info.size
            for info in infos
            if info.type == pafs.FileType.File
            and info.base_name.startswith(prefix)
            and info.base_name.endswith(suffix)
        }

    def _forget(self) -> None:
        """Have a file system of fsspec look again: others write to the folder too."""
        handler = getattr(self.filesystem, "handler", None)
        if isinstance(handler, pafs.FSSpecHandler):
            handler.fs.invalidate_cache()

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        with self._reading(shown(self.root)):
            self._forget()
            info = self.filesystem.get_file_info(self.join(name))
        return bool(info.type == pafs.FileType.File)

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        with self._reading(self.show(name)):
            stream = self.filesystem.open_input_stream(self.join(name))
            with stream:
                return bytes(stream.read())

    def open(self, name: str) -> pa.NativeFile:
        """A file for random reads, memory-mapped where it is local. Raises ``OSError``."""
        if self.is_local:
            return pa.memory_map(self.join(name))
        return self.filesystem.open_input_file(self.join(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file; it appears under its name complete or not at all.

        Local: temporary file, fsync, rename. Object stores make an object visible only when the
        upload is closed, so there the final name is written directly. An upload that is cut short
        is closed too, with what it has: that is removed again.
        """
        with self.writing(name):
            if self.is_local:
                with atomic_path(Path(self.join(name))) as temporary:
                    temporary.write_bytes(data)
            else:
                try:
                    with self.create(name) as stream:
                        stream.write(data)
                except BaseException:
                    with suppress(OSError):
                        self.filesystem.delete_file(self.join(name))
                    raise

    def create(self, name: str) -> pa.NativeFile:
        """A file to write to, in a folder that is made where it is missing. Raises ``OSError``.

        What was written is there under its name when the stream is closed, complete or not.
        """
        try:
            return self.filesystem.open_output_stream(self.join(name))
        except FileNotFoundError:  # object stores have no folders and need none
            self.filesystem.create_dir(self.path, recursive=True)
            return self.filesystem.open_output_stream(self.join(name))

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        try:
            self.filesystem.delete_file(self.join(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(
                f"{self.show(name)}: cannot be removed ({error.strerror or error}); "
                "check the permissions"
            ) from error

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Around the writing of a file: an ``OSError`` becomes an ``InputError``."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.show(name)}: cannot be written ({error.strerror or error}); "
                "make room or check the permissions, then run the same command again"
            ) from error

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{what}: cannot be read ({error.strerror or error}); "
                "check the path and its permissions"
            ) from error
