"""Work in a child process, where a crash or a hang of a mesh library costs nothing but time.

``Isolated`` does any work there, ``IsolatedProcessor`` what a worker of the job does with records.

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from pipeline.datasets.base import Record
from pipeline.objects import ObjectSettings, Processed, failure, prefer_throughput, process
from pipeline.renderers import get_renderer
from pipeline.shards import Failure

T = TypeVar("T")
R = TypeVar("R")
_STARTS = 3  # of a child that dies before it is ready: then something is wrong with all of them
_START_S = 1200.0  # for one to be ready: a shared disk may be slow, but not for ever
_TRIES = 2  # of an object whose child dies: the kernel's out-of-memory killer may have chosen it
_PR_SET_PDEATHSIG = 1


class Isolated(Generic[T, R]):
    """Work in a child process, one item at a time, with a limit of time and memory for each.

    A child that crashes is replaced and its item tried once more, if there are two ``tries``: where
    something else killed the child (the kernel, short of memory, for one), the item is none the
    worse. Of an item that is given up ``lost`` makes the result, from it, the kind (``crash`` or
    ``timeout``) and a message.

    ``work``, ``prepare`` (done before the child is ready, and within no limit) and items are
    pickled; ``work`` must not raise. One thread at a time.
    """

    def __init__(
        self,
        work: Callable[[T], R],
        lost: Callable[[T, str, str], R],
        prepare: Callable[[], None],
        timeout_s: float = 120.0,
        memory_bytes: int | None = 8 << 30,
        tries: int = _TRIES,
    ) -> None:
        self._arguments = (work, prepare, memory_bytes)
        self._lost, self._timeout_s, self._tries = lost, timeout_s, tries
        # The kernel ends a child when the thread that started it ends: this one stays.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="render-child")
        self._child: _Child | None = None

    def __call__(self, items: Sequence[T]) -> Iterator[R]:
        """Work on ``items`` in order; the next one is under way while a result is handed out.

        Raises ``RuntimeError`` where no child can be started.
        """
        if not items:
            return
        try:
            self._send(items[0])
            for number, item in enumerate(items):
                result = self._result(item)
                if number + 1 < len(items):
                    self._send(items[number + 1])
                yield result
        except BaseException:  # left before the end: its answer must not pass for the next one's
            self._drop()
            raise

    def start(self) -> None:
        """Start a child where there is none, without waiting until it is ready."""
        if self._child is None:
            self._child = self._starter.submit(_Child, *self._arguments).result()

    def close(self) -> None:
        """Stop the child."""
        self._drop()
        self._starter.shutdown()

    def _result(self, item: T) -> R:
        """What becomes of the item that was sent last."""
        for left in reversed(range(self._tries)):
            assert self._child is not None
            try:
                answer = self._child.answer(self._timeout_s)
            except TimeoutError:
                self._drop()
                return self._lost(item, "timeout", f"took over {self._timeout_s:g} s")
            except EOFError:
                code = self._drop()
                if left:
                    self._send(item)
                continue
            result: R = pickle.loads(answer)
            return result
        return self._lost(item, "crash", f"the worker died (exit code {code})")

    def _send(self, item: T) -> None:
        """Give an item to the child, or to a new one where it is gone."""
        for _ in range(_STARTS):
            self.start()
            assert self._child is not None
            try:
                self._child.send(item)
                return
            except (EOFError, OSError):
                code = self._drop()
        raise RuntimeError(f"a process to render in cannot be started (exit code {code})")

    def _drop(self) -> int | None:
        """End the child, if there is one; its exit code."""
        child, self._child = self._child, None
        return child.end() if child is not None else None


class IsolatedProcessor(Isolated[Record, Processed | Failure]):
    """``pipeline.objects.process`` in a child process; an object that is lost is a failure."""

    def __init__(
        self,
        settings: ObjectSettings,
        timeout_s: float = 120.0,
        memory_bytes: int | None = 8 << 30,
    ) -> None:
        work = partial(process, settings=settings)
        prepare = partial(_prepare, settings.renderer)
        super().__init__(work, _failed, prepare, timeout_s, memory_bytes)


def _failed(record: Record, error: str, message: str) -> Failure:
    return failure(record, "process", error, message)


def _prepare(renderer: str) -> None:
    prefer_throughput()
    # A machine that joined the cluster compiles it now: not within the first object's time limit.
    compile_all(renderer)


class _Child:
    """One child process and the way to talk with it."""

    def __init__(
        self,
        work: Callable[[Any], Any],
        prepare: Callable[[], None],
        memory_bytes: int | None,
    ) -> None:
        # spawn: the parent (a Ray worker) runs threads, which a fork would leave half-dead.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, os.getpid(), work, prepare, memory_bytes), daemon=True
        )
        # Ctrl-C, which goes to the whole group, must not reach it before it can say so itself.
        # A child inherits what its thread blocks; the tracker's start would unblock it again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._process.start()
        theirs.close()  # so that the death of the child is the end of the stream
        self._ready = False
        self._sent = 0.0

    def send(self, item: object) -> None:
        """Start on an item. Raises ``EOFError`` or ``OSError`` where the child is dead."""
        if not self._ready:
            if not self._connection.poll(_START_S):
                raise TimeoutError
            self._connection.recv_bytes()
            self._ready = True
        self._connection.send_bytes(pickle.dumps(item, protocol=5))
        self._sent = time.monotonic()

    def answer(self, timeout_s: float) -> bytes:
        """The result for the item. Raises ``TimeoutError``, ``EOFError`` where the child died."""
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
    from pipeline.farthest import compile_cached as compile_farthest
    from pipeline.meshes.meshopt import compile_cached as compile_meshopt
    from pipeline.meshes.polygons import compile_cached as compile_polygons
    from pipeline.resize import compile_cached as compile_resize

    warm_up = getattr(get_renderer(renderer), "compile_cached", None)
    if warm_up:
        warm_up()
    compile_farthest()
    compile_resize()
    compile_meshopt()
    compile_polygons()


def _serve(
    connection: Connection[Any, Any],
    parent: int,
    work: Callable[[Any], Any],
    prepare: Callable[[], None],
    memory_bytes: int | None,
) -> None:
    """What the child does: work on items until its parent is gone."""
    die_with(parent)
    # Ctrl-C goes to the whole group: the parent decides what becomes of the child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    prepare()
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send_bytes(b"ready")
        while True:
            item = pickle.loads(connection.recv_bytes())
            connection.send_bytes(pickle.dumps(work(item), protocol=5))


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
