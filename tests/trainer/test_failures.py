"""What a run does when it is killed, the disk or the memory is full, or the loss diverges."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline.common import InputError
from pipeline.shards import create_or_open, schema, write_part
from tests.trainer.conftest import (
    SMALL,
    MakeShards,
    Synth,
    make_manifest,
    make_rows,
    small_recipe,
)
from tests.trainer.test_resume import STATEFUL, assert_same_state
from trainer import checkpoint, data, run
from trainer.checkpoint import checkpoint_path, checkpoints, load_model
from trainer.loop import Loop
from trainer.recorder import METRICS, Recorder, read_metrics
from trainer.run import DIVERGED, train
from trainer.task import DistillTask


def command(out: Path, root: Path, *overrides: str) -> list[str]:
    settings = [word for option in [*SMALL, *overrides] for word in ("--set", option)]
    begin = [sys.executable, "-m", "trainer.cli", "run", "--shards", str(root), "--out", str(out)]
    return [*begin, "--device", "cpu", *settings]


def told(run: Path) -> list[dict[str, Any]]:
    """Records without those of speed."""
    drop = ("samples_per_s", "data_wait")
    return [{k: v for k, v in m.items() if k not in drop} for m in read_metrics(run)]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # twenty starts, on a machine with other work too
def test_kill__at_random_steps_gives_the_same_curve_and_weights(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    root = make_shards(textless=5)
    often = ("train.checkpoint_every=23", "train.val_every=50", "train.log_every=10")
    overrides = (*STATEFUL, "train.steps=600", *often)
    straight = train([root], small_recipe(*overrides), tmp_path / "straight", device="cpu")
    out, rng = tmp_path / "killed", np.random.default_rng(5)
    start = command(out, root, *overrides)
    for kill_at in (np.arange(20, 560, 27) + rng.integers(0, 25, size=20)).tolist():
        process = subprocess.Popen(start, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (out / METRICS).exists() and any(m["step"] >= kill_at for m in read_metrics(out)):
                break
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        start = [sys.executable, "-m", "trainer.cli", "resume", str(out), "--device", "cpu"]
    done = subprocess.run(start, check=True, capture_output=True, text=True)
    assert "resuming from step-" in done.stderr
    assert_same_state(straight.checkpoint, checkpoint_path(out, 600))
    assert load_model(straight.checkpoint).hash == load_model(out).hash
    assert told(out) == told(straight.run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal__saves_and_exits_with_130(
    make_shards: MakeShards, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out, make_shards(), "train.steps=100000", "train.val_every=100000"),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not ((out / METRICS).exists() and read_metrics(out)) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    step = load_model(out).step
    assert f"saved at step {step}; `trainer resume {out}` continues from there" in err
    assert "Traceback" not in err


def test_resume__nothing_but_damaged_checkpoints_starts_from_the_beginning(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, recipe = make_shards(), small_recipe("train.steps=4", "train.checkpoint_every=2")
    first = train([root], recipe, tmp_path / "run", device="cpu")
    whole = load_model(first.checkpoint).hash
    for path in checkpoints(first.run):
        (path / "state.pt").write_bytes(b"")
    leftover = first.run / "checkpoints" / ".tmp-0123-step-00000003"
    leftover.mkdir()
    capsys.readouterr()
    again = train([], None, first.run, resume=True, device="cpu")
    err = capsys.readouterr().err
    assert err.count("passed over a damaged checkpoint") == 2
    assert "starting from the beginning" in err
    assert load_model(again.checkpoint).hash == whole
    assert not leftover.exists()


def test_resume__other_teacher_of_the_same_rows_is_refused(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    train([make_shards()], small_recipe("train.steps=2"), tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match=r"made by another teacher .*fingerprints"):
        train([make_shards("other", teacher=1)], None, tmp_path / "run", resume=True, device="cpu")


def test_resume__may_change_what_the_machine_is_too_small_for(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    recipe = small_recipe("train.steps=2")
    train([make_shards()], recipe, tmp_path / "run", device="cpu")
    train(
        [],
        None,
        tmp_path / "run",
        resume=True,
        overrides=["train.micro_batch=4", "train.recompute=true"],
        device="cpu",
    )
    with pytest.raises(InputError, match=r"resume: optim\.lr is 1\.0, the run started with"):
        train([], None, tmp_path / "run", resume=True, overrides=["optim.lr=1.0"], device="cpu")
    with pytest.raises(InputError, match=r"did you mean optim\.lr\?"):
        train([], None, tmp_path / "run", resume=True, overrides=["optim.rl=1.0"], device="cpu")


LIMITED = """
import resource, sys
from trainer.cli import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv[0] = "trainer"
main()
"""


@pytest.mark.slow
def test_disk__full_is_one_line_and_the_run_goes_on_later(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the end of the disk; only the number differs."""
    root = make_shards()
    options = ("train.steps=40", "train.checkpoint_every=5", "train.val_every=1000")
    straight = train([root], small_recipe(*options), tmp_path / "straight", device="cpu")
    size = max(path.stat().st_size for path in straight.checkpoint.iterdir())
    for name, limit, log_every in (("records", 5000, 1), ("checkpoint", size - 1000, 1000)):
        out = tmp_path / name
        line = command(out, root, *options, f"train.log_every={log_every}")[3:]
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(limit), *line],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        error = [text for text in done.stderr.splitlines() if text.startswith("error:")]
        assert len(error) == 1
        assert "cannot be written" in error[0]
        assert "make room" in error[0]
        assert f"`trainer resume {out}`" in error[0]
        assert "Traceback" not in done.stderr
        assert list((out / "checkpoints").glob(".tmp*")) == []
        again = train([], None, out, resume=True, device="cpu")
        assert load_model(again.checkpoint).hash == load_model(straight.checkpoint).hash


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
    ids=["python", "safetensors"],
)
def test_save__without_room_leaves_the_checkpoints_before(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    recipe = small_recipe("train.steps=4", "train.checkpoint_every=2", "train.val_every=100")
    written = save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "step-00000004" in str(path):
            raise error
        written(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"step-00000004: cannot be written .*trainer resume"):
        train([make_shards()], recipe, out, device="cpu")
    assert load_model(out).step == 2
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000002"]


def test_save__a_failed_write_of_torch_is_told_as_what_it_was(tmp_path: Path) -> None:
    state = {"tensor": torch.zeros(100_000)}
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint._save_state(state, Path("/dev/full"))
    checkpoint._save_state(state, tmp_path / "state.pt")
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(found["tensor"], state["tensor"])


def test_save__a_bug_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        checkpoint.save(tmp_path / "a", {}, {"x": shared, "y": shared})


def poisoned(root: Path, **changes: Any) -> Path:
    """A set whose row 40 has an embedding that is not finite."""
    rows = make_rows(Synth())
    rows[40] = replace(rows[40], **changes)
    manifest = create_or_open(root, make_manifest(Synth()))
    for start in range(0, len(rows), 40):
        write_part(root, manifest, rows[start : start + 40])
    return root


@pytest.mark.parametrize("at_once", [True, False], ids=["cpu", "as_on_gpu"])
def test_divergence__names_the_shape_with_a_broken_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    broken = make_rows(Synth())[40].image_embeds.copy()
    broken[1, 3] = np.nan
    # Our writer refuses such a row; another one may not.
    monkeypatch.setattr(schema, "_check_row", lambda *_: None)
    root = poisoned(tmp_path / "shards", image_embeds=broken)
    if not at_once:
        begin = Loop.__init__

        def later(self: Loop, *arguments: Any, **options: Any) -> None:
            begin(self, *arguments, **options)
            self._looks_at_once = False

        monkeypatch.setattr(Loop, "__init__", later)
    recipe = small_recipe(
        "data.val_fraction=0", "data.image_sampling=mean", "train.log_every=4", "train.epochs=3"
    )
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"1 of its 16 shapes have .*synth/0040") as caught:
        train([root], recipe, out, device="cpu")
    assert "\n" not in str(caught.value)
    report = json.loads((out / DIVERGED).read_text())
    assert report["not_finite"] == [
        {"uid": "synth/0040", "shards": str(root), "not_finite": ["image"]}
    ]
    assert "synth/0040" in report["batch"]
    assert len(report["batch"]) == 16
    assert report["loss"] == "nan"
    # It is the first such step, not the one at which somebody looked.
    assert report["step"] <= 6
    assert f"step {report['step']}: loss nan" in str(caught.value)
    for line in read_metrics(out):
        assert line["step"] < report["step"]


@pytest.mark.parametrize(
    ("error", "settings", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            (),
            r"out of GPU memory with 16 rows .*train\.micro_batch=8",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            ("train.micro_batch=8",),
            r"with 8 rows .*train\.recompute=true",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            ("train.micro_batch=2", "train.recompute=true"),
            r"lower data\.batch_size",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
            (),
            r"out of memory with 16 rows .*train\.micro_batch=8",
        ),
        (MemoryError(), (), r"out of memory .*train\.micro_batch=8"),
    ],
    ids=["gpu", "gpu_parts", "gpu_all", "cpu", "python"],
)
def test_memory__full_names_the_option_that_lowers_it(
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    settings: tuple[str, ...],
    message: str,
) -> None:
    def backward(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(DistillTask, "backward", backward)
    with pytest.raises(InputError, match=message) as caught:
        train([make_shards()], small_recipe(*settings), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)


def test_memory__full_counts_the_rows_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe("data.batch_size=20")
    monkeypatch.setattr(run, "world_size", lambda: 3)
    told = str(run._out_of_memory("GPU memory", recipe))
    assert "with 7 rows" in told
    assert "train.micro_batch=3 " in told


def test_memory__full_of_shards_says_how_to_stream_them(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(data, "read_block", read)
    with pytest.raises(InputError, match=r"out of memory .*--set data\.cache_mib=0 streams"):
        train([make_shards()], small_recipe(), tmp_path / "run", device="cpu")


def test_records__full_disk_is_an_input_error(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Recorder, "write", write)
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"No space left on device\); make room, then `trainer"):
        train([make_shards()], small_recipe(), out, device="cpu")


def test_errors__of_other_kinds_stay_what_they_are(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backward(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(DistillTask, "backward", backward)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train([make_shards()], small_recipe(), tmp_path / "run", device="cpu")
