"""The embedding job as its users run it: the command line, Ray, real files, kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.job import EmbedOptions
from pipeline.meshes import SUFFIXES
from pipeline.objects import process
from pipeline.shards import ShardSet, compare_contents, what_lacks
from pipeline.spool import Spool, SpoolReader
from pipeline.stages import EncodeSettings, EncodeStage, pack, write_stage
from tests.pipeline.test_mesh_hostile import CASES
from tests.pipeline.test_teacher import write_teacher
from tests.running import Cli

pytestmark = pytest.mark.timeout(900)  # on a machine with other work too
FAST = ["--views", "2", "--image-size", "48", "--points", "512"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{write_teacher(tmp_path_factory.mktemp('teacher') / 'tiny')}"


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from pipeline.cli import main; main()", *args]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=900, check=False)


def embed_procedural(out: Path, teacher: str, count: int, *more: str) -> list[str]:
    return [
        *("embed", "--dataset", "procedural", "--count", str(count), "--seed", "3"),
        *("--out", str(out), "--teacher", teacher, "--rows-per-part", "16"),
        *FAST,
        *more,
    ]


def contents(out: Path) -> dict[str, bytes]:
    """Every row by uid, as bytes of the values of all its columns.

    Not of Arrow's buffers, whose padding holds whatever lay there.
    """
    import pyarrow.parquet as pq

    rows = {}
    for part in sorted(out.glob("part-*.parquet")):
        for row in pq.read_table(part).to_pylist():
            assert row["uid"] not in rows, f"{row['uid']} twice"
            rows[row["uid"]] = repr(sorted(row.items())).encode()
    return rows


def plain_loop(
    options: EmbedOptions, targets: EncodeSettings, spool: Spool, *_summary_and_start: object
) -> None:
    """Every stage for one task after another, in this process: what Ray's graph has to equal."""
    encode = EncodeStage(targets)
    for task in spool.tasks(1):
        items = [
            (process(item.record, options.objects), item.places)
            for item in SpoolReader(spool.address).read(task)
        ]
        write_stage(pack(encode.encoded(items)), targets.targets)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> Path:
    """The set as the same command makes it without Ray."""
    out = tmp_path_factory.mktemp("shards") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.job.run_graph", plain_loop)
        done = CliRunner().invoke(app, embed_procedural(out, teacher, 70))
    assert done.exit_code == 0, done.output
    return out


@dataclass
class Resumed:
    """A job killed after its first part, and what the same command then said and left."""

    out: Path
    survived: dict[str, bytes]
    lacking: str | None
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> Resumed:
    out = tmp_path_factory.mktemp("shards") / "killed"
    arguments = command(*embed_procedural(out, teacher, 70, "--workers", "1"))
    driver = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 600
    while not list(out.glob("part-*.parquet")) and driver.poll() is None:
        assert time.monotonic() < deadline, "no part within ten minutes"
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    survived, lacking = contents(out), what_lacks(out)
    done = run(*embed_procedural(out, teacher, 70, "--workers", "1", "--json"))
    assert done.returncode == 0, done.stderr
    return Resumed(out, survived, lacking, json.loads(done.stdout))


def test_embed__killed_and_resumed_has_the_rows_of_a_plain_loop(
    undisturbed: Path, resumed: Resumed
) -> None:
    kept, summary = len(resumed.survived), resumed.summary
    assert 0 < kept < 70
    assert "has not finished" in str(resumed.lacking)
    assert (summary["skipped"], summary["embedded"], summary["failed"]) == (kept, 70 - kept, 0)
    assert contents(resumed.out) == contents(undisturbed)
    recorded = compare_contents(resumed.out)
    assert recorded is not None
    assert recorded.finished


def test_embed__leaves_nothing_temporary(resumed: Resumed) -> None:
    names = {path.name.split("-")[0] for path in resumed.out.iterdir()}
    assert names == {"manifest.json", "contents.json", "part", ".lock"}


def test_embed__rows_are_complete_and_normalised(undisturbed: Path) -> None:
    shards = ShardSet.open(undisturbed)
    assert len(shards) == 70
    for batch in shards.batches():
        assert batch.image_embeds is not None
        assert batch.image_embeds.shape[1:] == (2, 16)
        norms = np.linalg.norm(batch.image_embeds.astype(np.float32), axis=-1)
        np.testing.assert_allclose(norms, 1, atol=2e-3)
        assert batch.texts is not None
        assert all(len(texts) >= 2 for texts in batch.texts)
        radius = np.linalg.norm(batch.xyz_float(), axis=-1).max(1)
        assert (radius <= 1.001).all()
        assert (radius > 0.6).all()


@pytest.mark.slow
def test_embed__one_worker_writes_the_bytes_of_several(teacher: str, tmp_path: Path) -> None:
    written = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        done = run(*embed_procedural(out, teacher, 70, "--workers", workers))
        assert done.returncode == 0, done.stderr
        written.append({p.name: p.read_bytes() for p in out.glob("part-*.parquet")})
    assert written[0] == written[1]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli("pipeline", monkeypatch, capsys)


def test_embed__other_options_on_the_same_set_are_refused_and_the_field_is_named(
    undisturbed: Path, teacher: str, cli: Cli
) -> None:
    arguments = embed_procedural(undisturbed, teacher, 70)
    arguments[arguments.index("--views") + 1] = "3"
    told = cli.refused(*arguments)
    assert "cameras" in told or "n_views" in told


def test_embed__hostile_folder_ends_in_failures_and_the_rest_completes(
    assets_dir: Path, teacher: str, cli: Cli, tmp_path: Path
) -> None:
    root = tmp_path / "meshes"
    root.mkdir()
    good = sorted((assets_dir / "cc0-meshes" / "meshes").glob("*.glb"))[::150]
    for path in good:
        shutil.copy(path, root / path.name)
    expected = {}
    for number, (files, kind) in enumerate(CASES.values()):
        for name, content in files.items():
            path = root / f"case-{number:03d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        first = f"case-{number:03d}/{next(iter(files))}"
        if Path(first).suffix in SUFFIXES:  # others are not meshes to a folder
            expected[first] = kind
    out = tmp_path / "shards"
    arguments = ["embed", "--dataset", "folder", "--root", str(root), "--out", str(out)]
    arguments += ["--teacher", teacher, "--workers", "1", *FAST]
    done = run(*arguments)
    assert done.returncode == 3, done.stderr  # far more than 5 % fail
    shards = ShardSet.open(out)
    failed = {failure.source: failure for failure in shards.failures()}
    found = {source: failed[source].error for source in expected}
    # Some point to a place that is outside of the asset's folder, but inside of the root here,
    # where nothing lies: missing, not forbidden.
    gone = {"missing_texture": "outside_reference"}
    wrong = {s: (found[s], kind) for s, kind in expected.items() if found[s] != kind}
    assert all(gone.get(error) == kind for error, kind in wrong.values()), wrong
    assert all(failure.message for failure in failed.values())
    rows = {uid for uid in shards.uids() if "case-" not in uid}
    assert rows == {f"folder/{path.stem}" for path in good}
    again = cli(*arguments, "--json")  # in this process: nothing is left that needs Ray
    assert again.code == 3, again.err  # they still have
    assert json.loads(again.out)["skipped"] == len(shards) + len(failed)
    assert json.loads(again.out)["failed_before"] == len(failed)
    assert f"{len(failed)} of those were failures; --retry-failures tries" in again.err


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--dataset", "moon", "--out", "x"], "--dataset moon"),
        (["--dataset", "procedural", "--out", "x"], "--count"),
        (["--dataset", "folder", "--out", "x"], "--root"),
        (["--dataset", "procedural", "--count", "2", "--out", "x", "--teacher", "nope"], "nope"),
        (["--dataset", "procedural", "--count", "0", "--out", "x"], "--count"),
        (["--dataset", "procedural", "--count", "2", "--out", "x", "--colour", "1"], "--colour"),
        (["--dataset", "folder", "--root", "/does/not/exist", "--out", "x"], "/does/not/exist"),
    ],
)
def test_embed__wrong_option_is_one_line_and_exit_code_2(
    args: list[str],
    named: str,
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli("embed", *args)
    assert ended.code == 2, ended.err
    assert named in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []
