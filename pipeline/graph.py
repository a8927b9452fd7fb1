"""The Ray Data graph of the embedding job, and what happens when parts of the cluster are lost.

A worker that dies starts again, and its task with it: Ray sees to that, the ledger
(``pipeline.ledger``) that it has an end. A machine that is lost and not replaced leaves workers for
which there is no room; and data may be lost that Ray cannot make again. Both end the pass, and
another one, sized to what the cluster then is, goes over the objects that the shards lack.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.catalog import pending_sets
from pipeline.cluster import available, running
from pipeline.common import InputError
from pipeline.console import ProgressBar, note
from pipeline.datasets.base import Record
from pipeline.isolated import compile_all
from pipeline.ledger import Reporter, opened
from pipeline.shards import ShardSet
from pipeline.spool import GROUP, Spool, SpoolReader, Todo, spooled
from pipeline.stages import EmbedStage, EncodeSettings, EncodeStage, RenderStage, Written, unpack
from pipeline.stages import write_stage as _write_stage

if TYPE_CHECKING:
    from pipeline.job import EmbedOptions, EmbedSummary

_IDLE_PASSES = 3  # in a row that finish nothing: then it is not the machines
_WATCH_S = 2.0
_SETTLE_S = 120.0
_LEAVE_S = 15.0  # the same where the job is given up
_ANSWER_S = 120.0
_ROOM_S = 30.0
_LOOK_S = 0.5


def run_graph(
    options: EmbedOptions,
    targets: EncodeSettings,
    spool: Spool,
    summary: EmbedSummary,
    begun: float,
) -> None:
    """Run passes until every record of the spool is a row or a failure; fills the summary in.

    Raises ``InputError`` for what a worker found wrong, ``RuntimeError`` where passes finish
    nothing.
    """
    compile_all(options.objects.renderer)
    total, idle = spool.total, 0
    written: list[Written] = []
    held = options.workers * options.worker_cpus if options.workers else None
    with (
        ExitStack() as stack,
        running(options.address, held, options.object_store_bytes) as cpus,
        opened() as reporter,
    ):
        start = time.perf_counter()
        summary.start_seconds = start - begun
        bar = stack.enter_context(ProgressBar("embed", total, "objects"))
        left = spool
        while left.total:
            summary.passes += 1
            lost = _guarded_pass(options, targets, left, reporter, cpus(), bar)
            written = _ask(reporter, "written")
            if sum(done.rows + done.failures for done in written) == total:
                break  # without another look at the sets
            failed = {uid for done in written for uid in done.failed}
            todo = remaining(left, options, targets, failed)
            before, left = left, stack.enter_context(spooled(targets.targets[0].out, todo))
            idle = idle + 1 if left.total == before.total else 0
            why = lost or "the job lost them"
            if idle >= _IDLE_PASSES:
                raise RuntimeError(f"{left.total} of {total} objects could not be processed: {why}")
            if left.total:
                note(f"part of the cluster was lost; continuing with {left.total} objects ({why})")
        summary.seconds = time.perf_counter() - start
        _sum_up(summary, written)
        if summary.embedded + summary.failed != total:
            _recount(summary, spool, options, targets)


def _sum_up(summary: EmbedSummary, written: list[Written]) -> None:
    reasons: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    stages: dict[str, float] = {}
    for done in written:
        summary.embedded += done.rows
        reasons.update(done.reasons)
        texts.update(done.texts)
        for stage, spent in done.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + spent
    summary.failed = sum(reasons.values())
    summary.reasons = dict(reasons.most_common())
    summary.texts = dict(sorted(texts.items()))
    summary.stage_seconds = {k: round(v, 3) for k, v in stages.items()}


def _recount(
    summary: EmbedSummary, spool: Spool, options: EmbedOptions, targets: EncodeSettings
) -> None:
    """Count objects by what the sets hold: a writer may be lost after it wrote, untold."""
    every = replace(options, retry_failures=True)
    failed = {item.record.uid for item in remaining(spool, every, targets)}
    found: dict[str, str] = {}
    for target in targets.targets:
        for failure in ShardSet.open(target.out).failures():
            if failure.uid in failed:
                found[failure.uid] = f"{failure.stage}: {failure.error}"
    summary.embedded, summary.failed = spool.total - len(failed), len(failed)
    summary.reasons = dict(Counter(found.values()).most_common())


def _ask(reporter: Reporter, method: str, timeout_s: float = _ANSWER_S) -> Any:
    """The ledger's answer. Raises ``RuntimeError`` where there is none.

    ``InputError`` where it could not start, for want of a package.
    """
    from ray.exceptions import RayError

    try:
        return reporter.call(method, timeout_s=timeout_s)
    except RayError as error:
        raise _lacks_package(error) or RuntimeError(
            f"Ray on this machine no longer responds ({type(error).__name__}); "
            "run the same command again to continue"
        ) from error


def _guarded_pass(
    options: EmbedOptions,
    targets: EncodeSettings,
    spool: Spool,
    reporter: Reporter,
    cpus: int,
    bar: ProgressBar,
) -> str | None:
    """As ``_pass``; however it ends, nothing of it writes any more."""
    try:
        lost = _pass(options, targets, spool, reporter, cpus, bar)
    except BaseException:
        # The folder will be free for another run.
        with contextlib.suppress(Exception):
            _settle(reporter, kill=True, patience_s=_LEAVE_S)
        raise
    _settle(reporter, kill=lost is not None)
    return lost


def _pass(
    options: EmbedOptions,
    targets: EncodeSettings,
    spool: Spool,
    reporter: Reporter,
    cpus: int,
    bar: ProgressBar,
) -> str | None:
    """Run the graph once; None, or which part of the cluster was lost."""
    from ray.exceptions import RayError

    graph = _graph(options, targets, spool, cpus, reporter)
    try:
        failed = 0  # of this pass
        with _watching(reporter, options, targets):
            for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow"):
                for done in unpack(batch):
                    failed += done.failures
                    bar.advance(done.rows + done.failures, f"{failed} failed" if failed else "")
    except Exception as error:
        problem = _ask(reporter, "problem")
        if problem is not None:
            raise InputError(problem) from error
        lacks = _lacks_package(error)
        if lacks is not None:
            raise lacks from error
        if isinstance(error, RayError) and _is_loss(error):
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise
    return None


def _is_loss(error: BaseException | None) -> bool:
    """Whether an error says that a machine, a worker or its data is gone, not that work failed."""
    from ray import exceptions

    kinds = (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.ObjectLostError,
        exceptions.LocalRayletDiedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.RaySystemError,
    )
    for one in _causes(error):
        if isinstance(one, kinds):
            return not getattr(one, "actor_init_failed", False)
    return False


def _lacks_package(error: BaseException) -> InputError | None:
    """What to tell where a worker could not import what this machine has; None: it is not that."""
    for one in _causes(error):
        # Ray passes on the text of the error alone.
        if found := re.search(r"No module named '[^']+'", str(one)):
            return InputError(
                f"a machine of the cluster lacks a package ({found[0]}); install mrd3d there as it "
                "is here, then run the same command again"
            )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from, the last first."""
    for _ in range(20):
        if error is None:
            return
        yield error
        error = getattr(error, "cause", None) or error.__cause__


@contextmanager
def _watching(reporter: Reporter, options: EmbedOptions, targets: EncodeSettings) -> Iterator[None]:
    """End, meanwhile, workers that wait for a machine that does not come back.

    Their tasks then fail, which ends the pass: they would wait for ever. Workers that no machine
    has room for are waited for, since a cluster may grow, but not in silence.
    """
    import ray

    stop = threading.Event()
    begun = time.monotonic()

    def watch() -> None:
        told = False
        while not stop.wait(_WATCH_S):
            with contextlib.suppress(Exception):  # the pass itself tells what is wrong
                late = reporter.call("stranded", options.node_grace_s, timeout_s=_ANSWER_S)
                for handle in late:
                    ray.kill(handle, no_restart=True)
                if not told and time.monotonic() - begun > _ROOM_S:
                    lacking = _lacking(options, targets)
                    told = lacking is not None
                    if told:
                        note(f"waiting for {lacking}, which the cluster does not have")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_ANSWER_S)


def _lacking(options: EmbedOptions, targets: EncodeSettings) -> str | None:
    """What a worker needs and no machine of the cluster has, if there is such a thing."""
    import ray

    needs = {"CPU": options.worker_cpus}
    if targets.device == "cuda":
        needs["GPU"] = options.encoder_gpus
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    for kind, need in needs.items():
        if all(node.get(kind, 0) < need for node in nodes):
            return f"a machine with {need:g} {kind}s"
    return None


def _settle(reporter: Reporter, kill: bool = False, patience_s: float = _SETTLE_S) -> None:
    """Wait until no task of the pass that is over writes any more.

    ``kill`` ends its workers first, whose work nobody waits for.
    """
    import ray

    # A batch system ends the processes of Ray too: whoever is told to stop has no two minutes.
    answer_s = min(_ANSWER_S, patience_s)
    if kill:
        for handle in _ask(reporter, "workers", answer_s):
            with contextlib.suppress(Exception):  # some are gone
                ray.kill(handle, no_restart=True)
    reporter.epoch = _ask(reporter, "next_pass", answer_s)
    deadline = time.monotonic() + patience_s
    while _ask(reporter, "writing", answer_s):
        if time.monotonic() > deadline:
            raise RuntimeError("writing a part takes several minutes; run the same command again")
        time.sleep(0.2)


def remaining(
    spool: Spool,
    options: EmbedOptions,
    targets: EncodeSettings,
    failed: Collection[str] = (),
) -> Iterator[Todo]:
    """What of a spool the sets still lack, in its order.

    ``failed`` are uids of objects that failed in this job, which only another one tries again.
    """
    reader = SpoolReader(spool.address)
    ahead: deque[Todo] = deque()

    def records() -> Iterator[Record]:
        for task in spool.tasks(1):
            for item in reader.read(task):
                ahead.append(item)
                yield item.record

    outs = [target.out for target in targets.targets]
    for record, lacking in pending_sets(outs, records(), retry_failures=options.retry_failures):
        while (item := ahead.popleft()).record.uid != record.uid:
            pass
        places = tuple(place for place in item.places if place in lacking)
        if places and record.uid not in failed:
            yield Todo(item.record, places)


def _unhurried() -> None:
    """Let Ray Data look for finished work twice a second.

    It does so ten times a second, which costs a fiftieth of the core that its workers share. They
    have their next task already. Ray has no option for it; where the name is gone, nothing changes.
    """
    from ray.data._internal.execution import streaming_executor_state

    name = "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S"
    if hasattr(streaming_executor_state, name):
        setattr(streaming_executor_state, name, _LOOK_S)


def _graph(
    options: EmbedOptions,
    targets: EncodeSettings,
    spool: Spool,
    cpus: int,
    reporter: Reporter,
) -> Any:
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.data.read_api import from_blocks

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.memory_usage_poll_interval_s = None  # would walk all pages of every worker each second
    room = max(1, int((cpus - 1) / options.worker_cpus))
    workers = min(options.workers or room, room)
    tasks = list(spool.tasks(workers))
    # Not ``from_arrow``, which has a worker look at each table: a second per 300 of them.
    graph: Any = from_blocks(tasks)
    render = (options.objects, spool.address, options.timeout_s)
    pool = ActorPoolStrategy(size=min(workers, len(tasks)))
    if targets.device == "cuda":
        encoders = options.encoders or max(1, int(available("GPU") / options.encoder_gpus))
        graph = graph.map_batches(
            RenderStage,
            fn_constructor_args=(*render, reporter),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=options.worker_cpus,
        ).map_batches(
            EncodeStage,
            fn_constructor_args=(targets, reporter),
            batch_size=GROUP,  # Ray wants a number where GPUs are asked for
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=encoders),
            num_gpus=options.encoder_gpus,
        )
    else:
        _unhurried()
        graph = graph.map_batches(
            EmbedStage,
            fn_constructor_args=(*render, targets, reporter),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=options.worker_cpus,
        )
    write: Any = _write_stage  # Ray's own types of a batch function leave no room for Arrow tables
    return graph.map_batches(
        write,
        fn_args=(targets.targets, spool.address, reporter),
        batch_size=options.rows_per_part,
        batch_format="pyarrow",
        num_cpus=0,
    )
