"""Runs of a study, one after another, in processes of this machine, or as tasks of Ray.

A job is a folder that says all about itself, so that any process that sees the folder can do it,
and a job that was interrupted goes on where it stood:

    job.json      the resolved recipe, the shards, what to measure on
    run/          the run folder of the training (``trainer.run``)
    heldout.json  figures of the finished student on held-out rows; its presence ends the job
    log.txt       what the process said; of jobs that ran in one of their own

``python -m trainer.jobs FOLDER`` does one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.common import InputError, cores, not_joined, quiet_stderr, terminable, write_json
from pipeline.console import EXIT_INTERRUPTED, fail, note

if TYPE_CHECKING:
    from trainer.config import Recipe

JOB, RUN_FOLDER, RESULT, LOG = "job.json", "run", "heldout.json", "log.txt"
POLL_S = 0.2
STOP_S = 120.0  # for a run that was asked to stop to save its checkpoint

# What a Ray that is started here is told: nothing of ours is reported anywhere, and a run in a task
# or a worker gets as much of a machine in use by others as one in a process (Ray's niceness is 15).
OF_OUR_OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}

Done = Callable[[Path, str | None], None]  # a folder, and why its job failed


@dataclass(frozen=True)
class Job:
    """What ``job.json`` holds."""

    recipe: dict[str, Any]  # resolved
    shards: list[str]
    eval_shards: list[str]
    split: str
    or_all: bool  # measure on all rows of sets without that split
    device: str
    workers: int = 1  # processes of the training, by Ray Train where there are several
    address: str | None = None  # of the Ray cluster for these

    def write(self, folder: Path) -> None:
        """Make the folder of the job; what is in it stays."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JOB, asdict(self))


def perform(folder: Path) -> None:
    """Train, or go on training, and measure. Raises as ``trainer.run.train`` does."""
    from trainer.checkpoint import load_model
    from trainer.heldout import HeldOut
    from trainer.recipe import parse_recipe
    from trainer.recorder import read_metrics
    from trainer.run import Workers, choose_device, train
    from trainer.run_folder import RUN
    from trainer.student import as_student

    job = Job(**json.loads((folder / JOB).read_text()))
    recipe = parse_recipe(job.recipe, str(folder / JOB))
    run = folder / RUN_FOLDER
    resume = (run / RUN).is_file()
    if run.exists() and not resume:
        shutil.rmtree(run)  # killed before it had written anything
    if resume:
        recipe = _with_weights_found(run, recipe, job.shards)
    (folder / RESULT).unlink(missing_ok=True)
    workers = Workers(job.workers, job.address)
    train(job.shards, recipe, run, resume=resume, device=job.device, workers=workers)
    loaded = load_model(run)
    # The machine that drives a cluster need not have the GPU that was trained on.
    device = "auto" if job.device == "cuda" and job.address else job.device
    student = as_student(loaded, choose_device(device))
    rows = HeldOut.open(job.eval_shards, job.split, or_all=job.or_all)
    figures = rows.measure(student.encode_stored, student.n_points)
    write_json(
        folder / RESULT,
        {
            "rows": rows.identity(),
            **asdict(figures),
            "checkpoint": loaded.hash,
            "step": loaded.step,
            "samples": int(loaded.config["samples_seen"]),
            "seconds": training_seconds(read_metrics(run)),
            "parameters": int(loaded.config["n_parameters"]),
        },
    )


def _with_weights_found(run: Path, recipe: Recipe, shards: Sequence[str]) -> Recipe:
    """The recipe of a run that goes on, with its initial weights where the run has them.

    They decide a run by their content (``trainer.ablate.run_key``), so they may have moved. A run
    without a whole checkpoint begins anew with those of ``recipe``, and is told so.
    """
    from trainer.checkpoint import newest
    from trainer.lock import exclusive
    from trainer.run_folder import read_run, write_run

    known = read_run(run)[0].model
    if (known.init, known.trunk) == (recipe.model.init, recipe.model.trunk):
        return recipe
    with exclusive(run):
        if newest(run)[0] is None:
            write_run(run, recipe, shards)
            return recipe
    changes = {"init": known.init, "trunk": known.trunk}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def training_seconds(records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of the steps of a run by its own records, interruptions left out."""
    seconds, before = 0.0, 0
    for record in records:
        if record["kind"] == "train":
            seconds += (record["samples"] - before) / record["samples_per_s"]
            before = record["samples"]
    return seconds


class Executor(Protocol):
    """Does jobs. ``KeyboardInterrupt`` while it does leaves them all stopped and saved."""

    def __call__(self, folders: Sequence[Path], done: Done) -> None:
        """Do all jobs and tell ``done`` of each as it ends."""


class Here:
    """One after another in this process."""

    def __call__(self, folders: Sequence[Path], done: Done) -> None:
        """See ``Executor``."""
        for folder in folders:
            try:
                perform(folder)
            except InputError as error:
                done(folder, str(error))
            else:
                done(folder, None)


class Processes:
    """Several at a time, each in a process of its own with its share of the cores."""

    def __init__(self, count: int, gpus: Sequence[str] = ()) -> None:
        """``gpus`` are shared out among those that run at a time; without any all see all."""
        if count < 1:
            raise InputError(f"--jobs {count}: give at least 1")
        self.count, self.gpus = count, tuple(gpus)

    def __call__(self, folders: Sequence[Path], done: Done) -> None:
        """See ``Executor``."""
        waiting, running = list(folders), dict[Path, tuple[subprocess.Popen[bytes], str | None]]()
        threads = max(1, cores() // self.count)
        gpus = self.gpus or (None,)
        free = [gpus[place % len(gpus)] for place in range(self.count)]
        try:
            with terminable():
                while waiting or running:
                    while waiting and free:
                        folder, gpu = waiting.pop(0), free.pop(0)
                        running[folder] = start(folder, threads, gpu), gpu
                    time.sleep(POLL_S)
                    for folder, (process, gpu) in list(running.items()):
                        if process.poll() is not None:
                            del running[folder]
                            free.append(gpu)
                            done(folder, failure(folder, process.returncode))
        finally:
            stop([process for process, _ in running.values()])


class RayTasks:
    """As tasks of a Ray cluster whose machines all see the folders and the shards.

    Each takes ``cpus`` cores, and a GPU where ``gpus`` is 1.
    """

    def __init__(self, address: str | None, cpus: int, gpus: int | None) -> None:
        """Without an address Ray is started on this machine, and stopped afterwards.

        ``gpus`` None: 1 where the cluster has any.
        """
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def __call__(self, folders: Sequence[Path], done: Done) -> None:
        """See ``Executor``."""
        for name, value in OF_OUR_OWN.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise InputError("--ray: needs Ray; pip install ray") from error
        begun = not ray.is_initialized()
        options: dict[str, Any] = {} if self.address else {"include_dashboard": False}
        if begun:
            try:
                with quiet_stderr():
                    ray.init(
                        address=self.address or "local",  # else Ray joins whatever runs here
                        log_to_driver=False,
                        logging_level=logging.CRITICAL,
                        **options,
                    )
            except (ConnectionError, RuntimeError) as error:
                told = not_joined(self.address, error)
                if told is None:
                    raise
                raise told from error
        try:
            resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
            gpus = int(resources.get("GPU", 0) > 0) if self.gpus is None else self.gpus
            self._check(resources, gpus)
            self._run(ray, folders, done, gpus)
        finally:
            if begun:
                ray.shutdown()

    def _check(self, resources: dict[str, float], gpus: int) -> None:
        """Raise ``InputError`` when no run would ever begin."""
        for kind, wanted in (("CPU", self.cpus), ("GPU", gpus)):
            if resources.get(kind, 0) < wanted:
                raise InputError(
                    f"--ray: a run takes {wanted} {kind}, the cluster has "
                    f"{resources.get(kind, 0):.0f}; lower --cpus, or give another --address"
                )

    def _run(self, ray: Any, folders: Sequence[Path], done: Done, gpus: int) -> None:
        remote = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_retries=0)(_in_task)
        of = {remote.remote(str(folder.absolute()), self.cpus): folder for folder in folders}
        try:
            with terminable():
                while of:
                    ready, _ = ray.wait(list(of), num_returns=1)
                    for reference in ready:
                        folder = of.pop(reference)
                        try:
                            code = int(ray.get(reference))
                        except ray.exceptions.RayError as error:
                            done(folder, str(error).strip().splitlines()[-1])
                            continue
                        done(folder, failure(folder, code))
        except KeyboardInterrupt:
            for reference in of:
                ray.cancel(reference)
            ray.wait(list(of), num_returns=len(of), timeout=STOP_S)
            raise


def _in_task(folder: str, threads: int) -> int:
    process = start(Path(folder), threads)
    try:
        return process.wait()
    finally:  # the task was cancelled
        stop([process])


def start(folder: Path, threads: int, gpu: str | None = None) -> subprocess.Popen[bytes]:
    """A process that does a job and writes what it says into the job's log.

    ``gpu``: the only one that it sees.

    In a session of its own: Ctrl-C is for the one who started it, who then asks it to stop.
    """
    package = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": path}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "trainer.jobs", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return named[:count] if any(named) else [str(number) for number in range(count)]


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to save and end, and kill those that do not in time."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def failure(folder: Path, code: int) -> str | None:
    """Why a job that ended with an exit code failed, in a line; None if it did not."""
    if code == 0:
        return None
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; out of memory? see {folder / LOG}"
    lines = [line.strip() for line in (folder / LOG).read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), f"exit code {code}")
    return last.removeprefix("error: ")


def main() -> None:
    """Do the job of the folder that is named on the command line."""
    from pipeline.heap import keep_freed
    from trainer.loop import Interrupted

    keep_freed()
    try:
        perform(Path(sys.argv[1]))
    except InputError as error:
        fail(str(error))
    except Interrupted as error:
        note(f"interrupted: {error}")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
