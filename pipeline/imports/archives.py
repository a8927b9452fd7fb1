"""Tar archives as streams of whole files, and folders of files behind the same surface.

The standard library's ``tarfile`` reads the extended headers of an archive whole, however large
they claim to be, and 10 kB at a time; this reader bounds every header, checks every checksum, and
tells an archive that ends too early from one that has ended. Nothing is written to disk, links
are not followed, and no more than one member is in memory.

Format: POSIX.1-1988 (ustar) and -2001 (pax), GNU long names.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SUFFIXES = (".tar.gz", ".tgz", ".tar")
_BLOCK = 512
_CHUNK = 1 << 20
_MAX_HEADER = 1 << 16  # bytes of a long name or a pax header
_GZIP = b"\x1f\x8b"


class DamagedArchiveError(Exception):
    """An archive ends too early or is not one; the message says where."""


@dataclass(frozen=True)
class Member:
    """One file. ``data`` is None where it is larger than allowed."""

    name: str  # as the archive has it, or relative to the folder
    size: int
    data: bytes | None


def read_tar(path: Path, suffix: str, max_bytes: int) -> Iterator[Member]:
    """Regular files of a tar archive (gzipped or not) whose names end in ``suffix``, in order.

    Raises ``DamagedArchiveError``, after the good members, where the archive is cut off or broken.
    """
    with path.open("rb") as file:
        stream = _Stream(file)
        try:
            yield from _members(stream, suffix, max_bytes)
        except (zlib.error, EOFError, ValueError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise DamagedArchiveError(f"{reason} after {stream.at:,} bytes") from error


def read_folder(path: Path, suffix: str, max_bytes: int) -> Iterator[Member]:
    """Files directly in a folder whose names end in ``suffix``, by name."""
    with os.scandir(path) as entries:
        names = sorted(e.name for e in entries if e.name.endswith(suffix) and e.is_file())
    for name in names:
        file = path / name
        size = file.stat().st_size
        # A name that is not UTF-8 came as surrogates; shards hold Unicode only.
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        yield Member(shown, size, file.read_bytes() if size <= max_bytes else None)


def _members(stream: _Stream, suffix: str, max_bytes: int) -> Iterator[Member]:
    long_name: str | None = None
    pax_size: int | None = None
    while True:
        block = stream.read(_BLOCK)
        if not any(block):
            return
        _check(block)
        kind = block[156:157]
        size = _number(block[124:136])
        if kind in (b"L", b"x"):
            data = _body(stream, size, _MAX_HEADER)
            if kind == b"L":
                long_name = data.rstrip(b"\0").decode("utf-8", "backslashreplace")
            else:
                name, pax_size = _pax(data)
                long_name = name or long_name
            continue
        if kind == b"K" or kind == b"g":  # a link's target, defaults for all members
            stream.skip(_padded(size))
            continue
        name = long_name or _name(block)
        size = size if pax_size is None else pax_size
        long_name, pax_size = None, None
        regular = kind in (b"0", b"\0", b"7") and name.endswith(suffix)
        if not regular:
            # Links and folders tell a size of 0, or one that stands for no data.
            stream.skip(_padded(size) if kind not in (b"1", b"2", b"3", b"4", b"5", b"6") else 0)
        elif size > max_bytes:
            stream.skip(_padded(size))
            yield Member(name, size, None)
        else:
            yield Member(name, size, _body(stream, size, max_bytes))


def _body(stream: _Stream, size: int, most: int) -> bytes:
    if size > most:
        raise ValueError(f"a header of {size:,} bytes")
    data = stream.read(size)
    stream.skip(_padded(size) - size)
    return data


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode("utf-8", "backslashreplace")


def _number(field: bytes) -> int:
    """An octal number, or a binary one where the first bit is set (GNU)."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if value >= 1 << 62:
            raise ValueError("a negative size")
        return value
    text = field.split(b"\0", 1)[0].strip()
    if text.strip(b"01234567"):
        raise ValueError("not a tar header")
    return int(text, 8) if text else 0


def _check(block: bytes) -> None:
    """Raise ``ValueError`` unless the block is a header (its checksum counts itself as blanks)."""
    told = _number(block[148:156])
    if told != sum(block) - sum(block[148:156]) + 8 * 0x20:
        raise ValueError("not a tar header")


def _pax(data: bytes) -> tuple[str | None, int | None]:
    """Path and size of a pax header: lines ``length key=value``, the length counting all of it."""
    name, size = None, None
    while data:
        length = int(data.split(b" ", 1)[0])
        if not 4 < length <= len(data):
            raise ValueError("a broken pax header")
        key, _, value = data[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "backslashreplace")
        elif key == b"size":
            size = int(value)
            if size < 0:
                raise ValueError("a negative size")
        data = data[length:]
    return name, size


class _Stream:
    """Exact reads from a file, inflated where it is gzipped (one or several gzip members)."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pending = file.read(_CHUNK)
        self._inflater = self._fresh() if self._pending.startswith(_GZIP) else None
        self._ready: list[bytes] = []
        self._n_ready = 0
        self.at = 0  # bytes handed out

    @staticmethod
    def _fresh() -> zlib._Decompress:
        return zlib.decompressobj(wbits=31)

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes. Raises ``EOFError`` where there are fewer."""
        while self._n_ready < count:
            piece = self._next()
            self._ready.append(piece)
            self._n_ready += len(piece)
        data = self._ready[0] if len(self._ready) == 1 else b"".join(self._ready)
        self._ready = [data[count:]]
        self._n_ready -= count
        self.at += count
        return data[:count]

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes, without holding them."""
        while count > 0:
            count -= len(self.read(min(count, _CHUNK)))

    def _next(self) -> bytes:
        """Some more bytes."""
        while True:
            if not self._pending:
                self._pending = self._file.read(_CHUNK)
            if self._inflater is None:
                if not self._pending:
                    raise EOFError("ends in the middle")
                piece, self._pending = self._pending, b""
                return piece
            if self._inflater.eof:  # the next gzip member, if there is one
                if not self._pending.strip(b"\0"):
                    raise EOFError("ends in the middle")
                self._inflater = self._fresh()
            if not self._pending:
                raise EOFError("ends in the middle")
            piece = self._inflater.decompress(self._pending, _CHUNK)
            self._pending = self._inflater.unconsumed_tail or self._inflater.unused_data
            if piece:
                return piece
