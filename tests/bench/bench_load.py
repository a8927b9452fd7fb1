"""CPU time per real asset by stage: load (with normalising), sample 10,000 points, order them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.meshes import load_mesh
from pipeline.points import farthest_point_order, sample_points

ASSETS = Path(__file__).resolve().parents[3] / "shared" / "assets"


def run(assets: Path = ASSETS, step: int = 20, points: int = 10_000) -> dict[str, Any]:
    """Time every ``step``-th real mesh and the textured samples, one after the other.

    Returns ``{"assets": n, stage: {"median_ms", "p95_ms", "mean_ms"}}`` for the stages ``load``,
    ``sample`` (without ordering) and ``fps``, and their total. Raises ``FileNotFoundError`` where
    the assets are not there.
    """
    paths = sorted((assets / "cc0-meshes" / "meshes").glob("*.glb"))[::step]
    paths += sorted((assets / "textured").glob("*.glb"))
    if not paths:
        raise FileNotFoundError(f"no meshes under {assets}")
    sample_points(load_mesh(paths[0]).normalised(), points, seed=0)  # imports and first touches
    seconds: dict[str, list[float]] = {"load": [], "sample": [], "fps": []}
    for path in paths:
        start = time.process_time()
        mesh = load_mesh(path).normalised()
        loaded = time.process_time()
        cloud = sample_points(mesh, points, seed=0, n_fps=0)
        sampled = time.process_time()
        farthest_point_order(cloud.xyz, min(2048, points))
        ordered = time.process_time()
        seconds["load"].append(loaded - start)
        seconds["sample"].append(sampled - loaded)
        seconds["fps"].append(ordered - sampled)
    seconds["total"] = np.sum([seconds[stage] for stage in ("load", "sample", "fps")], 0).tolist()
    table: dict[str, Any] = {"assets": len(paths), "points": points}
    for stage, values in seconds.items():
        milliseconds = 1000 * np.array(values)
        table[stage] = {
            "median_ms": round(float(np.median(milliseconds)), 3),
            "p95_ms": round(float(np.percentile(milliseconds, 95)), 3),
            "mean_ms": round(float(milliseconds.mean()), 3),
        }
    return table


def main() -> None:
    """Print the table."""
    for stage, values in run().items():
        print(f"{stage:8}", values)  # noqa: T201 (a script)


if __name__ == "__main__":
    main()
