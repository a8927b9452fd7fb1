"""A run in several processes, on one machine or many, by Ray Train.

Ray starts the processes, joins them (NCCL on GPUs, gloo on CPUs) and starts all of them again from
the newest checkpoint when one is lost. All machines must see the run folder and the shards under
the same paths.

The processes tell what goes on through the run folder: the first one writes the records as in any
run, and ``.launch/`` holds what is for the command that started them:

    notes         lines for the user
    stop          made by the command on Ctrl-C: stop after the step under way, with a checkpoint
    outcome.json  how it ended; workers that are started again after that end at once
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from pipeline.common import InputError, cores, not_joined, quiet_stderr, write_json
from pipeline.console import ProgressBar, note
from trainer import distributed, parallel
from trainer.config import Recipe
from trainer.jobs import OF_OUR_OWN
from trainer.loop import Interrupted
from trainer.recorder import METRICS

if TYPE_CHECKING:
    from trainer.run import Workers

FOLDER = ".launch"
NOTES, STOP, OUTCOME = "notes", "stop", "outcome.json"
POLL_S = 0.3
GROW_S = 600.0  # how often --min-workers looks for room for more: growing costs a restart

# Paths stay as they are.
_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    **OF_OUR_OWN,
}
# How long workers wait for room. With --min-workers it is tried with fewer then: just after a loss
# Ray may not know yet that the machine is gone.
WAIT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
WAIT_S, WAIT_ELASTIC_S = "600", "60"


def launch(
    out: Path,
    recipe: Recipe,
    shards: Sequence[str],
    workers: Workers,
    device: str,
    n_samples: int,
) -> None:
    """Train the run folder ``out``, from its newest checkpoint on, in several processes.

    ``device`` is ``cpu``, ``cuda``, or ``auto``: GPUs where the cluster has any; ``n_samples`` what
    the whole run sees. Raises ``InputError`` and ``Interrupted`` as ``trainer.run.fit`` does in one
    process, and ``InputError`` when workers were lost more often than ``workers.restarts``.
    """
    out = out.absolute()
    folder = out / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = {
        "out": str(out),
        "recipe": recipe.model_dump(mode="json"),
        "shards": list(shards),
    }
    note(f"starting {_number(workers)} processes with Ray Train")
    try:
        with _environment(workers), _ray(workers, device) as device:
            failure = _run(config, folder, workers, device, n_samples)
        _raise_outcome(folder, out, failure)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(
    config: dict[str, Any], folder: Path, workers: Workers, device: str, n_samples: int
) -> BaseException | None:
    """Start the processes and follow them; what Ray Train raised, if anything."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = device == "cuda"
    least = workers.least or workers.count
    elastic: dict[str, Any] = {"num_workers": workers.count}
    if least < workers.count:
        elastic = {
            "num_workers": (least, workers.count),
            "elastic_resize_monitor_interval_s": GROW_S,
        }
    try:
        scaling = ScalingConfig(
            **elastic,
            use_gpu=gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if gpu else {"CPU": 1},
        )
    except (TypeError, ValueError) as error:
        raise InputError(
            "--min-workers: not in this Ray version; upgrade Ray, or leave it out"
        ) from error
    trainer = TorchTrainer(
        work,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=scaling,
        run_config=RunConfig(
            name="train",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=workers.restarts),
        ),
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    # In a thread: Ray would else take Ctrl-C for itself and end the workers unsaved.
    thread = threading.Thread(target=fit, name="trainer-launch", daemon=True)
    metrics = folder.parent / METRICS
    records = _Tail(metrics, metrics.stat().st_size if metrics.exists() else 0)
    notes = _Tail(folder / NOTES)
    begun = _samples(config["out"])
    with (
        _stopping(folder / STOP),
        ProgressBar("train", max(0, n_samples - begun), "samples") as bar,
    ):
        thread.start()
        alive, reached = True, begun
        while alive:
            thread.join(POLL_S)
            alive = thread.is_alive()
            for line in notes.lines():
                note(line)
            for line in records.lines():
                try:
                    record = json.loads(line)
                except ValueError:  # cut off by a full disk or a kill
                    continue
                if record["kind"] == "train":
                    status = f"loss {record['loss']:.3f}, data wait {record['data_wait']:.1%}"
                    # After a restart some steps are done once more.
                    bar.advance(max(0, record["samples"] - reached), status)
                    reached = max(reached, record["samples"])
    return failures[0] if failures else None


def work(config: dict[str, Any]) -> None:
    """What each process does."""
    import ray.train.torch

    from pipeline.heap import keep_freed
    from trainer.distributed import rank
    from trainer.recipe import parse_recipe
    from trainer.run import fit

    out = Path(config["out"])
    folder = out / FOLDER
    if (folder / OUTCOME).exists():
        return
    distributed.forget_group()
    keep_freed()
    torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)

    def say(line: str) -> None:
        if rank() == 0:
            with (folder / NOTES).open("a") as stream:
                stream.write(f"{line}\n")

    outcome: dict[str, Any] = {"done": True}
    try:
        fit(
            config["shards"],
            parse_recipe(config["recipe"], "recipe"),
            out,
            resume=True,
            device=device,
            say=say,
            asked_to_stop=(folder / STOP).exists,
        )
    except Interrupted as error:
        outcome = {"interrupted": str(error)}
    except InputError as error:
        outcome = {"error": str(error)}
        if not isinstance(error, parallel.AgreedError):
            write_json(folder / OUTCOME, outcome)
            raise  # the others wait for this process: Ray ends them
    if rank() == 0:
        write_json(folder / OUTCOME, outcome)


def _raise_outcome(folder: Path, out: Path, failure: BaseException | None) -> None:
    """Raise what the workers ended with."""
    outcome: dict[str, Any] = {}
    if (folder / OUTCOME).exists():
        outcome = json.loads((folder / OUTCOME).read_text())
    if "error" in outcome:
        raise InputError(outcome["error"])
    if "interrupted" in outcome:
        raise Interrupted(outcome["interrupted"])
    if "done" not in outcome:
        raise InputError(
            f"workers were lost for good ({_reason(failure)}); `trainer resume {out}` continues "
            "from the newest checkpoint"
        ) from failure


def _reason(failure: BaseException | None) -> str:
    """One line about what Ray Train raised: the error of a worker where there is one."""
    of_workers = getattr(failure, "worker_failures", None)
    if of_workers:
        failure = next(iter(of_workers.values()))
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return lines[-1] if lines else type(failure).__name__


def _samples(out: str) -> int:
    """Samples that the newest checkpoint of a run has seen."""
    from trainer.checkpoint import newest, read_config

    path, _ = newest(Path(out))
    return int(read_config(path)["samples_seen"]) if path else 0


def _number(workers: Workers) -> str:
    least = workers.least or workers.count
    return str(workers.count) if least == workers.count else f"{least} to {workers.count}"


class _Tail:
    """Lines that are added to a file which may be cut, put in the place of, or not there yet.

    A file that takes the place of another is read from its beginning.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path, self._at = path, start
        self._file = path.stat().st_ino if path.exists() else None

    def lines(self) -> Iterator[str]:
        """Whole lines since the last call."""
        try:
            with self.path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if self._file not in (None, status.st_ino):
                    self._at = 0
                self._file = status.st_ino
                self._at = min(self._at, status.st_size)
                stream.seek(self._at)
                data = stream.read()
        except FileNotFoundError:
            return
        end = data.rfind(b"\n") + 1
        self._at += end
        yield from data[:end].decode(errors="replace").splitlines()


@contextmanager
def _stopping(file: Path) -> Iterator[None]:
    """While entered, the first SIGINT or SIGTERM makes ``file``; a second one interrupts."""
    old: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)
        old.clear()

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        file.touch()
        note("stopping after the current step")
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


@contextmanager
def _environment(workers: Workers) -> Iterator[None]:
    """What Ray reads, as far as the user has not set it."""
    wait = WAIT_ELASTIC_S if (workers.least or workers.count) < workers.count else WAIT_S
    added = {k: v for k, v in {**_ENVIRONMENT, WAIT: wait}.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _ray(workers: Workers, device: str) -> Iterator[str]:
    """Join the cluster, or start Ray here and stop it afterwards; one that runs is used.

    Yields ``cpu`` or ``cuda``.

    Raises ``InputError`` when no cluster answers, or it is too small.
    """
    try:
        import ray
        import ray.train
    except ImportError as error:
        raise InputError("--workers: needs Ray Train; pip install 'ray[train]'") from error

    for name in ("ray", "ray.train", "ray.util"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    begun = not ray.is_initialized()
    if begun:
        local: dict[str, Any] = {
            "num_cpus": max(workers.count, cores()),
            "include_dashboard": False,
        }
        try:
            with quiet_stderr():
                ray.init(
                    address=workers.address or "local",  # not whatever else runs on this machine
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    **({} if workers.address else local),
                )
        except (ConnectionError, RuntimeError) as error:
            told = not_joined(workers.address, error)
            if told is None:
                raise
            raise told from error
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        least = workers.least or workers.count
        if device == "auto":
            device = "cuda" if resources.get("GPU", 0) > 0 else "cpu"
        for kind in ("CPU", *(["GPU"] if device == "cuda" else [])):
            if resources.get(kind, 0) < least:
                option = "--workers" if least == workers.count else "--min-workers"
                raise InputError(
                    f"{option} {least}: {resources.get(kind, 0):.0f} {kind}s are available; "
                    "give fewer, or --address of a larger cluster"
                )
        yield device
    finally:
        if begun:
            ray.shutdown()
