"""What the job survives: lost workers, lost machines, objects that kill, several jobs at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.cluster import _ENVIRONMENT
from pipeline.shards import ShardSet
from tests.integration import faults
from tests.integration.test_embed import command, contents, embed_procedural, run
from tests.pipeline.test_teacher import write_teacher

pytestmark = pytest.mark.timeout(1800)  # several jobs each, on a machine with other work too
COUNT = 48


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{write_teacher(tmp_path_factory.mktemp('teacher') / 'tiny')}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("shards") / "whole"
    faults.finished(faults.start(out, teacher, COUNT, workers=2))
    return contents(out)


@contextmanager
def cluster(*cpus: int) -> Iterator[Any]:
    """A Ray cluster of several nodes on this machine; the first one has no CPUs for workers."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    found = started(0, *cpus)
    try:
        yield found
    finally:
        found.shutdown()


def started(*cpus: int) -> Any:
    """The cluster, with ``in_order``: its nodes as they were asked for (Ray keeps them in a set).

    Where a node takes over Ray's 30 s to start, beside much other work, anew.
    """
    from ray.cluster_utils import Cluster

    for left in reversed(range(3)):
        found: Any = Cluster()
        try:
            found.in_order = [add_node(found, number) for number in cpus]
        except Exception as error:
            found.shutdown()
            if not left or SLOW_START not in str(error):
                raise
        else:
            break
    return found


SLOW_START = "timed out during startup"


def add_node(machines: Any, cpus: int) -> Any:
    return machines.add_node(
        num_cpus=cpus, object_store_memory=100 << 20, include_dashboard=False, wait=False
    )


def raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def rendering(node: Any) -> list[psutil.Process]:
    """The render workers of a node that are at work on objects."""
    return [w for w in faults.render_workers(raylet(node)) if faults.render_child(w)]


def assert_same(out: Path, expected: dict[str, bytes]) -> None:
    assert contents(out) == expected  # which also says that no uid is there twice
    assert ShardSet.open(out).failures() == []
    assert not list(out.glob(".tmp-*"))


def two(found: list[psutil.Process]) -> list[psutil.Process]:
    return found if len(found) == 2 else []


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_job__a_worker_and_a_rendering_process_killed_change_nothing(
    teacher: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "x"
    gate = tmp_path / "gate"
    job = faults.start(out, teacher, COUNT, workers=2, gate=str(gate))
    try:
        faults.wait_for(lambda: list(out.glob("part-*")), job)
        workers = faults.wait_for(lambda: two(faults.render_workers(job.pid)), job)
        children = [faults.wait_for(partial(faults.render_child, w), job) for w in workers]
        workers[0].kill()
        children[1].kill()
        faults.wait_for(lambda: gone(children[0]), timeout_s=60)  # no orphan goes on
        gate.touch()
        done = faults.finished(job)
    finally:
        faults.kill(job)
    assert (done["embedded"], done["failed"]) == (COUNT, 0)
    assert_same(out, undisturbed)


@pytest.mark.slow
def test_job__objects_that_kill_are_failures_and_the_rest_completes(
    teacher: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "x"
    poison = [(5, "worker"), (20, "child")]
    done = faults.finished(faults.start(out, teacher, COUNT, workers=2, poison=poison))
    assert done["reasons"] == {"process: worker_lost": 1, "process: crash": 1}
    assert done["embedded"] == COUNT - 2
    failures = {failure.uid: failure.error for failure in ShardSet.open(out).failures()}
    assert failures == {
        "procedural/3-00000005": "worker_lost",
        "procedural/3-00000020": "crash",
    }
    assert contents(out) == {u: row for u, row in undisturbed.items() if u not in failures}


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [False, True])
def test_job__a_lost_machine_changes_nothing(
    teacher: str, tmp_path: Path, undisturbed: dict[str, bytes], replaced: bool
) -> None:
    """Without another one in its place, there is no room for the workers that it had.

    The gate keeps the survivor at work until the pass is over: where it runs out of work, Ray Data
    lets it go, the lost worker starts in its place, and one pass is enough.
    """
    out = tmp_path / "x"
    gate = tmp_path / "gate"
    with cluster(2, 1) as machines:
        node, other = machines.in_order[1:]
        job = faults.start(
            *(out, teacher, COUNT),
            address=machines.address,
            gate=str(gate),
            node_grace_s=600 if replaced else 3,
        )
        try:
            faults.wait_for(
                lambda: list(out.glob("part-*")) and rendering(node) and rendering(other), job
            )
            orphans = [faults.render_child(worker) for worker in rendering(node)]
            survivors = rendering(other)
            machines.remove_node(node, allow_graceful=False)
            if replaced:
                with suppress(Exception):  # if it is slow to start, it comes all the same
                    add_node(machines, 2)
            for orphan in orphans:
                faults.wait_for(partial(lambda o: o is None or gone(o), orphan), timeout_s=60)
            for survivor in [] if replaced else survivors:
                faults.wait_for(partial(gone, survivor), job)
            gate.touch()
            done = faults.finished(job)
        finally:
            faults.kill(job)
    assert done["passes"] == (1 if replaced else 2)
    assert (done["embedded"], done["failed"]) == (COUNT, 0)
    assert_same(out, undisturbed)


@pytest.mark.slow
def test_job__whose_driver_dies_on_a_cluster_that_lost_a_machine_goes_on_by_the_same_command(
    teacher: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """As a fault in Ray's own library ends it, with its workers still at work elsewhere."""
    out = tmp_path / "x"
    gate = tmp_path / "gate"
    with cluster(2, 2) as machines:
        node, other = machines.in_order[1:]
        options = {"address": machines.address, "gate": str(gate), "node_grace_s": 3}
        for crash in range(3):
            job = faults.start(out, teacher, COUNT, **options)
            try:
                faults.wait_for(lambda: list(out.glob("part-*")) and rendering(other), job)
                if crash == 0:
                    machines.remove_node(node, allow_graceful=False)
                os.kill(job.pid, signal.SIGSEGV)
                assert job.wait(timeout=60) == -signal.SIGSEGV
            finally:
                faults.kill(job)
        gate.touch()
        done = faults.finished(faults.start(out, teacher, COUNT, **options))
    assert done["skipped"] > 0
    assert (done["skipped"] + done["embedded"], done["failed"]) == (COUNT, 0)
    assert_same(out, undisturbed)


@pytest.mark.slow
def test_job__ends_where_the_ray_of_its_own_machine_dies(
    teacher: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """It must not wait for ever; the same command goes on."""
    out = tmp_path / "x"
    job = faults.start(out, teacher, COUNT, workers=1, gate=str(tmp_path / "never"))
    try:
        faults.wait_for(lambda: list(out.glob("part-*")), job)
        processes = psutil.Process(job.pid).children(recursive=True)
        next(p for p in processes if p.name() == "raylet").kill()
        job.communicate(timeout=600)
        assert job.returncode != 0
        for process in processes:
            faults.wait_for(partial(gone, process), timeout_s=60)
    finally:
        faults.kill(job)
    done = faults.finished(faults.start(out, teacher, COUNT, workers=1))
    assert done["skipped"] > 0
    assert_same(out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_embed__interrupted_it_says_how_to_go_on_and_leaves_nothing(
    number: signal.Signals, teacher: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "x"
    arguments = embed_procedural(out, teacher, COUNT, "--workers", "1")
    job = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        faults.wait_for(lambda: list(out.glob("part-*")), job)
        processes = psutil.Process(job.pid).children(recursive=True)
        os.killpg(job.pid, number)  # to the whole group, as a terminal or a batch system does
        _, told = job.communicate(timeout=600)
        for process in processes:
            faults.wait_for(partial(gone, process), timeout_s=60)
    finally:
        faults.kill(job)
    assert job.returncode == 130, told
    kept = f"finished parts are kept in {out}; run the same command again to continue"
    assert told.splitlines()[-1] == f"interrupted: {kept}"
    assert "Traceback" not in told
    assert not list(out.glob(".tmp-*"))
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert_same(out, undisturbed)


@pytest.mark.slow
def test_job__two_on_one_cluster_share_it_and_leave_it_running(
    teacher: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    with cluster(2) as machines:
        common = {"address": machines.address, "worker_cpus": 0.5, "workers": 1}
        jobs = [faults.start(tmp_path / name, teacher, COUNT, **common) for name in "ab"]
        try:
            for job in jobs:
                assert faults.finished(job)["embedded"] == COUNT
        finally:
            for job in jobs:
                faults.kill(job)
        assert_same(tmp_path / "a", undisturbed)
        assert_same(tmp_path / "b", undisturbed)
        # The options of the command line, on a cluster that others have used.
        done = run(
            *embed_procedural(tmp_path / "c", teacher, COUNT),
            *("--address", machines.address, "--worker-cpus", "1", "--workers", "7"),
        )
        assert done.returncode == 0, done.stderr
        assert_same(tmp_path / "c", undisturbed)


def test_embed__no_cluster_at_the_address_is_one_line_and_exit_code_2(
    teacher: str, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    done = run(*embed_procedural(tmp_path / "x", teacher, 2), "--address", address)
    assert done.returncode == 2, done.stderr
    assert f"--address {address}: no Ray cluster answers there" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpus", "options", "workers"),
    [(4, {}, 3), (4, {"worker_cpus": 1.5}, 2), (4, {"workers": 1}, 1), (2, {"workers": 5}, 1)],
)
def test_graph__workers_are_as_many_as_the_options_and_the_cluster_allow(
    cpus: int, options: dict[str, Any], workers: int, teacher: str, tmp_path: Path
) -> None:
    with cluster(cpus) as machines:
        (node,) = machines.in_order[1:]
        job = faults.start(
            *(tmp_path / "x", teacher, 64),
            address=machines.address,
            gate=str(tmp_path / "never"),
            **options,
        )
        try:
            faults.wait_for(lambda: len(rendering(node)) == workers, job)
            time.sleep(2)
            assert len(faults.render_workers(raylet(node))) == workers
        finally:
            faults.kill(job)


@pytest.mark.slow
def test_embed__a_cluster_that_does_not_share_the_folder_says_so(
    teacher: str, tmp_path: Path
) -> None:
    """A machine without the folder: a node in a mount namespace where it is hidden."""
    hidden = tmp_path / "shared"
    hidden.mkdir()
    with cluster() as machines:
        command = [
            *("unshare", "--mount", "bash", "-c"),
            f"mount -t tmpfs none {hidden} && exec {sys.executable} -m ray.scripts.scripts start "
            f"--address={machines.address} --num-cpus=2 --object-store-memory=100000000 --block",
        ]
        node = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            time.sleep(3)
            if node.poll() is not None:
                assert node.stderr is not None
                pytest.skip(f"no mount namespace here: {node.stderr.read()[-200:]}")
            job = faults.start(hidden / "x", teacher, 8, address=machines.address, workers=1)
            _, told = job.communicate(timeout=600)
            assert job.returncode != 0
            assert f"--out {hidden}/x: the worker on" in told.splitlines()[-1]
            assert "all its machines share under one path" in told
        finally:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
            assert node.stderr is not None
            node.stderr.close()
