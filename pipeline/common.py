"""The floor of the house: the one error type for bad input, atomic writes, hashing, versions.

Standard library only, so that every package, the light trainer included, may import it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import re
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

# Microseconds of a period; the process's own control group is there.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class InputError(Exception):
    """Something the user gave is wrong: a file, an option, a shard set.

    The message is one line that names the file or option and ends with the remedy. Command lines
    print it without a traceback and exit with code 2 (see ``pipeline.console``).
    """


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``final`` that is renamed to it when the block succeeds.

    Works for files and for directories that the block creates. When the block raises, the
    temporary path is removed and ``final`` is left as it was, so that nothing partial is ever
    visible under its final name. An existing file is replaced; an existing directory too. Of a
    link, what it points to is, and the link stays.
    """
    final = _target(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{final.name}")
    try:
        yield temporary
        _fsync(temporary)
        if final.is_dir() and temporary.is_dir():
            # A directory cannot be replaced in one step: move the old one aside first.
            retired = final.with_name(f".tmp-{uuid.uuid4().hex[:12]}-retired-{final.name}")
            final.rename(retired)
            try:
                temporary.rename(final)
            except BaseException:
                retired.rename(final)
                raise
            shutil.rmtree(retired, ignore_errors=True)
        else:
            temporary.replace(final)
        # The folder alone: its other files are not ours, and other writers' come and go meanwhile.
        _fsync_one(final.parent)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def _target(path: Path) -> Path:
    """What a link points to, at its end; any other path itself."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_place(final: Path, option: str, *, folder: bool = False) -> None:
    """Ask before the work starts whether a file, or a folder, can be made at ``final``.

    ``option`` is what the user gave it with, such as ``--out``. Raises ``InputError`` where the
    other kind stands there already, where a file stands above it, and where nothing may be written.
    """
    if folder and final.exists() and not final.is_dir():
        raise InputError(f"{option} {final}: a file; name a folder")
    if not folder and final.is_dir():
        raise InputError(f"{option} {final}: a folder; name a file")
    place = final if folder and final.is_dir() else _target(final).absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{option} {final}: {place} is a file, not a folder; name another place")
    if not os.access(place, os.W_OK | os.X_OK):
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            why, remedy = "is on a read-only file system", ""
        else:
            why, remedy = "may not be written to", ", or change its permissions"
        raise InputError(f"{option} {final}: {place} {why}; name another place{remedy}")


def check_new(
    final: Path,
    option: str,
    overwrite: bool,
    *,
    kind: str = "",
    marks: Sequence[tuple[str, str]] = (),
) -> None:
    """``check_place``, and refuse what is there already unless it is to be replaced.

    With ``marks`` it is a folder: every folder of this ``kind`` ("a shard set") has one of these
    JSON files with that ``format`` in it, and a folder without is never replaced: a ``config.json``
    lies in many. An empty folder counts as not there. Raises ``InputError``; to be called before
    the work starts.
    """
    check_place(final, option, folder=bool(marks))
    if not (any(final.iterdir()) if final.is_dir() else final.exists()):
        return
    if marks and not any(_has_format(final / file, name) for file, name in marks):
        raise InputError(
            f"{option} {final}: not {kind}, so it is not replaced; name another folder"
        )
    if not overwrite:
        raise InputError(f"{option} {final}: is there already; add --overwrite to replace it")


def _has_format(path: Path, name: str) -> bool:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == name


def _fsync(path: Path) -> None:
    """Flush a file, or a directory and the files in it, to the disk."""
    targets = [path]
    if path.is_dir():
        targets += [child for child in path.rglob("*") if child.is_file()]
    for target in targets:
        _fsync_one(target)


def _fsync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. Keys keep their order."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


# Decimal, as disks and clouds count.
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def byte_size(option: str, text: str) -> int:
    """Bytes that ``500MB``, ``1.5 GB`` or ``1000`` say. Raises ``InputError``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?b?)\s*", text, re.IGNORECASE)
    unit = match[2].lower() if match else "?"
    unit = unit + "b" if unit in ("k", "m", "g", "t") else unit
    if match is None or unit not in _UNITS:
        raise InputError(f"{option} {text}: not a size; write it as 500MB or 50GB")
    return int(float(match[1]) * _UNITS[unit])


def shown_bytes(count: float) -> str:
    """A number of bytes for people.

    >>> shown_bytes(1536)
    '1.5 kB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def content_hash(*chunks: bytes | str) -> str:
    """SHA-256 of the chunks as 64 hex digits."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk.encode() if isinstance(chunk, str) else chunk)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits, read in 1 MiB steps."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def versions(*distributions: str) -> dict[str, str]:
    """Installed versions by distribution name; a missing one is left out."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """How many CPUs this process may use: by its affinity, and by the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = _QUOTA.read_text().split()
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # not Linux, an older kernel, or "max"
        return count or 1
    return max(1, min(count or 1, limit))


def not_joined(address: str | None, error: Exception) -> InputError | None:
    """What to tell where ``ray.init`` raised ``error`` as it joined a cluster; None: not known."""
    if isinstance(error, ConnectionError):
        return InputError(
            f"--address {address}: no Ray cluster answers there; start one with "
            "`ray start --head`, or leave the option out"
        )
    text = " ".join(str(error).split())
    if text.startswith("Version mismatch"):
        return InputError(
            f"--address {address}: {text.rstrip('.')}; install the same versions of Ray and Python "
            "on all machines"
        )
    return None


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, which batch systems send before they kill, as ``KeyboardInterrupt``.

    What Ctrl-C puts in order is then put in order too: children, locks, temporary files.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    try:
        old = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever has that one decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr: Ray tells there what its log level is.

    Errors of Ray are exceptions and are not touched.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
