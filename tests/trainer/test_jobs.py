from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from pipeline.common import InputError
from tests.trainer.conftest import MakeShards, small_recipe
from tests.trainer.test_resume import StopsAtNine
from trainer import jobs
from trainer import run as run_module
from trainer.checkpoint import load_model
from trainer.config import Recipe
from trainer.jobs import LOG, RESULT, Done, Here, Job, Processes, RayTasks, failure, perform, start
from trainer.loop import Interrupted
from trainer.recorder import read_metrics
from trainer.run import train
from trainer.run_folder import read_run


def make_job(folder: Path, root: Path, recipe: Recipe, workers: int = 1) -> Path:
    job = Job(
        recipe=recipe.model_dump(mode="json"),
        shards=[str(root)],
        eval_shards=[str(root)],
        split="test",
        or_all=False,
        device="cpu",
        workers=workers,
    )
    job.write(folder)
    return folder


@pytest.fixture
def shards(make_shards: MakeShards) -> Path:
    return make_shards(count=60, test_rows=3)


def collect(found: dict[str, str | None]) -> Done:
    def done(folder: Path, reason: str | None) -> None:
        found[folder.name] = reason

    return done


def test_perform__a_folder_killed_before_its_first_record_begins_anew(
    shards: Path, tmp_path: Path
) -> None:
    folder = make_job(tmp_path / "job", shards, small_recipe("train.steps=2"))
    (folder / "run").mkdir()
    (folder / "run" / ".tmp-rest").write_text("half")
    perform(folder)
    result = json.loads((folder / RESULT).read_text())
    assert result["step"] == 2
    assert result["checkpoint"] == load_model(folder / "run").hash
    assert result["rows"]["n_rows"] == 20


@pytest.mark.parametrize("saved", [True, False])
def test_perform__goes_on_when_the_weights_that_the_run_began_with_have_moved(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    def begun_with(folder: Path) -> Recipe:
        options = ("train.steps=12", "train.val_every=100", "data.near=2", "data.near_by=student")
        return small_recipe(*options, f"model.init={folder}")

    def hash_of(folder: Path) -> str:
        return str(json.loads((folder / RESULT).read_text())["checkpoint"])

    base, moved = tmp_path / "base", tmp_path / "moved"
    train([shards], small_recipe("train.steps=1"), base, device="cpu")
    whole = make_job(tmp_path / "whole", shards, begun_with(base))
    perform(whole)

    folder = make_job(tmp_path / "job", shards, begun_with(base))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Loop", StopsAtNine)
        with pytest.raises(Interrupted, match="saved at step 9"):
            perform(folder)
    if not saved:
        shutil.rmtree(folder / "run" / "checkpoints")
    base.rename(moved)
    perform(make_job(folder, shards, begun_with(moved)))
    assert hash_of(folder) == hash_of(whole)
    assert read_run(folder / "run")[0].model.init == str(base if saved else moved)


def test_here__a_bad_job_does_not_stop_the_others(shards: Path, tmp_path: Path) -> None:
    bad = make_job(tmp_path / "bad", tmp_path / "nowhere", small_recipe("train.steps=1"))
    good = make_job(tmp_path / "good", shards, small_recipe("train.steps=1"))
    found: dict[str, str | None] = {}
    Here()([bad, good], collect(found))
    assert found["good"] is None
    assert "nowhere" in str(found["bad"])


def test_failure__is_the_last_line_of_the_log(tmp_path: Path) -> None:
    assert failure(tmp_path, 0) is None
    (tmp_path / LOG).write_text("train: 3/9\nerror: step 3: loss nan; lower it\n\n")
    assert failure(tmp_path, 2) == "step 3: loss nan; lower it"
    assert "killed by SIGKILL" in str(failure(tmp_path, -9))
    (tmp_path / LOG).write_text("")
    assert failure(tmp_path, 7) == "exit code 7"


@pytest.mark.parametrize(
    ("gpus", "expected"), [((), [None] * 5), (("2", "0"), ["2", "0", "0", "0", "2"])]
)
def test_processes__share_the_gpus_out_among_those_that_run(
    gpus: tuple[str, ...], expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finished:
        """A process that is done when it has been looked at so often."""

        returncode = 0

        def __init__(self, looks: int) -> None:
            self.looks = looks

        def poll(self) -> int | None:
            self.looks -= 1
            return None if self.looks > 0 else 0

    told: list[str | None] = []
    looks = iter((7, 1, 3, 9, 9))

    def start(folder: Path, threads: int, gpu: str | None = None) -> Finished:
        del folder, threads
        told.append(gpu)
        return Finished(next(looks))

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs, "POLL_S", 0)
    found: dict[str, str | None] = {}
    Processes(2, gpus)([Path(str(number)) for number in range(5)], collect(found))
    assert told == expected
    assert len(found) == 5


@pytest.mark.parametrize(
    ("named", "count", "expected"),
    [("", 2, ["0", "1"]), ("3, 5", 2, ["3", "5"]), ("GPU-8f2e,1", 1, ["GPU-8f2e"]), ("", 0, [])],
)
def test_visible_gpus__are_named_as_the_environment_does(
    named: str, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert jobs.visible_gpus() == expected


@pytest.mark.parametrize(
    ("asked", "there", "expected"), [(None, 2.0, 1), (None, 0.0, 0), (0, 2.0, 0), (1, 2.0, 1)]
)
def test_ray__takes_gpus_where_the_cluster_has_any(
    asked: int | None, there: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    told: list[int] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": there})
    monkeypatch.setattr(RayTasks, "_run", lambda *args: told.append(args[-1]))
    RayTasks("head:6379", 1, asked)([], collect({}))
    assert told == [expected]


def test_processes__need_one_at_least() -> None:
    with pytest.raises(InputError, match="--jobs 0"):
        Processes(0)


@pytest.mark.slow
def test_processes__errors_and_successes_are_told_apart(shards: Path, tmp_path: Path) -> None:
    bad = make_job(tmp_path / "bad", shards, small_recipe("optim.lr=1e30", "train.steps=9"))
    good = make_job(tmp_path / "good", shards, small_recipe("train.steps=2"))
    found: dict[str, str | None] = {}
    Processes(2)([bad, good], collect(found))
    assert found["good"] is None
    assert "lower --set optim.lr" in str(found["bad"])
    assert (good / RESULT).is_file()
    assert "samples" in (good / LOG).read_text()


@pytest.mark.slow
def test_perform__killed_and_started_again_ends_as_if_it_had_not_been(
    shards: Path, tmp_path: Path
) -> None:
    recipe = small_recipe("train.steps=60", "train.checkpoint_every=5", "train.val_every=1000")
    whole = make_job(tmp_path / "whole", shards, recipe)
    perform(whole)

    killed = make_job(tmp_path / "killed", shards, recipe)
    process = start(killed, 1)
    checkpoints = killed / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while len(list(checkpoints.glob("step-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (killed / RESULT).exists()
    perform(killed)

    ours, theirs = (json.loads((f / RESULT).read_text()) for f in (killed, whole))
    assert ours["checkpoint"] == theirs["checkpoint"]
    assert ours["metrics"] == theirs["metrics"]


@pytest.mark.slow
def test_processes__asked_to_stop_save_and_go_on(shards: Path, tmp_path: Path) -> None:
    recipe = small_recipe("train.steps=100000", "train.val_every=100000")
    folder = make_job(tmp_path / "long", shards, recipe)

    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            log = folder / "run" / "metrics.jsonl"
            if log.exists() and log.read_text().count("\n") > 3:
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        Processes(1)([folder], collect({}))
    thread.join()
    step = load_model(folder / "run").step
    assert step > 3
    assert not (folder / RESULT).exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_processes__a_job_of_several_workers_is_that_of_one(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    recipe = small_recipe("train.steps=4")
    folders = [make_job(tmp_path / str(n), shards, recipe, workers=n) for n in (1, 2)]
    found: dict[str, str | None] = {}
    Processes(1)(folders, collect(found))
    assert found == {"1": None, "2": None}
    one, two = (
        [m["loss"] for m in read_metrics(f / "run") if m["kind"] == "train"] for f in folders
    )
    assert two == pytest.approx(one, rel=1e-4)
    log = (folders[1] / LOG).read_text()
    assert "starting 2 processes with Ray Train" in log
    assert "in 2 processes (ddp)" in log
    assert "logging.cc" not in log  # what Ray says of itself


@pytest.mark.slow
def test_ray__tasks_do_jobs_and_tell_failures(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    bad = make_job(tmp_path / "bad", shards, small_recipe("optim.lr=1e30", "train.steps=9"))
    good = make_job(tmp_path / "good", shards, small_recipe("train.steps=2"))
    found: dict[str, str | None] = {}
    RayTasks(None, 1, 0)([bad, good], collect(found))
    assert found["good"] is None
    assert "lower --set optim.lr" in str(found["bad"])
    assert (good / RESULT).is_file()
    with pytest.raises(InputError, match="a run takes 4096 CPU"):
        RayTasks(None, 4096, 0)([good], collect(found))
