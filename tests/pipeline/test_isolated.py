from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.cameras import ring
from pipeline.isolated import IsolatedProcessor, _Child
from pipeline.objects import ObjectSettings, Processed
from pipeline.renderers.base import RenderConfig
from pipeline.shards import Failure
from tests.pipeline.test_objects import Trouble, record

SETTINGS = ObjectSettings(Trouble(), ring(2), RenderConfig(image_size=32), n_points=256, n_fps=64)


@pytest.fixture
def processor() -> Iterator[IsolatedProcessor]:
    made = IsolatedProcessor(SETTINGS, timeout_s=60)
    yield made
    made.close()


def child(processor: IsolatedProcessor) -> psutil.Process:
    assert processor._child is not None
    return psutil.Process(processor._child._process.pid)


def errors(items: list[Processed | Failure]) -> list[str]:
    return [item.error if isinstance(item, Failure) else "ok" for item in items]


def test_isolated__crash_hang_and_hunger_cost_one_object_each() -> None:
    keys = ["good", "crash", "plain", "hang", "hungry", "good"]
    processor = IsolatedProcessor(SETTINGS, timeout_s=12, memory_bytes=4 << 30)
    try:
        items = list(processor([record(key) for key in keys]))
    finally:
        processor.close()
    assert errors(items) == ["ok", "crash", "ok", "timeout", "out_of_memory", "ok"]
    assert [i.uid if isinstance(i, Failure) else i.record.uid for i in items] == [
        f"trouble/{key}" for key in keys
    ]
    crash = items[1]
    assert isinstance(crash, Failure)
    assert "exit code 7" in crash.message


def test_isolated__a_child_killed_from_outside_costs_nothing(processor: IsolatedProcessor) -> None:
    assert errors(list(processor([record("good")]))) == ["ok"]
    child(processor).kill()  # between two objects
    assert errors(list(processor([record("good")]))) == ["ok"]
    items = processor([record(key) for key in ("good", "plain", "good")])
    first = next(items)
    child(processor).kill()  # with the second one under way, or done and handed in
    assert errors([first, *items]) == ["ok", "ok", "ok"]


def test_isolated__what_was_left_before_its_end_is_not_taken_for_what_comes_next(
    processor: IsolatedProcessor,
) -> None:
    items = processor([record(key) for key in ("good", "plain", "good")])
    next(items)
    items.close()  # type: ignore[attr-defined]  # with the second one under way
    (item,) = processor([record("good")])
    assert isinstance(item, Processed)
    assert item.record.uid == "trouble/good"


def test_child__that_dies_in_the_middle_of_an_answer_is_dead_not_an_error() -> None:
    """The kernel, short of memory, kills it just when its pictures are on their way."""
    ours, theirs = multiprocessing.Pipe()
    child = object.__new__(_Child)
    child._connection, child._sent = ours, time.monotonic()
    with pytest.raises(TimeoutError):
        child.answer(0.01)
    os.write(theirs.fileno(), struct.pack("!i", 1000) + b"the first bytes")
    theirs.close()
    with pytest.raises(EOFError):
        child.answer(60)
    ours.close()


def test_isolated__nothing_to_do_is_nothing(processor: IsolatedProcessor) -> None:
    assert list(processor([])) == []


def test_isolated__closed_it_leaves_no_process() -> None:
    processor = IsolatedProcessor(SETTINGS, timeout_s=60)
    list(processor([record("good")]))
    one = child(processor)
    processor.close()
    assert not one.is_running()


def test_isolated__a_child_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    resource_tracker.ensure_running()  # which is not what is to fail
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: b"/bin/false")
    processor = IsolatedProcessor(SETTINGS, timeout_s=60)
    try:
        with pytest.raises(RuntimeError, match=r"cannot be started \(exit code 1\)"):
            list(processor([record("good")]))
    finally:
        processor.close()


_PARENT = """
import sys, threading, time
from tests.pipeline.test_isolated import SETTINGS, record
from pipeline.isolated import IsolatedProcessor
processor = IsolatedProcessor(SETTINGS, timeout_s=600)
def first():
    list(processor([record("good")]))
thread = threading.Thread(target=first)
thread.start()
thread.join()  # the thread that first used it is gone, and the child is still there
time.sleep(1)
list(processor([record("good")]))
print("ready", flush=True)
list(processor([record("hang")]))
"""


def test_isolated__the_child_dies_with_its_parent_and_with_nothing_less() -> None:
    root = Path(__file__).parents[2]
    parent: Any = subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True, cwd=root
    )
    try:
        assert parent.stdout.readline() == "ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        busy = [p for p in children if "spawn_main" in " ".join(p.cmdline())]
        assert len(busy) == 1
        time.sleep(0.5)  # at the object that hangs
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while busy[0].is_running() and busy[0].status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_isolated__compiling_is_not_within_an_objects_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has not compiled the renderer yet, which takes longer than this."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    processor = IsolatedProcessor(SETTINGS, timeout_s=10)
    try:
        assert errors(list(processor([record("good")]))) == ["ok"]
    finally:
        processor.close()
    assert list(tmp_path.rglob("*.nbc"))
