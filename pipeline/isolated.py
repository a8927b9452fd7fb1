"""``process`` in a child process that a crash or a hang of a mesh library costs nothing but time.

The child dies with its parent, however that ends: on Linux the kernel sees to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from pipeline.datasets.base import Record
from pipeline.objects import ObjectSettings, Processed, failure, prefer_throughput, process
from pipeline.renderers import get_renderer
from pipeline.shards import Failure

_STARTS = 3  # of a child that dies before it is ready: then something is wrong with all of them
_START_S = 1200.0  # for one to be ready: a shared disk may be slow, but not for ever
_TRIES = 2  # of an object whose child dies: the kernel's out-of-memory killer may have chosen it
_PR_SET_PDEATHSIG = 1


class IsolatedProcessor:
    """``pipeline.objects.process`` in a child process, with a time limit per object.

    A child that crashes is replaced and its object tried once more: where something else killed
    the child (the kernel, short of memory, for one), the object is none the worse. A second crash
    is a failure of kind ``crash``, a hang one of kind ``timeout``.
    """

    def __init__(
        self,
        settings: ObjectSettings,
        timeout_s: float = 120.0,
        memory_bytes: int | None = 8 << 30,
    ) -> None:
        self._arguments = (settings, memory_bytes)
        self._timeout_s = timeout_s
        # The kernel ends a child when the thread that started it ends: this one stays.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="render-child")
        self._child: _Child | None = None

    def __call__(self, records: Sequence[Record]) -> Iterator[Processed | Failure]:
        """Process ``records`` in order; the next one is under way while one is handed out.

        Raises ``RuntimeError`` where no child can be started.
        """
        if not records:
            return
        try:
            self._send(records[0])
            for number, record in enumerate(records):
                item = self._result(record)
                if number + 1 < len(records):
                    self._send(records[number + 1])
                yield item
        except BaseException:  # left before the end: its answer must not pass for the next one's
            self._drop()
            raise

    def close(self) -> None:
        """Stop the child."""
        self._drop()
        self._starter.shutdown()

    def _result(self, record: Record) -> Processed | Failure:
        """What becomes of the record that was sent last."""
        for left in reversed(range(_TRIES)):
            assert self._child is not None
            try:
                answer = self._child.answer(self._timeout_s)
            except TimeoutError:
                self._drop()
                return failure(record, "process", "timeout", f"took over {self._timeout_s:g} s")
            except EOFError:
                code = self._drop()
                if left:
                    self._send(record)
                continue
            item: Processed | Failure = pickle.loads(answer)
            return item
        return failure(record, "process", "crash", f"the worker died (exit code {code})")

    def _send(self, record: Record) -> None:
        """Give a record to the child, or to a new one where it is gone."""
        for _ in range(_STARTS):
            if self._child is None:
                self._child = self._starter.submit(_Child, *self._arguments).result()
            try:
                self._child.send(record)
                return
            except (EOFError, OSError):
                code = self._drop()
        raise RuntimeError(f"a process to render in cannot be started (exit code {code})")

    def _drop(self) -> int | None:
        """End the child, if there is one; its exit code."""
        child, self._child = self._child, None
        return child.end() if child is not None else None


class _Child:
    """One child process and the way to talk with it."""

    def __init__(self, settings: ObjectSettings, memory_bytes: int | None) -> None:
        # spawn: the parent (a Ray worker) runs threads, which a fork would leave half-dead.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, os.getpid(), settings, memory_bytes), daemon=True
        )
        self._process.start()
        theirs.close()  # so that the death of the child is the end of the stream
        self._ready = False
        self._sent = 0.0

    def send(self, record: Record) -> None:
        """Start on a record. Raises ``EOFError`` or ``OSError`` where the child is dead."""
        if not self._ready:
            if not self._connection.poll(_START_S):
                raise TimeoutError
            self._connection.recv_bytes()
            self._ready = True
        self._connection.send_bytes(pickle.dumps(record, protocol=5))
        self._sent = time.monotonic()

    def answer(self, timeout_s: float) -> bytes:
        """The result for the record. Raises ``TimeoutError``, ``EOFError`` where the child died."""
        left = self._sent + timeout_s - time.monotonic()
        try:
            if self._connection.poll(max(0.0, left)):
                return self._connection.recv_bytes()
        except OSError as error:  # also where it died in the middle of an answer
            raise EOFError from error
        raise TimeoutError

    def end(self) -> int | None:
        """Kill the child; its exit code where it was dead already."""
        self._process.join(0.2)  # one that crashed closes its pipe a moment before it is gone
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._process.close()
        return code


def compile_all(renderer: str) -> None:
    """Compile what objects are processed with, or load it from numba's cache.

    Done once before workers fan out, so that they do not all compile the same thing.
    """
    from pipeline.meshes.meshopt import compile_cached as compile_meshopt
    from pipeline.resize import compile_cached as compile_resize

    warm_up = getattr(get_renderer(renderer), "compile_cached", None)
    if warm_up:
        warm_up()
    compile_resize()
    compile_meshopt()


def _serve(
    connection: Connection[Any, Any],
    parent: int,
    settings: ObjectSettings,
    memory_bytes: int | None,
) -> None:
    """What the child does: process records until its parent is gone."""
    die_with(parent)
    # Ctrl-C goes to the whole group: the parent decides what becomes of the child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    prefer_throughput()
    # A machine that joined the cluster compiles it now: not within the first object's time limit.
    compile_all(settings.renderer)
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send_bytes(b"ready")
        while True:
            record: Record = pickle.loads(connection.recv_bytes())
            connection.send_bytes(pickle.dumps(process(record, settings), protocol=5))


def die_with(parent: int) -> None:
    """End this process when the process ``parent``, which started it, ends."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
