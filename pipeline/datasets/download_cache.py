"""A folder of downloaded files that several processes share, within a size limit.

Files lie under the names that their source gives them. Everything is kept in order by locks of the
kernel (``flock``), which fall with the process that held them, so that a killed worker leaves
nothing to clean up:

- a reader holds a shared lock on the file, so that nobody removes it meanwhile;
- a writer holds an exclusive lock on a partial file (hidden, ``.part``) beside the final name,
  reserves its size before the first byte, and renames it when it is whole and checked. The partial
  file is the lock: a second worker that wants the same file waits for it;
- the room taken is a number in ``.usage``, changed under its lock. When it passes the limit, the
  folder is listed and the files that were used the longest ago go, down to nine tenths of the
  limit; those in use stay.

Hidden files are never counted or removed, other than partial files of writers that are gone.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import BinaryIO

_POLL_S = 0.05
_PART = ".part"
_USAGE = ".usage"
Identity = tuple[int, int]  # device and inode: the same name may hold another file a moment later


class CacheFullError(Exception):
    """There is no room for a file, now or ever."""


@dataclass
class Reading:
    """A file of the cache that is locked for reading."""

    path: Path
    identity: Identity


@dataclass
class Part:
    """A file that is being written: open, empty at first, locked, not visible under its name."""

    path: Path
    stream: BinaryIO
    _cache: CacheFolder
    _final: Path
    _reserved: int = 0
    _settled: bool = False

    def reserve(self, n_bytes: int, deadline: float) -> None:
        """Take room for ``n_bytes`` in all; waits for other files to fall out of use.

        ``deadline`` is on the clock of ``time.monotonic``. Raises ``CacheFullError``.
        """
        if n_bytes > self._reserved:
            self.stream.flush()
            self._cache._reserve(self.stream, n_bytes - self._reserved, n_bytes, deadline)
            self._reserved = n_bytes

    def clear(self) -> None:
        """Forget what was written; the reservation stays."""
        self.stream.seek(0)
        self.stream.truncate(0)
        if self._cache.limit_bytes is not None:
            os.ftruncate(self.stream.fileno(), self._reserved)

    def end(self) -> None:
        """Say that the file ends where it was last written to; others that open it see all."""
        self.stream.flush()
        self.stream.truncate()

    def commit(self) -> None:
        """Give the file its final name, durably."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        with self._cache._ledger() as ledger:
            size = os.fstat(self.stream.fileno()).st_size
            with suppress(FileNotFoundError):  # one that is replaced, since it was damaged
                size -= self._final.stat().st_size
            self.path.replace(self._final)
            self._settled = True
            _change_number(ledger, size - self._reserved)

    def close(self) -> None:
        """Drop the file unless it was committed, and the lock."""
        if not self._settled:
            with self._cache._ledger() as ledger:
                self.path.unlink(missing_ok=True)
                _change_number(ledger, -self._reserved)
        self.stream.close()


@dataclass(frozen=True)
class CacheFolder:
    """The folder and its limit in bytes (None: no limit). It is made when first written to."""

    root: Path
    limit_bytes: int | None = None

    def path(self, name: str) -> Path:
        """Where ``name``, a relative POSIX path, lies. ``ValueError`` where it leads outside."""
        parts = PurePosixPath(name).parts
        hidden = any(part.startswith(".") for part in parts)
        if not parts or hidden or "\0" in name or "\\" in name or name.startswith("/"):
            raise ValueError(f"{name!r} is not a name of a file in the cache")
        return self.root.joinpath(*parts)

    @contextmanager
    def reading(self, name: str) -> Iterator[Reading | None]:
        """Hold a file so that it is not removed, and mark it as used; None where it is missing."""
        path = self.path(name)
        while True:
            try:
                handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                yield None
                return
            try:
                # Held by others only while a file is renamed or removed.
                fcntl.flock(handle, fcntl.LOCK_SH)
                status = os.fstat(handle)
                if not status.st_nlink:
                    continue  # removed between the opening and the lock
                with suppress(OSError):  # another user's file, or a read-only disk
                    # By hand: most disks are mounted so that reading does not set the time.
                    os.utime(handle, ns=(time.time_ns(), status.st_mtime_ns))
                yield Reading(path, (status.st_dev, status.st_ino))
                return
            finally:
                os.close(handle)

    @contextmanager
    def writing(
        self, name: str, deadline: float, stale: Identity | None = None
    ) -> Iterator[Part | None]:
        """Hold the partial file of ``name``; None where the file is there by now.

        ``stale`` is a file of that name that is to be replaced. Waits for another worker that is
        writing the same file; raises ``TimeoutError`` at the deadline.
        """
        final = self.path(name)
        path = final.with_name(f".{final.name}{_PART}")
        while True:
            final.parent.mkdir(parents=True, exist_ok=True)
            stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
            try:
                _lock(stream, deadline)
            except BaseException:
                stream.close()
                raise
            if _identity(path) == _identity_of(stream):
                break
            stream.close()  # another worker has just finished, or given up, with that one
        part = Part(path, stream, self, final)
        try:
            if _identity(final) in (None, stale):
                part.clear()
                yield part
            else:
                yield None
        finally:
            part.close()

    def discard(self, name: str) -> bool:
        """Remove a file unless it is in use. Whether it is gone."""
        path = self.path(name)
        if not path.exists():
            return True
        with self._ledger() as ledger:
            size = self._remove(path)
            _change_number(ledger, -(size or 0))
        return size is not None

    def usage(self) -> int:
        """Bytes of the files in the folder, and of those that are being written, by listing it."""
        return sum(size for _, size, _, _ in self._listed())

    # -- room ------------------------------------------------------------------------------------

    def _reserve(self, stream: BinaryIO, more: int, in_all: int, deadline: float) -> None:
        if self.limit_bytes is None:
            return
        if in_all > self.limit_bytes:
            raise CacheFullError(
                f"the file has {in_all:,} bytes, the cache may hold {self.limit_bytes:,}"
            )
        while True:
            with self._ledger() as ledger:
                used = _number(ledger)
                if used is None or used + more > self.limit_bytes:
                    # Counted anew: what a killed worker had reserved must not stay for ever.
                    used = self._make_room(more)
                if used + more <= self.limit_bytes:
                    # The partial file takes its full length at once: a listing counts it.
                    os.ftruncate(stream.fileno(), in_all)
                    _set_number(ledger, used + more)
                    return
                _set_number(ledger, used)
            if time.monotonic() > deadline:
                raise CacheFullError(
                    f"no room for {in_all:,} bytes: all of the {self.limit_bytes:,} bytes of the "
                    "cache are in use"
                )
            time.sleep(_POLL_S)

    @contextmanager
    def _ledger(self) -> Iterator[BinaryIO]:
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root / _USAGE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with os.fdopen(handle, "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream

    def _make_room(self, more: int) -> int:
        """Remove what was used the longest ago if that is needed; bytes in use afterwards.

        Called under the ledger's lock, as is ``_remove``.
        """
        assert self.limit_bytes is not None
        listed = []
        used = 0
        for last_used, size, path, is_part in self._listed():
            if is_part and self._remove(path) is not None:
                continue  # of a writer that is gone
            used += size
            if not is_part:
                listed.append((last_used, size, path))
        if used + more > self.limit_bytes:
            goal = max(0, min(self.limit_bytes * 9 // 10, self.limit_bytes - more))
            for _, size, path in sorted(listed):
                if used <= goal:
                    break
                if self._remove(path) is not None:
                    used -= size
        return used

    def _remove(self, path: Path) -> int | None:
        """Bytes of the file that was removed (0: it was gone already); None where it is in use."""
        try:
            handle = _open_to_lock(path)
        except FileNotFoundError:
            return 0
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(handle)
            if not status.st_nlink or _identity(path) != (status.st_dev, status.st_ino):
                return 0
            path.unlink()
            return status.st_size
        except OSError:  # in use, or not ours to remove
            return None
        finally:
            os.close(handle)

    def _listed(self) -> Iterator[tuple[int, int, Path, bool]]:
        """(time of last use in ns, bytes, path, whether it is partial) of every file."""
        pending = [self.root]
        while pending:
            try:
                with os.scandir(pending.pop()) as entries:
                    found = list(entries)
            except OSError:
                continue
            for entry in found:
                is_part = entry.name.startswith(".") and entry.name.endswith(_PART)
                if entry.name.startswith(".") and not is_part:
                    continue
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                        continue
                    status = entry.stat(follow_symlinks=False)
                    if S_ISREG(status.st_mode):
                        yield status.st_atime_ns, status.st_size, Path(entry.path), is_part


def _open_to_lock(path: Path) -> int:
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | flags)  # network disks lock only what may be written to
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags)


def _lock(stream: BinaryIO, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("another worker has been fetching it all this time") from None
            time.sleep(_POLL_S)


def _identity(path: Path) -> Identity | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _identity_of(stream: BinaryIO) -> Identity:
    status = os.fstat(stream.fileno())
    return status.st_dev, status.st_ino


def _number(ledger: BinaryIO) -> int | None:
    ledger.seek(0)
    text = ledger.read(32)
    return int(text) if text.isdigit() else None


def _set_number(ledger: BinaryIO, value: int) -> None:
    ledger.seek(0)
    ledger.truncate()
    ledger.write(str(value).encode())
    ledger.flush()


def _change_number(ledger: BinaryIO, by: int) -> None:
    used = _number(ledger)
    if used is not None and by:
        _set_number(ledger, max(0, used + by))
