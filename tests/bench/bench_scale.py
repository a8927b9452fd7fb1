"""The embedding job with workers that only wait: what the driver and Ray's scheduler sustain.

    python -m tests.bench --only scale

The job is the real one: its listing, spool, graph, ledger and writer. Only what a worker does with
an object is replaced: it waits as long as a task takes (``TASK_S``, measured elsewhere) and hands
on a row made beforehand. So a small machine holds dozens of workers, of which each stands for a
core in real time, or for a node of 16 cores slowed down 16 times: the driver sees the same tasks.

What is not in it: networks between machines, a store that many write to, starts of real teachers.
What the driver and the ledger cost is told in processor time, so that other work on the machine
does not count as much.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline import graph
from pipeline.cameras import ring
from pipeline.captions import CaptionJoin, CaptionOptions
from pipeline.job import EmbedOptions, EmbedSummary, build_manifest, to_do
from pipeline.ledger import Reporter
from pipeline.objects import ObjectSettings
from pipeline.renderers.base import RenderConfig
from pipeline.shards import TeacherInfo, create_or_open, write_part
from pipeline.spool import GROUP
from pipeline.stages import EncodeSettings, Target
from tests.bench.scale_model import Costs, Machines, ideal, run
from tests.bench.scale_stages import HandingOnStage, Listed, Waiting, WaitingStage

TASK_S = 3.2  # 64 objects of 50 ms each on a core, as docs/benchmarks.md has it for the job
ROWS = 256  # a part
EVERY_S = 2.0  # between two looks at the processes
STAGES = 1.25  # tasks of Ray for each task of 64 objects where workers encode: a quarter of a part
Tables = list[tuple[str, list[str], list[list[object]], str]]


@contextmanager
def stand_ins(waiting: Waiting, encode_seconds: float) -> Iterator[None]:
    """Let the graph build its stages of those above."""
    stages = {
        "EmbedStage": _embed(waiting),
        "RenderStage": _render(waiting),
        "EncodeStage": _encode(encode_seconds),
        "compile_all": lambda _: None,
    }
    real = {name: getattr(graph, name) for name in stages}
    for name, stage in stages.items():
        setattr(graph, name, stage)
    try:
        yield
    finally:
        for name, stage in real.items():
            setattr(graph, name, stage)


def _embed(waiting: Waiting) -> type:
    class EmbedStage(WaitingStage):
        def __init__(self, _: Any, spool: str, __: float, ___: Any, reporter: Reporter) -> None:
            super().__init__(waiting, spool, reporter)

    return EmbedStage


def _render(waiting: Waiting) -> type:
    class RenderStage(WaitingStage):
        def __init__(self, _: Any, spool: str, __: float, reporter: Reporter) -> None:
            super().__init__(waiting, spool, reporter)

    return RenderStage


def _encode(seconds: float) -> type:
    class EncodeStage(HandingOnStage):
        def __init__(self, _: Any, reporter: Reporter) -> None:
            super().__init__(seconds, reporter)

    return EncodeStage


@dataclass
class Looks:
    """Processor time of driver and ledger, and parts written, every two seconds.

    Only these two live as long as a job; sums over processes that come and go would fall.
    """

    out: Path
    found: list[tuple[float, int, dict[str, float]]] = field(default_factory=list)
    private_mib: float = 0.0
    own_s: float = 0.0  # of the looking itself

    def look(self) -> None:
        """Take one."""
        begun = time.thread_time()
        root = psutil.Process()
        spent: dict[str, float] = {}
        memory = 0.0
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):
                kind = "driver" if process == root else "ledger"
                if process == root or "Ledger" in " ".join(process.cmdline()):
                    times = process.cpu_times()
                    spent[kind] = times.user + times.system
                memory += process.memory_info().rss - process.memory_info().shared
        for thread in root.threads():
            if thread.id != threading.get_native_id():
                spent[f"thread {thread.id}"] = thread.user_time + thread.system_time
        parts = len(list(self.out.glob("part-*.parquet")))
        spent["driver"] -= self.own_s
        self.found.append((time.monotonic(), parts, spent))
        self.private_mib = max(self.private_mib, memory / 2**20)
        self.own_s += time.thread_time() - begun

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Look every two seconds."""
        stop = threading.Event()

        def keep() -> None:
            self.look()
            while not stop.wait(EVERY_S):
                self.look()

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def steady(self, parts: int) -> tuple[float, int, dict[str, float]]:
        """Seconds, parts and processor seconds by kind between a quarter and nine tenths."""
        begin = next(look for look in self.found if look[1] >= max(1, parts // 4))
        end = [look for look in self.found if look[1] <= max(2, parts * 9 // 10)][-1]
        spent = {kind: end[2].get(kind, 0.0) - begin[2].get(kind, 0.0) for kind in end[2]}
        threads = {kind for kind in spent if kind.startswith("thread ")}
        spent["busiest thread"] = max(spent.pop(kind) for kind in threads)
        return end[0] - begin[0], end[1] - begin[1], spent


@dataclass(frozen=True)
class Case:
    """One run."""

    workers: int
    seconds: float  # a task of 64 objects, of a worker
    tasks: int
    encoders: int = 0  # 0: no GPUs
    encode_seconds: float = 0.0  # a task

    @property
    def ideal(self) -> float:
        """Tasks a second of the slower kind of worker alone."""
        rates = [n / s for n, s in self._kinds if s]
        return min(rates, default=float("inf"))

    @property
    def _kinds(self) -> tuple[tuple[int, float], ...]:
        return (self.workers, self.seconds), (self.encoders, self.encode_seconds)


@dataclass(frozen=True)
class Found:
    """What a run sustained. ``cpu``: shares of a core that driver and ledger took."""

    case: Case
    tasks_s: float
    cpu: dict[str, float]
    start_s: float  # until the first part
    window_s: float  # that was measured
    private_mib: float


# Workers that take 3.2 s for a task are cores in real time, or nodes of 16 cores slowed down 16
# times. The others have more tasks a second than this machine has room for workers.
CASES = (
    Case(1, TASK_S, 20),
    Case(10, TASK_S, 100),
    Case(16, TASK_S, 160),
    Case(2, 0.8, 80),
    Case(8, 0.4, 700),
    Case(6, 0.0, 500),
)
QUICK = (Case(1, 0.2, 32), Case(2, 0.2, 64))
GPUS = Case(4, 0.8, 200, 4, 0.8)


def simulate(case: Case) -> Found:
    """Run the job once. Raises ``RuntimeError`` where an object is missing in the end."""
    import ray

    # Small rows: what they cost is their writers' matter, which have machines of their own.
    waiting = Waiting(case.seconds, n_points=16, n_views=12, width=16)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        out = Path(folder) / "set"
        options, targets = _options(str(out), case, waiting)
        spool, _ = stack.enter_context(to_do(options, targets, CaptionJoin(())))
        stack.enter_context(stand_ins(waiting, case.encode_seconds))
        if case.encoders:
            stack.callback(ray.shutdown)
            _start(case)
        looks, summary = Looks(out), EmbedSummary()
        with looks.going_on():
            graph.run_graph(options, targets, spool, summary, time.perf_counter())
        if summary.embedded != case.tasks * GROUP:
            raise RuntimeError(f"{summary.embedded} of {case.tasks * GROUP} objects")
    seconds, parts, spent = looks.steady(case.tasks * GROUP // ROWS)
    return Found(
        case,
        parts * ROWS / GROUP / seconds,
        {kind: s / seconds for kind, s in spent.items()},
        next(look[0] for look in looks.found if look[1]) - looks.found[0][0],
        seconds,
        looks.private_mib,
    )


def cost(found: Sequence[Found], kind: str) -> tuple[float, float]:
    """Least squares of a process's share of a core: (seconds a task, share without tasks)."""
    slope, base = np.polyfit([f.tasks_s for f in found], [f.cpu[kind] for f in found], 1)
    return float(slope), max(0.0, float(base))


def tables(quick: bool) -> Tables:
    """What was sustained, and how long the listing takes."""
    found = [simulate(case) for case in (QUICK if quick else (*CASES, GPUS))]
    plain = [one for one in found if not one.case.encoders]
    driver, ledger = (cost(plain, kind) for kind in ("driver", "ledger"))
    listing = listed(5_000 if quick else 100_000)
    return [sustained(found), listing, planned(driver, ledger, with_encoders(found, driver))]


def sustained(found: Sequence[Found]) -> tuple[str, list[str], list[list[object]], str]:
    """The table of the runs."""
    kinds = ("driver", "busiest thread", "ledger")
    rows: list[list[object]] = [
        [
            f"{one.case.workers}" + f" + {one.case.encoders} GPUs" * (one.case.encoders > 0),
            one.case.seconds,
            round(one.tasks_s, 2),
            round(one.tasks_s * GROUP),
            f"{one.tasks_s / one.case.ideal:.0%}" if math.isfinite(one.case.ideal) else "",
            *(round(100 * one.cpu[kind], 1) for kind in kinds),
            round(one.start_s),
            round(one.private_mib),
        ]
        for one in found
    ]
    plain = [one for one in found if not one.case.encoders]
    told = []
    for kind in kinds:
        slope, base = cost(plain, kind)
        told.append(f"{kind} {100 * base:.1f} % and {1e3 * slope:.2f} ms a task")
    columns = [
        "workers", "s a task", "tasks/s", "objects/s", "of the ideal", "driver, % of a core",
        "its busiest thread", "ledger", "s to the first part", "private MiB",
    ]  # fmt: skip
    notes = (
        "The real graph, ledger and writer; workers wait instead of working; tasks of 64 objects, "
        "parts of 256, rows of 16 points. Processor time between a quarter and nine tenths of a "
        f"run. A line through the runs without GPUs: {'; '.join(told)}."
    )
    return "The job with workers that wait", columns, rows, notes


# What an object takes, for the plan of docs/full-scale.md: bytes of a row of ViT-bigG-14 (12 views,
# a thumbnail, 4 texts), of what travels to a GPU, of a mesh of Objaverse (8.9 TB for 798,759);
# FLOP of 13 pictures and 7 prompts, at 40 % of the 312 TFLOP/s of an A100.
ROW_BYTES, PICTURES_BYTES, MESH_BYTES = 134_000, 2.1e6, 11.1e6
ENCODE_S = (13 * 967.5e9 + 7 * 98e9) / (0.4 * 312e12)
MEASURED_S, HEAVY = 0.0356, 5  # load, render, sample, keep (docs/benchmarks.md); assumed
PLANS = {
    "teacher on the cores, 50 ms": (0, Costs(TASK_S / GROUP, moved_bytes=ROW_BYTES)),
    "bigG, meshes as those measured": (8, Costs(MEASURED_S, ENCODE_S, moved_bytes=PICTURES_BYTES)),
    "bigG, meshes 5 times as slow": (
        8,
        Costs(HEAVY * MEASURED_S, ENCODE_S, moved_bytes=PICTURES_BYTES),
    ),
}


def with_encoders(found: Sequence[Found], driver: tuple[float, float]) -> float:
    """The driver's seconds for a task that is encoded too.

    By the count of stages where no run had encoders.
    """
    runs = [one for one in found if one.case.encoders]
    if not runs:
        return driver[0] * (STAGES + 1) / STAGES
    return float(np.mean([(one.cpu["driver"] - driver[1]) / one.tasks_s for one in runs]))


def planned(
    driver: tuple[float, float],
    ledger: tuple[float, float],
    encoded_s: float,
    objects: int = 876_000,
) -> tuple[str, list[str], list[list[object]], str]:
    """The queueing model at 1, 10 and 100 nodes, with what ``cost`` and ``with_encoders`` gave."""
    rows: list[list[object]] = []
    for (name, (gpus, costs)), store in product(PLANS.items(), (1e9, 20e9)):
        costs = replace(
            costs,
            driver_s=(encoded_s / (STAGES + 1) if gpus else driver[0] / STAGES) / (1 - driver[1]),
            ledger_s=ledger[0] / STAGES / (1 - ledger[1]),
            source_bytes=MESH_BYTES if gpus else 0.0,
            written_bytes=ROW_BYTES,
            sources_bytes_s=store,
            store_bytes_s=store,
        )
        for nodes in (1, 10, 100):
            machines = Machines(nodes, 16, gpus)
            found, best = run(machines, costs, objects), ideal(machines, costs)
            rows.append(
                [
                    name,
                    f"{store / 1e9:.0f}",
                    nodes,
                    round(best),
                    round(found.objects_s),
                    f"{found.objects_s / best:.0%}",
                    round(found.seconds / 3600, 2),
                    f"{found.limit} {found.busy[found.limit]:.0%}",
                ]
            )
    columns = [
        "work", "stores, GB/s", "nodes", "ideal, objects/s", "objects/s", "of the ideal", "hours",
        "busiest",
    ]  # fmt: skip
    notes = (
        f"A queueing model, not a measurement: {objects:,} objects; a node is 16 cores, 8 A100 in "
        "the rows of bigG, and a network of 10 Gbit/s; the stores of meshes and of sets give "
        "and take so much each. Without start-up."
    )
    return "Nodes, by the model", columns, rows, notes


def listed(count: int) -> tuple[str, list[str], list[list[object]], str]:
    """Processor time of finding out what is to be done: nothing there yet, and all there."""
    case, waiting = Case(1, 1.0, 1), Waiting(1.0, 16, 12, 16)
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "set")
        options, targets = _options(out, case, waiting)
        options = replace(options, objects=replace(options.objects, dataset=Listed(count)))

        def timed(what: str) -> None:
            begun = time.process_time()
            with to_do(options, targets, CaptionJoin(())) as (spool, seen):
                spent = time.process_time() - begun
            rows.append(
                [
                    what,
                    seen.records - spool.total,
                    round(spent, 2),
                    round(spent * 876_000 / count, 1),
                ]
            )

        timed("a new set")
        target = targets.targets[0]
        records = list(Listed(count).records())
        row = waiting.row(records[0])
        for begin in range(0, count, ROWS):
            part = [replace(row, uid=r.uid, source=r.source) for r in records[begin:][:ROWS]]
            write_part(target.out, target.manifest, part)
        timed("all is there")
    columns = ["", "there already", f"s for {count:,}", "s for 876,000"]
    notes = "Listing, finding what is missing, and spooling; processor time, linear in the objects."
    return "What is still to be done", columns, rows, notes


def _options(out: str, case: Case, waiting: Waiting) -> tuple[EmbedOptions, EncodeSettings]:
    objects = ObjectSettings(
        Listed(case.tasks * GROUP),
        ring(waiting.n_views),
        RenderConfig(image_size=224),
        n_points=waiting.n_points,
        n_fps=waiting.n_points,
    )
    # No GPU is asked for: the graph with encoders of their own is the same.
    device = "cuda" if case.encoders else "cpu"
    options = EmbedOptions(
        objects, out, workers=case.workers, device=device, encoders=case.encoders or None,
        encoder_gpus=0.0, rows_per_part=ROWS, object_store_bytes=400 << 20,
    )  # fmt: skip
    manifest = build_manifest(options, teacher(waiting.width))
    target = Target("demo", out, create_or_open(out, manifest))
    return options, EncodeSettings((target,), device, CaptionOptions())


def teacher(width: int) -> TeacherInfo:
    """Of nothing: rows are made beforehand."""
    return TeacherInfo("simulated", "none", {}, width, 1.0, [], [])


def _start(case: Case) -> None:
    """Ray with CPUs for the encoders too; the job joins a session that is there."""
    import logging

    import ray

    from pipeline.cluster import _ENVIRONMENT

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local", num_cpus=case.workers + case.encoders + 1,
        object_store_memory=400 << 20, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip


def main() -> None:
    """One run: workers, seconds a task, tasks; encoders and their seconds a task."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("workers", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("tasks", type=int)
    parser.add_argument("encoders", type=int, nargs="?", default=0)
    parser.add_argument("encode_seconds", type=float, nargs="?", default=0.0)
    case = Case(**vars(parser.parse_args()))
    sys.stdout.write(json.dumps(asdict(simulate(case))) + "\n")


if __name__ == "__main__":
    main()
