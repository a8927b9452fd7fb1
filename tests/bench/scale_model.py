"""The embedding job as a network of queues: which resource reaches its limit first.

Every task (64 objects) passes the driver, the ledger, the store of the meshes, a render worker, the
network and, where there are any, a GPU; four of them, in order, make a part, which goes to the
store of the set. Both stores are shared by all nodes; workers read ahead while they render, which
is kinder than the truth. Service times are measured (``tests.bench.bench_scale``) or figures of the
reader's own machines. No clock, no randomness.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from pipeline.spool import GROUP

PART_TASKS = 4  # 256 rows of a part
AHEAD = 2  # tasks of a worker that are under way, as Ray Data has it


@dataclass(frozen=True)
class Machines:
    """A cluster of equal nodes."""

    nodes: int
    cores: int
    gpus: int = 0

    @property
    def workers(self) -> int:
        """Render workers: one CPU of the cluster is left to the tasks between them."""
        return max(1, self.nodes * self.cores - 1)


@dataclass(frozen=True)
class Costs:
    """What an object or a task takes of each resource; seconds are of one server."""

    render_s: float  # an object: load, render, sample (and encode, where workers do that)
    encode_s: float = 0.0  # an object, of a GPU; 0: workers encode
    driver_s: float = 0.0  # a task of any stage, of the driver's one thread
    ledger_s: float = 0.0  # a task of any stage
    source_bytes: float = 0.0  # an object: its mesh
    sources_bytes_s: float = 1e9  # that their store gives to all readers together
    moved_bytes: float = 0.0  # an object, to the process that encodes or writes it
    link_bytes_s: float = 1.25e9  # of each node's network
    written_bytes: float = 0.0  # an object
    store_bytes_s: float = 1e9  # that the store takes from all writers together


@dataclass(frozen=True)
class Outcome:
    """What came of a run. ``busy``: the share of its time that each resource was at work."""

    seconds: float
    objects_s: float
    busy: dict[str, float]

    @property
    def limit(self) -> str:
        """The resource that was at work most."""
        return max(self.busy, key=lambda name: self.busy[name])


@dataclass
class _Station:
    """Servers with one queue, first come first served."""

    servers: int
    waiting: deque[tuple[float, int, int]] = field(default_factory=deque)  # seconds, task, step
    at_work: int = 0
    worked_s: float = 0.0


class _Network:
    """The stations and the tasks among them."""

    def __init__(self, machines: Machines, costs: Costs, tasks: int) -> None:
        self.stations = {
            "driver": _Station(1),
            "ledger": _Station(1),
            "sources": _Station(1),
            "cores": _Station(machines.workers),
            "network": _Station(machines.nodes),
            "GPUs": _Station(machines.nodes * machines.gpus),
            "store": _Station(1),
        }
        self._tasks = tasks
        self._ahead = AHEAD * machines.workers
        self._events: list[tuple[float, int, str, int, int]] = []
        self._count = 0  # orders events of one time
        self._entered = 0
        self._here: set[int] = set()  # tasks that wait for those before them
        self._in_part = 0  # tasks of the part that is being filled
        self._in_order = 0
        self.now = 0.0
        call = [("driver", costs.driver_s), ("ledger", costs.ledger_s)]
        read = ("sources", GROUP * costs.source_bytes / costs.sources_bytes_s)
        moved = costs.source_bytes + costs.moved_bytes
        move = ("network", GROUP * moved / costs.link_bytes_s)
        encode = [*call, ("GPUs", GROUP * costs.encode_s)] if costs.encode_s else []
        self._work = [*call, read, ("cores", GROUP * costs.render_s), move, *encode]
        part = PART_TASKS * GROUP * costs.written_bytes / costs.store_bytes_s
        self._write = [*call, ("store", part)]
        self._rendered = len(call) + 2  # the step after

    def run(self) -> None:
        """Until every task is written."""
        for _ in range(min(self._ahead, self._tasks)):
            self._enter()
        while self._events:
            self.now, _, name, task, step = heapq.heappop(self._events)
            station = self.stations[name]
            station.at_work -= 1
            self._start(station, name)
            self._next(task, step + 1)

    def _enter(self) -> None:
        if self._entered < self._tasks:
            self._entered += 1
            self._next(self._entered - 1, 0)

    def _next(self, task: int, step: int) -> None:
        """Steps below ``len(self._work)`` are of a task, the others of the part that it ends."""
        if step == self._rendered:
            self._enter()
        at = step - len(self._work)
        if at == 0:
            self._collect(task)
        elif at < 0 or at <= len(self._write):
            name, seconds = self._work[step] if at < 0 else self._write[at - 1]
            self.stations[name].waiting.append((seconds, task, step))
            self._start(self.stations[name], name)

    def _collect(self, task: int) -> None:
        self._here.add(task)
        while self._in_order in self._here:
            self._here.remove(self._in_order)
            self._in_order += 1
            self._in_part += 1
            if self._in_part == PART_TASKS or self._in_order == self._tasks:
                self._in_part = 0
                self._next(self._in_order, len(self._work) + 1)

    def _start(self, station: _Station, name: str) -> None:
        while station.waiting and station.at_work < station.servers:
            seconds, task, step = station.waiting.popleft()
            station.at_work += 1
            station.worked_s += seconds
            self._count += 1
            heapq.heappush(self._events, (self.now + seconds, self._count, name, task, step))


def run(machines: Machines, costs: Costs, objects: int) -> Outcome:
    """Pass ``objects`` through the job, rounded up to whole tasks; start-up is not counted.

    Raises ``ValueError`` where GPUs are needed and there are none.
    """
    if costs.encode_s and not machines.gpus:
        raise ValueError("encode_s: the machines have no GPUs")
    network = _Network(machines, costs, -(-objects // GROUP))
    network.run()
    seconds = network.now
    busy = {
        name: station.worked_s / (station.servers * seconds)
        for name, station in network.stations.items()
        if station.servers and seconds
    }
    return Outcome(seconds, objects / seconds if seconds else float("inf"), busy)


def ideal(machines: Machines, costs: Costs) -> float:
    """Objects a second of workers and GPUs alone, nothing else in their way."""
    of_cores = machines.workers / costs.render_s
    gpus = machines.nodes * machines.gpus
    return min(of_cores, gpus / costs.encode_s) if costs.encode_s else of_cores
