"""The same commands twice: the same bytes of shards, weights, curves, embeddings and results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.test_embed import contents
from trainer.recorder import read_metrics

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(folder: Path, package: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from {package}.cli import main; main()", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def embed(folder: Path, out: str, workers: int) -> None:
    run(
        *(folder, "pipeline", "embed", "--dataset", "procedural", "--count", "200"),
        *("--views", "2", "--image-size", "96", "--points", "1024", "--holdout", "0.3"),
        *("--rows-per-part", "32", "--workers", str(workers), "--out", out),
    )


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders in which the same commands were run."""
    folders = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    model = ("--checkpoint", "run", "--shards", "shards")
    for folder in folders:
        embed(folder, "shards", workers=2)
        run(
            *(folder, "trainer", "run", "--shards", "shards", "--recipe", "tiny", "--out", "run"),
            *("--device", "cpu", "--set", "train.epochs=3", "--set", "data.val_fraction=0.1"),
        )
        run(folder, "evaluation", "encode", *model, "--out", "all.parquet")
        run(folder, "evaluation", "index", "--embeddings", "all.parquet", "--out", "all.index")
        for command in ("zeroshot", "recall"):
            test = ("--split", "test", "--out", f"{command}.json")
            run(folder, "evaluation", command, *model, *test)
        run(folder, "evaluation", "probe", *model, "--seeds", "2", "--out", "probe.json")
    return folders


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob(pattern))}
    assert found, pattern
    return found


def test_embed__the_same_bytes(twice: tuple[Path, Path]) -> None:
    first, second = (files(folder, "shards/part-*.parquet") for folder in twice)
    assert first == second


def test_embed__the_same_rows_with_another_number_of_workers(twice: tuple[Path, Path]) -> None:
    embed(twice[0], "one", workers=1)
    assert contents(twice[0] / "one") == contents(twice[0] / "shards")


def test_train__the_same_curve_and_weights(twice: tuple[Path, Path]) -> None:
    def curve(folder: Path) -> list[dict[str, object]]:
        drop = ("samples_per_s", "data_wait")
        records = read_metrics(folder / "run")
        return [{k: v for k, v in record.items() if k not in drop} for record in records]

    assert curve(twice[0]) == curve(twice[1])
    first, second = (files(folder, "run/checkpoints/*/model.safetensors") for folder in twice)
    assert first == second


def test_evaluation__the_same_embeddings(twice: tuple[Path, Path]) -> None:
    first, second = (pq.read_table(folder / "all.parquet") for folder in twice)
    assert first.equals(second)  # the record beside them tells where the checkpoint lies


@pytest.mark.parametrize(
    "name",
    [
        "all.index/index.faiss",
        "all.index/ids.parquet",
        "zeroshot.json",
        "recall.json",
        "probe.json",
    ],
)
def test_evaluation__the_same_bytes(twice: tuple[Path, Path], name: str) -> None:
    first, second = (files(folder, name) for folder in twice)
    assert first == second
