"""The example that scores meshes, in this process, with the student that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import trimesh

from examples.score_generated_meshes import main


def test_example__scores_what_it_can_and_tells_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("cube", 1.0), ("slab", 0.1)):
        trimesh.creation.box(extents=(1, size, 1)).export(tmp_path / f"{name}.glb")
    (tmp_path / "broken.glb").write_bytes(b"glTF")
    main(str(tmp_path), "a white cube", "demo")
    *scored, failed = capsys.readouterr().out.splitlines()
    assert {line.split()[-1] for line in scored} == {"cube.glb", "slab.glb"}
    assert [float(line.split()[0]) for line in scored] == sorted(
        float(line.split()[0]) for line in scored
    )
    assert failed.startswith("failed: broken.glb: ")
