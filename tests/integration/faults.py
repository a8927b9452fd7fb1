"""A job with trouble in its source, for the tests of what a job survives; and its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.cameras import ring
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.job import EmbedOptions, embed
from pipeline.objects import ObjectSettings
from pipeline.renderers.base import RenderConfig

SEED = 3
FREE = 20  # more than the first part, fewer than any job here has


@dataclass(frozen=True)
class Slow:
    """Procedural objects of which some wait and some are poison.

    All but the first ``FREE`` wait until the file ``gate`` is there: however slow the machine is,
    a test finds the job at work. The poisoned ones kill the process that renders (``child``) or
    the Ray worker above it (``worker``). What the others turn into is what the plain source gives.
    """

    count_: int
    gate: str | None = None
    poison: tuple[tuple[int, str], ...] = ()  # (number of the object, what it does)

    @property
    def _plain(self) -> ProceduralDataset:
        return ProceduralDataset(count=self.count_, seed=SEED)

    @property
    def name(self) -> str:
        return self._plain.name

    @property
    def options(self) -> dict[str, Any]:
        return self._plain.options

    def records(self) -> Iterator[Record]:
        return self._plain.records()

    def count(self) -> int | None:
        return self.count_

    def load(self, record: Record) -> Asset:
        number = [r.uid for r in self.records()].index(record.uid)
        while self.gate and number >= FREE and not Path(self.gate).exists():
            time.sleep(0.05)
        match dict(self.poison).get(number):
            case "child":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "worker":
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)
        return self._plain.load(record)


def main() -> None:
    """Run the job that the JSON on the command line says; its summary goes to stdout."""
    options = json.loads(sys.argv[1])
    source = Slow(
        options.pop("count"),
        options.pop("gate", None),
        tuple((number, what) for number, what in options.pop("poison", ())),
    )
    objects = ObjectSettings(source, ring(2), RenderConfig(image_size=48), n_points=512, n_fps=512)
    teachers = (options.pop("teacher"),)
    # An object at the gate must not run into its time limit.
    defaults = {"device": "cpu", "rows_per_part": 16, "limit": source.count_, "timeout_s": 3600}
    summary = embed(EmbedOptions(objects, teachers=teachers, **{**defaults, **options}))
    print(json.dumps(asdict(summary)))  # noqa: T201


def start(out: Path | str, teacher: str, count: int, **options: Any) -> subprocess.Popen[str]:
    """A job under way, in a process group of its own."""
    value = json.dumps({"out": str(out), "teacher": teacher, "count": count, **options})
    return subprocess.Popen(
        [sys.executable, "-c", "from tests.integration.faults import main; main()", value],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},  # a crash in a library says where
    )


def finished(job: subprocess.Popen[str], timeout_s: float = 900) -> dict[str, Any]:
    """The summary of a job that must end well."""
    try:
        stdout, stderr = job.communicate(timeout=timeout_s)  # of a machine with other work too
    finally:
        kill(job)
    assert job.returncode == 0, stderr[-20000:]
    value: dict[str, Any] = json.loads(stdout.strip().splitlines()[-1])
    return value


def kill(job: subprocess.Popen[str]) -> None:
    """End a job that may still run, and the Ray that it started."""
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    for stream in (job.stdout, job.stderr):
        if stream is not None:
            stream.close()


def wait_for(
    what: Callable[[], Any], job: subprocess.Popen[str] | None = None, timeout_s: float = 600
) -> Any:
    """The first true value of ``what``; fails when ``job`` ends before."""
    deadline = time.monotonic() + timeout_s
    while not (value := what()):
        assert job is None or job.poll() is None, job and job.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.05)
    return value


def render_workers(below: int) -> list[psutil.Process]:
    """The Ray workers that render, among the descendants of a process (a driver, a raylet)."""
    return [p for p in _below(below) if "ray::MapWorker" in _title(p)]


def render_child(worker: psutil.Process) -> psutil.Process | None:
    """The process in which a worker renders."""
    return next((p for p in _below(worker.pid) if "spawn_main" in _title(p)), None)


def _below(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
