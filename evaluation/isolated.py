"""Files of shapes from someone else, read in processes of their own: see ``IsolatedCalls``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from pipeline.common import InputError
from pipeline.isolated import Isolated, compile_all
from pipeline.objects import reason
from pipeline.scene import MeshError

P = ParamSpec("P")
T = TypeVar("T")
MEMORY_BYTES = 8 << 30  # of a process: as a worker of the job


@dataclass(frozen=True)
class _Call:
    """A function of a module, and what it is given: it travels by name."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Answer:
    """What a call returned, or raised."""

    value: Any = None
    error: InputError | MeshError | None = None


class IsolatedCalls:
    """Calls functions in child processes, so that a file that hangs or crashes costs itself.

    A ``evaluation.shapes.Caller``. Children are kept and used again: as many as there are calls at
    once, none before the first call or ``start``. One that is lost is replaced at once. May be
    called from several threads. It needs a main module that may be imported, as all that starts
    processes does (``if __name__ == "__main__"``).
    """

    def __init__(
        self,
        timeout_s: float = 120.0,
        memory_bytes: int | None = MEMORY_BYTES,
        tries: int = 2,
    ) -> None:
        """Limits are those of one call; ``tries`` is of a call whose process crashes."""
        self._limits = (timeout_s, memory_bytes, tries)
        self._idle: list[Isolated[_Call, _Answer]] = []
        self._lock = threading.Lock()
        self._closed = False

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns. Function, arguments and result are pickled.

        Raises ``MeshError`` of kind ``timeout``, ``crash`` or ``out_of_memory`` beyond the limits,
        the ``InputError`` or ``MeshError`` that the function raises, or a ``MeshError`` of the name
        of whatever else it raises; ``RuntimeError`` where no process can be started.
        """
        with self._child() as child:
            (answer,) = child([_Call(function, args, kwargs)])
        if answer.error is not None:
            raise answer.error
        value: T = answer.value
        return value

    @contextmanager
    def _child(self) -> Iterator[Isolated[_Call, _Answer]]:
        with self._lock:
            if self._closed:
                raise RuntimeError("the processes are closed")
            if self._idle:
                child = self._idle.pop()
            else:
                child = Isolated(_do, _lost, _prepare, *self._limits)
        try:
            yield child
            child.start()  # where it was lost: the next call is not to wait for it
        finally:
            if not self._keep(child):
                child.close()

    def _keep(self, child: Isolated[_Call, _Answer]) -> bool:
        """Keep a child for the next call; not once they are closed."""
        with self._lock:
            if not self._closed:
                self._idle.append(child)
            return not self._closed

    def start(self, wait: bool = False) -> None:
        """Start a process for the first call, or wait until there is one that is ready."""
        if wait:
            self(_nothing)
        else:
            with self._child():
                pass

    def close(self) -> None:
        """End the processes; those that are at work, after it."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for child in idle:
            child.close()

    def __enter__(self) -> IsolatedCalls:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _nothing() -> None:
    pass


def _prepare() -> None:
    """What is not within the limit of the first call."""
    from pipeline import meshes, points  # noqa: F401

    compile_all("raster")


def _do(call: _Call) -> _Answer:
    try:
        return _Answer(call.function(*call.args, **call.kwargs))
    except InputError as error:
        return _Answer(error=error)
    except Exception as error:
        return _Answer(error=MeshError(*reason(error)))


def _lost(_: _Call, kind: str, message: str) -> _Answer:
    return _Answer(error=MeshError(kind, message, "process"))
