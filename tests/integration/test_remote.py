"""`pipeline embed` to and from an S3 store, through a kill; and what reads the set there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards import ShardSet
from pipeline.shards.storage import Storage
from tests.integration import faults
from tests.integration.test_embed import FAST, contents, run
from tests.pipeline.s3_server import BUCKET, s3_environment, upload
from tests.pipeline.test_teacher import write_teacher
from tests.trainer.conftest import SMALL
from trainer.recipe import load_recipe
from trainer.run import train

pytestmark = pytest.mark.timeout(1800)  # several jobs each, on a machine with other work too
COUNT = 40


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_environment() as found:
        yield found


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{write_teacher(tmp_path_factory.mktemp('teacher') / 'tiny')}"


def downloaded(uri: str, folder: Path) -> Path:
    """The set as a local one."""
    storage = Storage.at(uri)
    folder.mkdir()
    for name in storage.sizes():
        (folder / name).write_bytes(storage.read(name))
    return folder


@pytest.mark.slow
def test_embed__to_s3_killed_and_resumed_is_as_on_disk(
    server: str, teacher: str, tmp_path: Path
) -> None:
    uri = f"s3://{BUCKET}/sets/killed?endpoint_override={server.replace(':', '%3A')}&scheme=http"
    storage = Storage.at(uri)
    for name in [name for name in os.environ if name == "AWS_ENDPOINT_URL"]:
        del os.environ[name]  # the address alone says where the store is, on every worker
    job = faults.start(uri, teacher, COUNT, workers=1, gate=str(tmp_path / "never"))
    try:
        faults.wait_for(lambda: storage.list("part-", ""), job)
    finally:
        faults.kill(job)
        os.environ["AWS_ENDPOINT_URL"] = f"http://{server}"
    left = {name[:5] for name in storage.sizes()}
    assert {".tmp-", ".lock"} <= left  # nothing could tidy up
    done = faults.finished(faults.start(uri, teacher, COUNT, workers=1))
    assert done["skipped"] > 0
    assert done["skipped"] + done["embedded"] == COUNT
    assert {name[:4] for name in storage.sizes()} == {"cont", "mani", "part"}
    faults.finished(faults.start(tmp_path / "here", teacher, COUNT, workers=1))
    assert contents(downloaded(uri, tmp_path / "there")) == contents(tmp_path / "here")

    told = run("inspect", uri, "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["rows"] == COUNT
    told = run("query", uri, "select count(*) as n from shards", "--json")
    assert json.loads(told.stdout) == [{"n": COUNT}]
    trained = train([uri], load_recipe("tiny", [*SMALL, "train.steps=2"]), tmp_path / "run")
    assert trained.step == 2


@pytest.mark.slow
def test_embed__from_s3_to_s3_is_as_from_disk_to_disk(
    server: str, teacher: str, assets_dir: Path, tmp_path: Path
) -> None:
    root = tmp_path / "meshes"
    root.mkdir()
    for path in sorted((assets_dir / "cc0-meshes" / "meshes").glob("*.glb"))[::200]:
        shutil.copy(path, root / path.name)
    upload(root, "assets/meshes")
    common = ["embed", "--dataset", "folder", "--teacher", teacher, "--workers", "1", *FAST]
    uri = f"s3://{BUCKET}/sets/copied"
    there = run(*common, "--root", f"s3://{BUCKET}/assets/meshes", "--out", uri, "--json")
    assert there.returncode == 0, there.stderr
    here = run(*common, "--root", str(root), "--out", str(tmp_path / "here"))
    assert here.returncode == 0, here.stderr
    rows = contents(downloaded(uri, tmp_path / "there"))
    assert rows == contents(tmp_path / "here")
    assert len(rows) == len(list(root.iterdir()))
    # Local and remote root are one source: the set goes on with either.
    again = run(*common, "--root", str(root), "--out", uri, "--json")
    assert json.loads(again.stdout)["skipped"] == len(rows)

    for batch in ShardSet.open(uri).batches(["xyz", "rgb"]):
        assert batch.xyz is not None
        assert np.isfinite(batch.xyz_float()).all()
