from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.common import InputError, write_json
from tests.pipeline.test_cluster import MISMATCH
from tests.trainer.conftest import SMALL, MakeShards, small_recipe
from tests.trainer.test_resume import assert_same_state
from trainer.checkpoint import checkpoints, load_model
from trainer.jobs import OF_OUR_OWN, RayTasks
from trainer.launch import FOLDER, OUTCOME, _raise_outcome, _ray, _Tail
from trainer.loop import Interrupted
from trainer.recorder import METRICS, read_metrics
from trainer.run import Workers, choose_device, train

slow = pytest.mark.slow
# Ray Train sets options of Ray Data that Ray has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.timeout(1200),  # Ray starts ten processes, each of which imports torch
]
TWO = Workers(2)


@pytest.mark.parametrize(
    ("device", "gpus", "chosen"),
    [("auto", 4, "cuda"), ("auto", 0, "cpu"), ("cpu", 4, "cpu"), ("cuda", 2, "cuda")],
)
def test_device__of_a_cluster_is_not_up_to_the_machine_that_drives_it(
    device: str, gpus: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    assert choose_device("cuda", "head:6379").type == "cuda"
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(gpus)})
    with _ray(Workers(2, "head:6379"), device) as found:
        assert found == chosen


def test_ray__a_cluster_with_another_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError(MISMATCH)

    monkeypatch.setattr("ray.init", refuse)
    told = r"^--address head:6379: .*Ray: 2\.60\.0 "
    with pytest.raises(InputError, match=told), _ray(Workers(2, "head:6379"), "auto"):
        pass
    with pytest.raises(InputError, match=told):
        RayTasks("head:6379", 1, 0)([], lambda *_: None)


def test_device__too_few_gpus_of_a_cluster_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    with (
        pytest.raises(InputError, match="--workers 2: 1 GPUs are available"),
        _ray(Workers(2, "head:6379"), "auto"),
    ):
        pass


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for all runs of this file: each then starts its workers only."""
    import ray

    os.environ.update({"RAY_TRAIN_V2_ENABLED": "1", **OF_OUR_OWN})
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Training workers of a Ray that ``process`` has started."""
    return [
        child
        for child in process.children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 1000
    while time.monotonic() < deadline:
        if (run / METRICS).exists() and any(m["step"] >= step for m in read_metrics(run)):
            return
        time.sleep(0.02)
    raise TimeoutError(f"{run} has not reached step {step}")


@slow
@pytest.mark.usefixtures("ray_here")
def test_launch__lost_worker_restarts_all_from_the_newest_checkpoint(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_shards(textless=3)
    recipe = small_recipe(
        "train.steps=300", "train.checkpoint_every=40", "train.val_every=100", "train.keep=20"
    )
    straight = train([root], recipe, tmp_path / "straight", device="cpu", workers=TWO)
    assert "in 2 processes (ddp)" in capsys.readouterr().err
    killed: list[int] = []

    def kill_one() -> None:
        wait_for_step(tmp_path / "killed", 100)
        victim = workers_of(psutil.Process())[-1]
        victim.send_signal(signal.SIGKILL)
        killed.append(victim.pid)

    thread = threading.Thread(target=kill_one)
    thread.start()
    again = train([root], recipe, tmp_path / "killed", device="cpu", workers=TWO)
    thread.join()
    assert len(killed) == 1
    assert "resuming from step-" in capsys.readouterr().err
    assert again.step == straight.step == 300
    assert_same_state(straight.checkpoint, again.checkpoint)
    assert not (tmp_path / "killed" / FOLDER).exists()
    losses = [
        [(m["step"], m["loss"]) for m in read_metrics(run) if m["kind"] == "train"]
        for run in (straight.run, again.run)
    ]
    assert losses[0] == losses[1]


@slow
@pytest.mark.usefixtures("ray_here")
def test_launch__follows_the_curve_of_one_process(make_shards: MakeShards, tmp_path: Path) -> None:
    root, recipe = make_shards(textless=3), small_recipe("train.steps=10")
    runs = [
        train([root], recipe, tmp_path / str(count), device="cpu", workers=Workers(count))
        for count in (1, 2)
    ]
    one, two = ([m["loss"] for m in read_metrics(run.run) if m["kind"] == "train"] for run in runs)
    assert two == pytest.approx(one, rel=1e-4)
    assert runs[0].step == runs[1].step
    assert runs[0].best_step == runs[1].best_step


@slow
@pytest.mark.usefixtures("ray_here")
def test_launch__goes_on_with_fewer_processes_where_no_more_are_to_be_had(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray has two cores here. A lost machine looks the same when all are started again."""
    root, recipe = make_shards(textless=3), small_recipe("train.steps=10")
    few = Workers(3, least=1)
    less = train([root], recipe, tmp_path / "less", device="cpu", workers=few)
    err = capsys.readouterr().err
    assert "starting 1 to 3 processes with Ray Train" in err
    assert "in 2 processes (ddp)" in err
    one = train([root], recipe, tmp_path / "one", device="cpu")
    ours, theirs = (
        [m["loss"] for m in read_metrics(result.run) if m["kind"] == "train"]
        for result in (less, one)
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


@slow
@pytest.mark.usefixtures("ray_here")
def test_launch__error_of_the_input_is_not_tried_again(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    """One that all processes meet together, and one that a single process meets."""
    wrong = small_recipe("train.steps=30", "optim.lr=1e30", "optim.clip=0", "optim.warmup=0")
    with pytest.raises(InputError, match=r"lower --set optim\.lr"):
        train([make_shards()], wrong, tmp_path / "diverges", device="cpu", workers=TWO)
    assert checkpoints(tmp_path / "diverges") == []

    root = make_shards("damaged", count=400)
    recipe = small_recipe("data.cache_mib=0", "data.shuffle_groups=1", "train.epochs=2")
    part = max(root.glob("part-*.parquet"), key=lambda path: path.stat().st_size)
    data = bytearray(part.read_bytes())
    # The pages of the points: the checks at the start read uids only.
    middle = len(data) // 3
    data[middle : middle + 4000] = bytes(4000)
    part.write_bytes(bytes(data))
    with pytest.raises(InputError, match=part.name):
        train([root], recipe, tmp_path / "damaged-run", device="cpu", workers=TWO)


@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_cli__signal_saves_and_exits_with_130(
    make_shards: MakeShards, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    settings = [word for option in [*SMALL, "train.steps=100000"] for word in ("--set", option)]
    command = [sys.executable, "-m", "trainer.cli", "run", "--shards", str(make_shards())]
    command += ["--out", str(out), "--device", "cpu", "--workers", "2", *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_step(out, 20)
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    step = load_model(out).step
    assert step >= 20
    assert f"saved at step {step}; `trainer resume {out}` continues from there" in err
    assert "Traceback" not in err
    assert not (out / FOLDER).exists()


def test_launch__impossible_numbers_are_refused_before_anything_starts(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    root = make_shards()
    for count, message in ((0, "give at least 1"), (15, "more than the 14 rows of a batch")):
        with pytest.raises(InputError, match=message):
            train([root], small_recipe(), tmp_path / "run", workers=Workers(count), device="cpu")
    assert not (tmp_path / "run").exists()


def test_launch__impossible_least_numbers_are_refused(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    root, recipe, out = make_shards(), small_recipe(), tmp_path / "run"
    for workers in (Workers(2, least=0), Workers(2, least=3)):
        with pytest.raises(InputError, match=rf"--min-workers {workers.least}: give from 1 to 2"):
            train([root], recipe, out, workers=workers, device="cpu")


def test_tail__gives_whole_lines_of_a_file_that_grows_or_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    tail = _Tail(file)
    assert list(tail.lines()) == []
    file.write_text("a\nb\nhal")
    assert list(tail.lines()) == ["a", "b"]
    with file.open("a") as stream:
        stream.write("f\n")
    assert list(tail.lines()) == ["half"]
    file.write_text("a\n")  # a restarted run cuts its records off
    assert list(tail.lines()) == []
    with file.open("a") as stream:
        stream.write("c\n")
    assert list(tail.lines()) == ["c"]
    # Cut by replacing it, and longer than before when it is looked at again.
    (tmp_path / "new").write_text("a\nlonger\nd\n")
    (tmp_path / "new").replace(file)
    assert list(tail.lines()) == ["a", "longer", "d"]
    assert list(tail.lines()) == []


def test_outcome__is_raised_as_one_process_would(tmp_path: Path) -> None:
    lost = RuntimeError("worker 1\n  died\n")
    with pytest.raises(InputError, match=r"lost for good \(died\); `trainer resume run`"):
        _raise_outcome(tmp_path, Path("run"), lost)
    write_json(tmp_path / OUTCOME, {"error": "no text"})
    with pytest.raises(InputError, match="no text"):
        _raise_outcome(tmp_path, Path("run"), lost)
    write_json(tmp_path / OUTCOME, {"interrupted": "saved at step 3"})
    with pytest.raises(Interrupted, match="saved at step 3"):
        _raise_outcome(tmp_path, Path("run"), None)
    write_json(tmp_path / OUTCOME, {"done": True})
    _raise_outcome(tmp_path, Path("run"), lost)
