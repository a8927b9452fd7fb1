"""Pages of the documentation, run as they are written, each in a folder of its own."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, script_of

ASSETS = ROOT.parent / "shared" / "assets" / "cc0-meshes"
DOCS = ROOT / "docs"
PAGES = [DOCS / "tutorial.md", DOCS / "cookbook.md", *sorted((DOCS / "commands").glob("*.md"))]
COUNT = 60
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not ASSETS.is_dir(), reason="needs ../shared/assets"),
]


def write_meshes(folder: Path) -> None:
    """Small real meshes of a few categories, with a metadata.csv that names them."""
    folder.mkdir()
    with (ASSETS / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] and int(row["faces"]) < 5000]
    chosen = rows[:: len(rows) // COUNT][:COUNT]
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption", "category"])
        for row in chosen:
            source = ASSETS / row["mesh"]
            shutil.copy(source, folder / source.name)
            table.writerow([source.name, f"a {row['name']}", row["category"]])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page__runs_as_it_is_written(page: Path, tmp_path: Path) -> None:
    write_meshes(tmp_path / "meshes")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash"],
        input=script_of(page),
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
