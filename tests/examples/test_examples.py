"""The examples, run as a user would run them, on a few real meshes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASSETS = ROOT.parent / "shared" / "assets" / "cc0-meshes" / "meshes"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not ASSETS.is_dir(), reason="needs ../shared/assets"),
]


def run(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, f"examples/{name}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meshes")
    found = sorted(path for path in ASSETS.rglob("*.glb"))
    for path in found[:: max(1, len(found) // 80)][:80]:
        shutil.copy(path, folder / path.name)
    (folder / "broken.glb").write_bytes(b"glTF")
    return folder


def test_examples__search_and_score(meshes: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    printed = run("search_my_meshes.py", meshes, work, "a plate", 2)
    lines = printed.splitlines()
    assert lines[0] == "80 objects, 1 failed now, 1 in all"
    assert len(lines) == 6
    assert float(lines[1].split()[0]) >= float(lines[-1].split()[0])
    again = run("search_my_meshes.py", meshes, work, "a plate", 2).splitlines()
    assert again[0] == "80 objects, 0 failed now, 1 in all"
    assert again[1:] == lines[1:]
    some = tmp_path / "some"
    some.mkdir()
    for path in sorted(meshes.glob("*.glb"))[:3]:
        shutil.copy(path, some / path.name)
    scored = run("score_generated_meshes.py", some, "a plate", work / "run").splitlines()
    assert len(scored) == 3
    assert all("rank" in line for line in scored)
