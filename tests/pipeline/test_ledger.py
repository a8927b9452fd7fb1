"""What a job knows of its workers' deaths, and what its stages do about them; without Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.cameras import ring
from pipeline.captions import CaptionJoin
from pipeline.common import InputError
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.graph import _recount, remaining
from pipeline.isolated import compile_all
from pipeline.job import EmbedOptions, EmbedSummary, for_teachers, prepare, to_do
from pipeline.ledger import GIVE_UP, Guard, Ledger, Reporter
from pipeline.objects import ObjectSettings
from pipeline.renderers.base import RenderConfig
from pipeline.shards import Failure, Row, ShardSet, create_or_open
from pipeline.spool import Spool, SpoolReader
from pipeline.stages import (
    Done,
    EmbedStage,
    EncodeSettings,
    EncodeStage,
    Renderer,
    RenderStage,
    Target,
    pack,
    unpack,
    write_stage,
)
from tests.pipeline.full_disk import full_disk
from tests.pipeline.shard_tools import make_manifest, make_row


class Cluster:
    """Nodes that can be taken away."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = set(nodes)

    def __call__(self) -> set[str]:
        return set(self.nodes)


class Here(Reporter):
    """A reporter whose ledger is in this process."""

    def __init__(self, ledger: Ledger, node: str = "a") -> None:
        super().__init__(ledger)
        self.node_ = node

    def call(self, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        del timeout_s  # it answers at once
        return getattr(self.handle, method)(*arguments)

    def node(self) -> str:
        return self.node_

    def worker(self) -> tuple[str, Any]:
        return "worker", "handle"


def test_attempts__only_those_that_died_on_a_living_node_count() -> None:
    cluster = Cluster("a", "b")
    ledger = Ledger(cluster)
    assert [ledger.begin("x", node) for node in "aab"] == [0, 1, 2]
    cluster.nodes.discard("a")  # the machine took its attempts with it
    assert ledger.begin("x", "b") == 1
    ledger.end("x")
    assert ledger.begin("x", "b") == 0
    assert ledger.begin("y", "b") == 0


def test_attempts__what_the_job_itself_cut_off_does_not_count() -> None:
    ledger = Ledger(Cluster("a"))
    ledger.begin("x", "a")
    ledger.begin("x", "a")
    ledger.next_pass()
    assert ledger.begin("x", "a") == 1


def test_starts__one_worker_that_dies_over_and_over_is_stopped_unless_something_gets_done() -> None:
    ledger = Ledger(Cluster("a"))
    allowed = [ledger.start("w", None, "a") for _ in range(9)]
    assert allowed == [True] * 8 + [False]
    ledger.begin("x", "a")
    ledger.end("x")
    assert ledger.start("w", None, "a")
    assert all(ledger.start("v", None, "gone") for _ in range(50))  # machines come and go


def test_stranded__a_worker_whose_node_is_gone_and_that_runs_nowhere_else() -> None:
    cluster = Cluster("a", "b")
    ledger = Ledger(cluster)
    ledger.start("one", "handle of one", "a")
    ledger.start("two", "handle of two", "a")
    ledger.start("three", "handle of three", "b")
    assert ledger.stranded(0) == []
    cluster.nodes.discard("a")
    assert ledger.stranded(30) == []
    ledger.start("two", "handle of two", "b")  # there was room for it elsewhere
    time.sleep(0.05)
    assert ledger.stranded(0.01) == ["handle of one"]
    ledger.next_pass()
    assert ledger.stranded(0) == []


def test_writes__of_a_pass_that_is_over_are_refused_and_open_ones_are_waited_for() -> None:
    cluster = Cluster("a", "b")
    ledger = Ledger(cluster)
    assert ledger.begin_write("x", 0, "a") == 0
    assert ledger.begin_write("y", 0, "b") == 0
    assert ledger.next_pass() == 1
    assert ledger.begin_write("z", 0, "a") == -1
    assert ledger.writing() == 2
    cluster.nodes.discard("b")
    assert ledger.writing() == 1
    ledger.end_write("x", "what x was")
    assert ledger.writing() == 0
    assert ledger.begin_write("y", 1, "a") == 1  # begun before: it may be there
    ledger.end_write("y", "what y was")
    assert ledger.written() == ["what x was", "what y was"]
    with pytest.raises(RuntimeError, match="over"), Guard(Here(ledger)).write("q"):
        pass


def test_guard__an_input_error_reaches_the_driver() -> None:
    ledger = Ledger(Cluster("a"))
    with pytest.raises(InputError), Guard(Here(ledger)).attempt("x"):
        raise InputError("--out x: no")
    assert ledger.problem() == "--out x: no"
    assert ledger.begin("x", "a") == 0  # an error is an end, not a death


def test_guard__workers_that_die_as_they_start_end_the_job() -> None:
    ledger = Ledger(Cluster("a"))
    for _ in range(8):
        with Guard(Here(ledger)).starting():
            pass
    with pytest.raises(InputError, match="keep dying"), Guard(Here(ledger)).starting():
        pass


def done(manifest: Any, number: int, failed: bool = False) -> Done:
    uid = f"toy/{number}"
    if failed:
        return Done((0,), failure=Failure(uid, "toy", uid, "process", "timeout", "x"))
    row: Row = make_row(manifest, uid)
    return Done((0,), {0: row})


def test_write_stage__a_second_run_of_a_task_adds_only_what_is_missing(tmp_path: Path) -> None:
    manifest = create_or_open(tmp_path, make_manifest())
    targets = (Target("toy", str(tmp_path), manifest),)
    reporter = Here(Ledger(Cluster("a")))
    first = [done(manifest, n) for n in range(6)]
    write_stage(pack(first), targets, None, reporter)
    assert len(ShardSet.open(tmp_path)) == 6
    # Elsewhere the last bits differ, and one object that was there timed out.
    other = make_manifest(sampling_seed=8)
    again = [done(manifest, 0, failed=True), *(done(other, n) for n in range(1, 6))]
    (written,) = unpack(write_stage(pack(again), targets, None, reporter))
    assert (written.rows, written.failures) == (5, 1)
    assert sorted(ShardSet.open(tmp_path).uids()) == [f"toy/{n}" for n in range(6)]
    assert len(ShardSet.open(tmp_path).parts) == 1


def test_write_stage__refuses_a_folder_that_is_not_the_drivers(tmp_path: Path) -> None:
    manifest = make_manifest()
    targets = (Target("toy", str(tmp_path / "x"), manifest),)
    ledger = Ledger(Cluster("a"))
    spool = str(tmp_path / "x" / ".tmp-records-1.parquet")
    with pytest.raises(InputError, match="does not see what the job put there"):
        write_stage(pack([done(manifest, 1)]), targets, spool, Here(ledger))
    assert not (tmp_path / "x").exists()
    assert "--out" in str(ledger.problem())


def test_write_stage__a_full_disk_is_told_and_the_driver_does_not_wait_for_the_part(
    tmp_path: Path,
) -> None:
    manifest = create_or_open(tmp_path, make_manifest())
    targets = (Target("toy", str(tmp_path), manifest),)
    ledger = Ledger(Cluster("a"))
    with full_disk(), pytest.raises(InputError, match="cannot be written"):
        write_stage(pack([done(manifest, n) for n in range(9)]), targets, None, Here(ledger))
    assert "make room" in str(ledger.problem())
    assert ledger.writing() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_guard__a_write_that_is_cut_short_may_be_there_and_is_not_waited_for() -> None:
    """Ray interrupts the tasks of a pass that failed."""
    ledger = Ledger(Cluster("a"))
    with pytest.raises(KeyboardInterrupt), Guard(Here(ledger)).write("x"):
        raise KeyboardInterrupt
    assert ledger.writing() == 0
    assert ledger.begin_write("x", 0, "a") == 1


def test_writes__go_on_after_the_ledger_was_lost() -> None:
    ledger = Ledger(Cluster("a"))  # a new one, in the job's third pass
    assert ledger.begin_write("x", 2, "a") == 0
    assert ledger.begin_write("y", 1, "a") == -1
    assert ledger.next_pass() == 3


@dataclass(frozen=True)
class Job:
    """What the stages of a job over four objects are made of."""

    render: tuple[ObjectSettings, str, float]
    targets: EncodeSettings
    spool: Spool
    task: Any  # all four objects

    def encode(self, ledger: Ledger | None) -> EncodeStage:
        return EncodeStage(self.targets, Here(ledger) if ledger else None)

    def rendered(self, ledger: Ledger | None) -> list[Any]:
        return list(RenderStage(*self.render, Here(ledger) if ledger else None)(self.task))

    def embedded(self, ledger: Ledger) -> list[Done]:
        # A new stage, since one remembers the texts that it has encoded.
        return unpack(EmbedStage(*self.render, self.targets, Here(ledger))(self.task))

    def key(self) -> str:
        return Renderer(*self.render).read(self.task)[0]

    def uids(self) -> list[str]:
        return [item.record.uid for item in SpoolReader(self.spool.address).read(self.task)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    objects = ObjectSettings(
        ProceduralDataset(count=4, seed=3), ring(2), RenderConfig(image_size=48), "raster", 64, 64
    )
    out = str(tmp_path_factory.mktemp("shards") / "x")
    options = EmbedOptions(objects=objects, out=out, device="cpu")
    targets = prepare(options)
    settings = for_teachers(objects, targets.targets[0].manifest.teacher)
    compile_all(settings.renderer)  # as the job does: not within an object's time limit
    with CaptionJoin(()) as captions, to_do(options, targets, captions) as (spool, _):
        (task, *others) = spool.tasks(1)
        whole = task.set_column(2, "end", pa.array([spool.total]))
        assert others  # which the whole holds too
        yield Job((settings, spool.address, 600.0), targets, spool, whole)


@pytest.fixture(scope="module")
def whole(job: Job) -> list[Done]:
    """What becomes of the objects when nothing goes wrong."""
    torch.set_num_threads(2)  # the stage itself sets one: sums must not depend on it
    found = job.embedded(Ledger(Cluster("a")))
    assert [item.uid for item in found] == job.uids()
    assert [item.failure for item in found] == [None] * 4
    return found


def assert_same_rows(found: Sequence[Done], expected: Sequence[Done]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.uid == other.uid
        for name, value in vars(other.rows[0]).items():
            mine = getattr(one.rows[0], name)
            if isinstance(value, np.ndarray):
                assert mine.dtype == value.dtype
                assert mine.tobytes() == value.tobytes(), name
            else:
                assert mine == value, name


def assert_lost(item: Done, stage: str, uid: str) -> None:
    assert item.failure is not None
    assert (item.failure.stage, item.failure.error) == (stage, "worker_lost")
    assert (item.uid, item.rows) == (uid, {})


def test_embed_stage__after_a_death_objects_go_one_by_one_with_the_same_rows(
    job: Job, whole: list[Done]
) -> None:
    ledger = Ledger(Cluster("a"))
    ledger.begin(job.key(), "a")  # a worker died at the task
    first = job.uids()[0]
    for _ in range(GIVE_UP - 1):
        ledger.begin(first, "a")
    assert_same_rows(job.embedded(ledger), whole)
    ledger.begin(job.key(), "a")
    for _ in range(GIVE_UP):
        ledger.begin(first, "a")
    careful = job.embedded(ledger)
    assert_lost(careful[0], "process", first)
    assert_same_rows(careful[1:], whole[1:])
    assert ledger.begin(job.key(), "a") == 0  # all of it came to an end


def test_stages_apart__give_the_rows_of_the_one_stage_however_they_are_batched(
    job: Job, whole: list[Done]
) -> None:
    """The graph's stages for teachers on GPUs, here on the CPU."""
    tables = job.rendered(Ledger(Cluster("a")))
    assert [table.num_rows for table in tables] == [1] * 4
    for cuts in ([4], [1, 3], [1, 1, 1, 1]):
        encode, found, at = job.encode(Ledger(Cluster("a"))), list[Done](), 0
        for size in cuts:
            found += unpack(encode(pa.concat_tables(tables[at : at + size])))
            at += size
        assert_same_rows(found, whole)


def test_render_stage__after_a_death_objects_go_one_by_one(job: Job, whole: list[Done]) -> None:
    ledger, uids = Ledger(Cluster("a")), job.uids()
    ledger.begin(job.key(), "a")
    for _ in range(GIVE_UP):
        ledger.begin(uids[2], "a")
    tables = job.rendered(ledger)
    assert [table.num_rows for table in tables] == [1] * 4  # Ray tells by numbers what it has
    found: list[Done] = unpack(job.encode(None)(pa.concat_tables(tables)))
    assert_lost(found[2], "process", uids[2])
    assert_same_rows([*found[:2], found[3]], [*whole[:2], whole[3]])


def test_render_stage__an_object_does_not_answer_for_a_death_while_others_are_waited_for(
    job: Job,
) -> None:
    ledger = Ledger(Cluster("a"))
    ledger.begin(job.key(), "a")
    tables = RenderStage(*job.render, Here(ledger))(job.task)
    next(tables)  # and the worker dies before it goes on
    assert ledger.begin(job.uids()[0], "a") == 0
    tables.close()  # type: ignore[attr-defined]


class Listening(Ledger):
    """Tells which attempts were begun."""

    def __init__(self) -> None:
        super().__init__(Cluster("a"))
        self.begun: list[str] = []

    def begin(self, key: str, node: str) -> int:
        self.begun.append(key)
        return super().begin(key, node)


def test_encode_stage__after_a_death_the_first_object_has_as_many_tries_as_any(
    job: Job, whole: list[Done]
) -> None:
    ledger, uids = Listening(), job.uids()
    batch = pa.concat_tables(job.rendered(None))
    assert_same_rows(unpack(job.encode(ledger)(batch)), whole)
    (outer,) = ledger.begun
    ledger.begin(outer, "a")  # a worker died at the batch, for whatever reason
    ledger.begun.clear()
    assert_same_rows(unpack(job.encode(ledger)(batch)), whole)
    own = ledger.begun[1:]
    assert len({outer, *own}) == 1 + len(uids)
    for _ in range(GIVE_UP - 1):
        ledger.begin(own[0], "a")
    for _ in range(GIVE_UP):
        ledger.begin(own[1], "a")
    ledger.begin(outer, "a")
    found: list[Done] = unpack(job.encode(ledger)(batch))
    assert_lost(found[1], "encode", uids[1])
    assert_same_rows([found[0], *found[2:]], [whole[0], *whole[2:]])


def elsewhere(job: Job, folder: Path) -> EncodeSettings:
    """The job's set, another one."""
    (target,) = job.targets.targets
    out = str(folder / "x")
    there = replace(target, out=out, manifest=create_or_open(out, target.manifest))
    return replace(job.targets, targets=(there,))


def test_remaining__what_failed_in_this_job_is_not_tried_again_by_its_next_pass(
    job: Job, tmp_path: Path, whole: list[Done]
) -> None:
    targets = elsewhere(job, tmp_path)
    uids = job.uids()
    bad = [Done((0,), failure=Failure(uid, "p", uid, "load", "gone", "x")) for uid in uids[1:3]]
    write_stage(pack([whole[0], *bad]), targets.targets, None, None)
    options = EmbedOptions(objects=job.render[0], out=targets.targets[0].out)

    def left(options: EmbedOptions, *failed: str) -> list[str]:
        found = remaining(job.spool, options, targets, failed)
        return [item.record.uid for item in found]

    assert left(options) == uids[3:]
    again = replace(options, retry_failures=True)  # those of earlier jobs
    assert left(again) == uids[1:]
    assert left(again, uids[2]) == [uids[1], uids[3]]


def test_recount__tells_what_the_sets_hold(job: Job, tmp_path: Path, whole: list[Done]) -> None:
    """Where a machine was lost after it wrote a part and before it could say so."""
    targets = elsewhere(job, tmp_path)
    uids = job.uids()
    bad = Done((0,), failure=Failure(uids[1], "p", uids[1], "load", "gone", "x"))
    write_stage(pack([whole[0], bad, *whole[2:]]), targets.targets, None, None)
    summary = EmbedSummary(embedded=1, failed=0)
    options = EmbedOptions(objects=job.render[0], out=targets.targets[0].out)
    _recount(summary, job.spool, options, targets)
    assert (summary.embedded, summary.failed, summary.reasons) == (3, 1, {"load: gone": 1})
