"""What a job's workers are at work on, kept by one small actor beside the driver.

Ray starts a worker that died again, and with it the task that it was at, for ever. The ledger tells
what Ray does not: which object took its worker down each time, which worker waits on a machine that
will not come back, and which part may be there already when it is written a second time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.common import InputError

# An object that was alone in its worker's hands this often when the worker died is a failure.
GIVE_UP = 2
# Starts of one worker while no worker finished anything: then it is not the objects.
_STARTS = 8


def alive_nodes() -> set[str]:
    """Ids of the cluster's nodes that run."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


class Ledger:
    """The actor's state. An attempt that was begun and never ended cost its worker's life.

    Attempts on nodes that are gone do not count: the machine died, not the worker.
    """

    def __init__(self, alive: Callable[[], set[str]] = alive_nodes) -> None:
        self._alive = alive
        self._attempts: dict[str, list[str]] = {}  # nodes by key, in order
        self._starts: dict[str, list[str]] = {}  # nodes by worker, since anything was finished
        self._workers: dict[str, tuple[Any, str]] = {}  # handle and node by worker
        self._gone: dict[str, float] = {}  # when a node was first seen to be gone
        self._epoch = 0
        self._writes: dict[str, str] = {}  # node by part that is being written
        self._begun: set[str] = set()  # parts ever begun
        self._written: dict[str, Any] = {}
        self._problem: str | None = None

    def begin(self, key: str, node: str) -> int:
        """Start an attempt; how many earlier ones ended in a worker's death."""
        attempts = self._attempts.setdefault(key, [])
        alive = self._alive() if attempts else set()
        attempts[:] = [earlier for earlier in attempts if earlier in alive]
        attempts.append(node)
        return len(attempts) - 1

    def end(self, key: str) -> None:
        """The attempt came to an end, good or bad."""
        self._attempts.pop(key, None)
        self._starts.clear()

    def start(self, worker: str, handle: Any, node: str) -> bool:
        """A worker starts; whether it may, or has done so too often."""
        self._workers[worker] = (handle, node)
        starts = self._starts.setdefault(worker, [])
        starts.append(node)
        alive = self._alive() if len(starts) > _STARTS else set()
        return sum(node in alive for node in starts) <= _STARTS

    def stranded(self, grace_s: float) -> list[Any]:
        """Workers whose node has been gone for ``grace_s`` and that run nowhere else since."""
        alive, now = self._alive(), time.monotonic()
        nodes = {node for _, node in self._workers.values()}
        self._gone = {node: self._gone.get(node, now) for node in nodes - alive}
        late = {node for node, since in self._gone.items() if now - since >= grace_s}
        return [handle for handle, node in self._workers.values() if node in late]

    def begin_write(self, key: str, epoch: int, node: str) -> int:
        """Start to write a part; how often that was begun before, -1 where it must not be."""
        if epoch < self._epoch:
            return -1
        self._epoch = epoch  # it is behind where this actor was lost and began anew
        before = int(key in self._begun)
        self._begun.add(key)
        self._writes[key] = node
        return before

    def end_write(self, key: str, written: Any) -> None:
        """The part is there."""
        self._writes.pop(key, None)
        self._written[key] = written
        self._starts.clear()

    def give_up_write(self, key: str) -> None:
        """The writing of a part was cut short; what of it is there is not known."""
        self._writes.pop(key, None)

    def workers(self) -> list[Any]:
        """Handles of the workers of this pass."""
        return [handle for handle, _ in self._workers.values()]

    def next_pass(self) -> int:
        """Let no task of this pass write any more; number of the next one.

        What is open now was ended by us, not by the object: it is forgotten.
        """
        self._epoch += 1
        for attempts in self._attempts.values():
            del attempts[-1:]
        self._workers.clear()
        self._starts.clear()
        return self._epoch

    def writing(self) -> int:
        """How many parts are being written at this moment."""
        alive = self._alive()
        self._writes = {key: node for key, node in self._writes.items() if node in alive}
        return len(self._writes)

    def written(self) -> list[Any]:
        """What ``end_write`` was told, once per part."""
        return list(self._written.values())

    def report(self, problem: str) -> None:
        """Keep the message of an ``InputError`` that a worker met; the first one counts."""
        self._problem = self._problem or problem

    def problem(self) -> str | None:
        """The message that was reported, if any."""
        return self._problem


class Reporter:
    """The workers' end: calls the ledger and waits for the answer."""

    def __init__(self, handle: Any, epoch: int = 0) -> None:
        self.handle, self.epoch = handle, epoch

    def call(self, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """The answer of ``Ledger.method``. Raises ``RayError`` where none comes in time."""
        import ray

        return ray.get(getattr(self.handle, method).remote(*arguments), timeout=timeout_s)

    def node(self) -> str:
        """The id of the node that this process runs on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def worker(self) -> tuple[str, Any]:
        """Id and handle of the actor that this process is."""
        import ray

        context = ray.get_runtime_context()
        return str(context.get_actor_id()), context.current_actor


class Guard:
    """What a stage does about its own death. Without a reporter: nothing."""

    def __init__(self, reporter: Reporter | None) -> None:
        self._reporter = reporter

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Around the start of a worker. Raises ``InputError`` where workers die as they start."""
        with self.telling():
            if self._reporter is not None:
                allowed = self._reporter.call(
                    "start", *self._reporter.worker(), self._reporter.node()
                )
                if not allowed:
                    raise InputError(
                        "workers keep dying before they finish a single object, perhaps for lack "
                        "of memory; use fewer --workers or a smaller --teacher"
                    )
            yield

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Hand the message of an ``InputError`` to the driver, which Ray would bury."""
        try:
            yield
        except InputError as error:
            if self._reporter is not None:
                self._reporter.call("report", str(error))
            raise

    @contextmanager
    def attempt(self, key: str) -> Iterator[int]:
        """Around work on ``key``; yields how many workers died at it before."""
        if self._reporter is None:
            yield 0
            return
        lost = self._reporter.call("begin", key, self._reporter.node())
        try:
            with self.telling():
                yield lost
        finally:
            self._reporter.call("end", key)

    @contextmanager
    def write(self, key: str) -> Iterator[tuple[bool, Callable[[Any], None]]]:
        """Around the writing of a part; yields whether it may be there, and whom to tell.

        Raises ``RuntimeError`` in a task of a pass that is over.
        """
        if self._reporter is None:
            yield False, lambda _: None
            return
        reporter = self._reporter
        before = reporter.call("begin_write", key, reporter.epoch, reporter.node())
        if before < 0:
            raise RuntimeError("this pass is over")
        try:
            with self.telling():
                yield before > 0, lambda written: reporter.call("end_write", key, written)
        except BaseException:  # or the driver would wait for it
            reporter.call("give_up_write", key)
            raise


@contextmanager
def opened() -> Iterator[Reporter]:
    """A ledger for the time of a job, on the driver's own node. Ray must run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Ledger)
    handle = actor.options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
    ).remote()
    try:
        yield Reporter(handle)
    finally:
        ray.kill(handle)
