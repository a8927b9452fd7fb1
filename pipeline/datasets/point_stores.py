"""Arrays in npy, npz and HDF5 files: what is there by name, shape and type, and one cloud of it.

These files are hostile input as meshes are. Only headers are read before the sizes that they claim
are checked against ``Limits`` and against the bytes that follow; nothing is unpickled; HDF5 links
and raw data that lie in other files are refused.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from pipeline.meshes import Limits
from pipeline.meshes.parts import require
from pipeline.scene import MeshError

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")
_MAX_ARRAYS = 1000  # in one file; the names of more are not looked at


@dataclass(frozen=True)
class Header:
    """What a file says of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}"


class Store(Protocol):
    """An open file of named arrays."""

    @property
    def headers(self) -> Mapping[str, Header]:
        """Its arrays by name, in the order of the file."""

    def read(self, name: str, index: int | None) -> NDArray[Any]:
        """A whole array, or its row ``index`` along the first axis.

        Raises ``MeshError``: ``pickled``, ``too_large``, ``bad_header``, ``unsupported_feature``.
        """


@contextmanager
def open_store(path: Path, limits: Limits) -> Iterator[Store]:
    """Open a file of ``SUFFIXES``.

    Raises ``MeshError``: ``missing_file``, ``not_a_file``, ``unreadable``, ``empty_file``,
    ``bad_header``, ``outside_reference``.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise MeshError("missing_file", "the point file does not exist") from None
    except OSError as error:
        raise MeshError("unreadable", f"it cannot be opened: {error.strerror}") from None
    require(stat.S_ISREG(status.st_mode), "not_a_file", "it is not a regular file")
    require(status.st_size > 0, "empty_file", "the file has zero bytes")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            with path.open("rb") as stream:
                yield _NpyStore(stream, limits)
        elif suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                yield _NpzStore(archive, limits)
        else:
            with _h5_file(path) as file:
                yield _H5Store(file, limits)
    except zipfile.BadZipFile as error:
        raise MeshError("bad_header", f"not an npz file, or a damaged one: {error}") from None
    except PermissionError as error:
        raise MeshError("unreadable", f"it cannot be opened: {error.strerror}") from None


def _check_item(shape: tuple[int, ...], dtype: np.dtype[Any], name: str, limits: Limits) -> int:
    """The bytes of an array or a row of it, where it is not refused."""
    require(
        not dtype.hasobject,
        "pickled",
        f"array {name!r} holds pickled Python objects (dtype object), which are not read",
    )
    n_bytes = math.prod(shape) * dtype.itemsize  # Python integers: claims cannot overflow
    require(
        n_bytes <= limits.file_bytes,
        "too_large",
        f"array {name!r} claims {n_bytes:,} bytes; the limit is {limits.file_bytes:,}",
    )
    return n_bytes


# --- npy and npz ------------------------------------------------------------------------------


def _npy_header(stream: IO[bytes]) -> Header:
    """Read the header; the stream is then at the data."""
    try:
        version = npy_format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = npy_format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = npy_format.read_array_header_2_0(stream)
        else:  # 3.0 is for structured arrays with names that are not Latin-1
            raise ValueError(f"npy format {version[0]}.{version[1]} is not read")
    except (ValueError, SyntaxError, EOFError, TypeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise MeshError("bad_header", f"not a npy array: {reason}") from None
    require(all(side >= 0 for side in shape), "bad_header", f"the npy header says {shape}")
    return Header(tuple(shape), dtype, bool(fortran))


def _npy_data(
    stream: IO[bytes], header: Header, name: str, index: int | None, limits: Limits
) -> NDArray[Any]:
    """The array whose data begin where the stream is, or one row of it."""
    row = header.shape[1:] if index is not None else header.shape
    if header.fortran and index is not None:  # a row is scattered over the whole array
        return np.asarray(_npy_data(stream, header, name, None, limits)[index])
    n_bytes = _check_item(row, header.dtype, name, limits)
    if index is not None:
        stream.seek(index * n_bytes, os.SEEK_CUR)
    data = stream.read(n_bytes)
    require(
        len(data) == n_bytes,
        "bad_header",
        f"array {name!r} is cut off: its header says {header}, {len(data):,} of {n_bytes:,} "
        "bytes follow",
    )
    values: NDArray[Any] = np.frombuffer(data, header.dtype)
    return values.reshape(row, order="F" if header.fortran else "C")


class _NpyStore:
    """One array, under the name that numpy gives to arrays without one."""

    def __init__(self, stream: IO[bytes], limits: Limits) -> None:
        self._stream, self._limits = stream, limits
        self.headers = {"arr_0": _npy_header(stream)}
        self._start = stream.tell()
        header = self.headers["arr_0"]
        claimed = math.prod(header.shape) * header.dtype.itemsize
        left = stream.seek(0, os.SEEK_END) - self._start
        require(
            header.dtype.hasobject or claimed <= left,
            "bad_header",
            f"the npy header claims {claimed:,} bytes of data ({header}), {left:,} follow",
        )

    def read(self, name: str, index: int | None) -> NDArray[Any]:
        self._stream.seek(self._start)
        return _npy_data(self._stream, self.headers[name], name, index, self._limits)


class _NpzStore:
    """The arrays of a npz archive. Of a compressed one all bytes before a row are inflated."""

    def __init__(self, archive: zipfile.ZipFile, limits: Limits) -> None:
        self._archive, self._limits = archive, limits
        self.headers: dict[str, Header] = {}
        for member in archive.namelist()[:_MAX_ARRAYS]:
            if member.endswith(".npy"):
                with self._open(member) as stream:
                    self.headers[member.removesuffix(".npy")] = _npy_header(stream)

    def read(self, name: str, index: int | None) -> NDArray[Any]:
        with self._open(f"{name}.npy") as stream:
            header = _npy_header(stream)
            try:
                return _npy_data(stream, header, name, index, self._limits)
            except (zipfile.BadZipFile, EOFError, OSError) as error:
                raise MeshError("bad_header", f"array {name!r} is damaged: {error}") from None

    def _open(self, member: str) -> IO[bytes]:
        try:
            return self._archive.open(member)
        except (NotImplementedError, RuntimeError) as error:  # compression method, password
            raise MeshError("unsupported_feature", str(error)[:200]) from None


# --- HDF5 -------------------------------------------------------------------------------------


@contextmanager
def _h5_file(path: Path) -> Iterator[Any]:
    import h5py

    try:
        # No lock: the data may lie where nothing can be written.
        file = h5py.File(path, "r", locking=False)
    except PermissionError:
        raise
    except (OSError, RuntimeError) as error:
        raise MeshError("bad_header", f"not an HDF5 file: {str(error)[:200]}") from None
    with file:
        yield file


class _H5Store:
    """The data sets of the root group of an HDF5 file."""

    def __init__(self, file: Any, limits: Limits) -> None:
        import h5py

        self._file, self._limits = file, limits
        self.headers: dict[str, Header] = {}
        self._outside: list[str] = []
        for name in list(file)[:_MAX_ARRAYS]:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                self._outside.append(name)  # it may lead into any file of the machine
                continue
            item = file.get(name)
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                self.headers[name] = Header(tuple(item.shape), item.dtype)
        require(
            bool(self.headers) or not self._outside,
            "outside_reference",
            f"its data are links ({', '.join(self._outside)[:100]}), which are not followed",
        )

    def read(self, name: str, index: int | None) -> NDArray[Any]:
        dataset = self._file[name]
        require(
            not dataset.is_virtual and not dataset.external,
            "outside_reference",
            f"data set {name!r} keeps its data in other files, which are not read",
        )
        header = self.headers[name]
        row = header.shape[1:] if index is not None else header.shape
        _check_item(row, header.dtype, name, self._limits)
        if dataset.chunks is not None:  # a chunk is inflated whole, whatever is asked of it
            _check_item(dataset.chunks, header.dtype, f"{name} (one chunk)", self._limits)
        try:
            return np.asarray(dataset[()] if index is None else dataset[index])
        except (OSError, RuntimeError) as error:
            raise MeshError(
                "unsupported_feature", f"data set {name!r} cannot be read: {str(error)[:200]}"
            ) from None


def read_labels(path: Path, limits: Limits) -> NDArray[np.int64]:
    """``label`` of an HDF5 file, (n) or (n, 1) integers, beside ``data`` (n, P, 3 or more).

    Raises ``MeshError`` as ``open_store`` does, and ``bad_shape`` that says what was found.
    """
    with open_store(path, limits) as store:
        data, label = store.headers.get("data"), store.headers.get("label")
        fits = (
            data is not None
            and label is not None
            and len(data.shape) == 3
            and data.dtype.kind == "f"
            and data.shape[2] >= 3
            and label.dtype.kind in "iu"
            and label.shape in ((data.shape[0],), (data.shape[0], 1))
        )
        found = ", ".join(f"{name} {header}" for name, header in store.headers.items())
        require(
            fits,
            "bad_shape",
            "expected data (clouds, points, 3) of floats and label (clouds) of integers, "
            f"found {found[:200] or 'no arrays'}",
        )
        return store.read("label", None).reshape(-1).astype(np.int64)
