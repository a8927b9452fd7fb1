"""`pipeline embed` of 500 procedural objects and all real meshes, killed wherever it is.

What counts is the set in the end: the rows of an undisturbed run, to the bit, each once, and
nothing under a final name that is not whole.
"""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.shards import ShardSet, what_lacks
from tests.integration.faults import kill, render_child, render_workers
from tests.integration.test_embed import contents
from tests.pipeline.test_teacher import write_teacher

ROOT = Path(__file__).parents[2]
ASSETS = ROOT.parent / "shared" / "assets" / "cc0-meshes"
KILLS = 20
WALL_CLOCK = ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not ASSETS.is_dir(), reason="needs ../shared/assets"),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{write_teacher(tmp_path_factory.mktemp('teacher') / 'tiny')}"


def embed(out: Path | str, teacher: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-c", "from pipeline.cli import main; main()", "embed"),
        *("--dataset", str(Path(__file__).parent / "both_sources.py"), "--root", str(ASSETS)),
        *("--out", str(out), "--teacher", teacher, "--rows-per-part", "64", "--views", "2"),
        *("--image-size", "48", "--points", "512", "--json", *more),
    ]


def begin(command: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(command: list[str], env: dict[str, str] | None = None) -> tuple[int, str, str]:
    job = begin(command, env)
    try:
        stdout, stderr = job.communicate(timeout=1200)
    finally:
        kill(job)
    return job.returncode, stdout, stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> tuple[Path, float]:
    """The set, and the seconds that it took."""
    out = tmp_path_factory.mktemp("shards") / "whole"
    begun = time.monotonic()
    code, stdout, stderr = run(embed(out, teacher))
    assert code == 0, stderr[-3000:]
    assert json.loads(stdout)["embedded"] > 1800
    return out, time.monotonic() - begun


def is_same(out: Path, wanted: Path) -> None:
    rows = contents(out)  # fails for a uid that comes twice
    assert rows.keys() == contents(wanted).keys()
    assert rows == contents(wanted)
    shards = ShardSet.open(out, verify=True)
    assert {f.uid for f in shards.failures()} == {f.uid for f in ShardSet.open(wanted).failures()}
    strays = [
        path.name
        for path in out.iterdir()
        if path.name not in ("manifest.json", "contents.json", ".lock")
        and not path.name.startswith(("part-", "failures-"))
    ]
    assert not strays
    assert what_lacks(out) is None


def test_driver__killed_at_20_random_moments_the_set_is_that_of_an_undisturbed_run(
    undisturbed: tuple[Path, float], teacher: str, tmp_path: Path
) -> None:
    wanted, seconds = undisturbed
    rng, out = random.Random(7), tmp_path / "killed"
    at_kill = []
    for number in range(KILLS):
        job = begin(embed(out, teacher))
        before = set(out.glob("part-*.parquet"))
        if number % 4 == 0:  # somewhere from the first import on
            time.sleep(rng.uniform(0, 0.4) * seconds)
        elif number % 4 == 1:  # somewhere from the first worker on
            while not render_workers(job.pid) and job.poll() is None:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 8))
        else:  # somewhere in the writing
            while set(out.glob("part-*.parquet")) <= before and job.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 1.5))
        kill(job)
        at_kill.append(len(contents(out)) if out.exists() else 0)
    code, stdout, stderr = run(embed(out, teacher))
    assert code == 0, stderr[-3000:]
    failures = len(ShardSet.open(wanted).failures())
    assert 0 <= json.loads(stdout)["skipped"] - at_kill[-1] <= failures  # these are skipped too
    assert at_kill == sorted(at_kill), "a kill lost rows that were written"
    assert len(set(at_kill)) > 5, "the kills did not find it at work"
    is_same(out, wanted)
    sys.stderr.write(f"rows there after each kill: {at_kill}\n")


def test_workers__killed_20_times_at_random_the_set_is_that_of_an_undisturbed_run(
    undisturbed: tuple[Path, float], teacher: str, tmp_path: Path
) -> None:
    wanted, _ = undisturbed
    rng, out, kills = random.Random(8), tmp_path / "killed", {"worker": 0, "child": 0}
    while sum(kills.values()) < KILLS:
        job = begin(embed(out, teacher))
        killed_here = 0
        while job.poll() is None:
            time.sleep(rng.uniform(1.0, 3.0))
            workers = render_workers(job.pid)
            # An object that takes its worker with it twice is a failure: three at most a run keep
            # that from happening by chance to one that is healthy.
            if not workers or killed_here >= 3 or sum(kills.values()) >= KILLS:
                continue
            worker = rng.choice(workers)
            child = render_child(worker)
            chosen, kind = (child, "child") if child and rng.random() < 0.7 else (worker, "worker")
            if kind == "worker" and kills["worker"] and killed_here:
                continue
            try:
                os.kill(chosen.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            kills[kind] += 1
            killed_here += 1
        _, stderr = job.communicate()
        assert job.returncode == 0, stderr[-3000:]
        if sum(kills.values()) < KILLS:  # the rows are right; do them once more, disturbed further
            is_same(out, wanted)
            shutil.rmtree(out)
    is_same(out, wanted)
    assert min(kills.values()) >= 3
    sys.stderr.write(f"killed: {kills}\n")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk__full_is_told_and_the_job_goes_on_where_there_is_room(
    undisturbed: tuple[Path, float], teacher: str, tmp_path: Path, small_disk: Path
) -> None:
    wanted, _ = undisturbed
    code, _, stderr = run(embed(small_disk / "set", teacher))
    assert code == 2, stderr[-3000:]
    assert "Traceback" not in stderr
    assert "No space left" in stderr
    parts = list((small_disk / "set").glob("part-*.parquet"))
    assert parts, "a part or two had room"
    survived = contents(small_disk / "set")
    shutil.copytree(small_disk / "set", tmp_path / "moved")
    code, stdout, stderr = run(embed(tmp_path / "moved", teacher))
    assert code == 0, stderr[-3000:]
    told = json.loads(stdout)
    # A mesh that failed may stand in a part of its own already.
    assert told["skipped"] - told["failed_before"] == len(survived)
    is_same(tmp_path / "moved", wanted)


def test_output__read_only_is_told_before_any_work(teacher: str, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    begun = time.monotonic()
    code, _, stderr = run(embed(small_disk / "set", teacher))
    assert code == 2, stderr[-3000:]
    assert "Traceback" not in stderr
    assert "is on a read-only file system; name another place" in stderr
    assert time.monotonic() - begun < 60


def test_clock__files_dated_a_year_back_or_ahead_change_nothing(
    undisturbed: tuple[Path, float], teacher: str, tmp_path: Path
) -> None:
    """What a jump of the wall clock between two runs leaves behind.

    Within a run nothing of ours reads it: see the next test. (Ray does, and a clock that jumps for
    its processes alone, as a preloaded library makes it, stops Ray.)
    """
    wanted, _ = undisturbed
    out = tmp_path / "set"
    job = begin(embed(out, teacher))
    while len(list(out.glob("part-*.parquet"))) < 4 and job.poll() is None:
        time.sleep(0.02)
    kill(job)
    survived = contents(out)
    year = 365 * 86400
    for number, path in enumerate(sorted(out.iterdir())):
        at = time.time() + (year if number % 2 else -year)
        os.utime(path, (at, at))
    code, stdout, stderr = run(embed(out, teacher))
    assert code == 0, stderr[-3000:]
    assert json.loads(stdout)["skipped"] == len(survived) > 0
    is_same(out, wanted)


def test_clock__is_read_to_tell_the_time_and_for_nothing_else() -> None:
    told = {  # stamps of curves; minutes of the demo teacher's training; order of a cache's files
        *("trainer/recorder.py", "pipeline/teachers/train_demo.py"),
        "pipeline/datasets/download_cache.py",
    }
    readers = set()
    for package in ("pipeline", "trainer", "evaluation"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                if named and f"{node.value.id}.{node.attr}" in WALL_CLOCK:  # type: ignore[attr-defined]
                    readers.add(path.relative_to(ROOT).as_posix())
    assert readers == told


def test_two__at_once_on_one_output_the_second_is_refused_and_a_crash_leaves_no_lock(
    undisturbed: tuple[Path, float], teacher: str, tmp_path: Path
) -> None:
    wanted, _ = undisturbed
    out = tmp_path / "set"
    first = begin(embed(out, teacher))
    try:
        deadline = time.monotonic() + 120
        while not (out / "manifest.json").exists():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        code, _, stderr = run(embed(out, teacher))
        assert code == 2
        assert "another run is using this folder" in stderr
    finally:
        kill(first)  # SIGKILL: it cannot put its lock away
    code, _, stderr = run(embed(out, teacher))
    assert code == 0, stderr[-3000:]
    is_same(out, wanted)
