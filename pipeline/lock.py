"""One writer at a time for a shard set."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipeline.common import InputError
from pipeline.shards.storage import Storage, shown

# A remote lock is written anew every so often. One that has not been for a while is of a run that
# was killed: its machine may be slow to write, but not that slow.
BEAT_S = 15.0
STALE_S = 120.0
_PREFIX, _SUFFIX = ".lock-", ".json"


@contextmanager
def exclusive(out: str) -> Iterator[None]:
    """Keep a second run off the same folder, local or remote.

    The kernel drops a local lock with the process. A remote one is a small object beside the parts
    that the run keeps fresh; what a killed run leaves is taken for dead at once on the machine
    that it ran on, and after ``STALE_S`` seconds elsewhere.

    Raises ``InputError`` when another run has the folder.
    """
    storage = Storage.at(out)
    if not storage.is_local:
        with _remote(storage):
            yield
        return
    with storage.writing(".lock"):  # the folder may be one that others alone may write to
        stream = Path(storage.join(".lock")).open("w")  # noqa: SIM115 (below)
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{shown(out)}: another run is using this folder; wait for it or use another --out"
            ) from error
        except OSError as error:
            raise InputError(
                f"{shown(out)}: files cannot be locked here ({error.strerror or error}), so two "
                "runs could interfere with each other; use another --out"
            ) from error
        yield


@contextmanager
def _remote(storage: Storage) -> Iterator[None]:
    ours = f"{_PREFIX}{uuid.uuid4().hex[:12]}{_SUFFIX}"
    content = json.dumps({"machine": _machine(), "pid": os.getpid()}).encode()
    storage.write(ours, content)
    stop = threading.Event()
    beat = threading.Thread(target=_keep, args=(storage, ours, content, stop), daemon=True)
    try:
        _refuse_others(storage, ours)
        beat.start()
        yield
    finally:
        stop.set()
        if beat.is_alive():
            beat.join()
        storage.delete(ours)


def _keep(storage: Storage, name: str, content: bytes, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        try:
            storage.write(name, content)
        except InputError:
            continue  # the parts will tell if the store stays away


def _refuse_others(storage: Storage, ours: str) -> None:
    """Raise where another lock is alive; remove those that are not.

    Ages go by the clock of the store. Of two runs that start at once both may give way.
    """
    locks = {
        name: storage.filesystem.get_file_info(storage.join(name))
        for name in storage.list(_PREFIX, _SUFFIX)
    }
    now = locks[ours].mtime
    for name, info in locks.items():
        if name == ours or info.type == pafs.FileType.NotFound:
            continue
        # Not every store tells the time: there a lock holds until someone removes it.
        age = (now - info.mtime).total_seconds() if now and info.mtime else 0.0
        if age > STALE_S or _is_dead(storage, name):
            storage.delete(name)
        else:
            raise InputError(
                f"{shown(storage.root)}: another run is using this folder; wait for it or use "
                f"another --out; if it was killed on another machine, its lock expires after "
                f"{STALE_S:g} s"
            )


def _is_dead(storage: Storage, name: str) -> bool:
    """Whether a lock is of a process of this machine that runs no more."""
    try:
        value: Any = json.loads(storage.read(name))
        machine, pid = value["machine"], int(value["pid"])
    except (InputError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return False
    if machine != _machine():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _machine() -> str:
    """A name for the processes that see one another's ids: a machine, or a container on it."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (not a path)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        namespace = boot = ""
    return f"{platform.node()}/{boot}/{namespace}"
