"""The benchmark of the renderer runs, and its baselines draw what the rasteriser draws."""

from __future__ import annotations

from pathlib import Path

from tests.bench.bench_render import run


def test_run__every_baseline_that_is_there_draws_nearly_the_same(assets_dir: Path) -> None:
    rows, missing = run(assets_dir, count=1, rounds=1)
    assert len(rows) == 3  # one plain, two textured
    found = {"embree", "vtk"} - {line.split(":")[0].lower() for line in missing}
    largest = {"embree": 0.5, "vtk": 16.0}  # of 255; VTK lights and filters in its own way
    for row in rows:
        assert set(row.difference) == found
        assert all(row.difference[name] < largest[name] for name in found)
