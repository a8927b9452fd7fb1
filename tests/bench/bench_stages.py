"""Time per real asset by stage.

Load, 12 views of 224 px, pictures ready for a teacher (of 96 px, so that they must be shrunk),
10,000 points, farthest-point order; and the views as WebP where they are to be kept.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from pipeline.cameras import ring
from pipeline.meshes import load_mesh
from pipeline.pictures import at_sizes, encode_webp
from pipeline.points import farthest_point_order, sample_points
from pipeline.renderers import get_renderer
from pipeline.renderers.base import RenderConfig

ASSETS = Path(__file__).resolve().parents[3] / "shared" / "assets"
STAGES = ("load", "render", "shrink", "sample", "fps", "total", "keep")
TEACHER = (96, "bicubic")  # what the demo teacher reads


def run(assets: Path = ASSETS, step: int = 20, points: int = 10_000) -> list[list[object]]:
    """Time every ``step``-th real mesh and the textured samples, one after the other.

    Rows of (stage, median ms, p95 ms, mean ms, objects/s by the median and by the mean), in
    processor time of one core. ``keep`` is an option and not in the total. Raises
    ``FileNotFoundError`` where the assets are not there.
    """
    paths = sorted((assets / "cc0-meshes" / "meshes").glob("*.glb"))[::step]
    paths += sorted((assets / "textured").glob("*.glb"))
    if not paths:
        raise FileNotFoundError(f"no meshes under {assets}")
    renderer, cameras, config = get_renderer("raster"), ring(12), RenderConfig()
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for warm_up in (True, False):  # imports, compilation and first touches are not counted
        for path in paths[:2] if warm_up else paths:
            marks = [time.process_time()]
            mesh = load_mesh(path).normalised()
            marks.append(time.process_time())
            views = renderer.render(mesh, cameras, config)
            marks.append(time.process_time())
            at_sizes(views, (TEACHER,))
            marks.append(time.process_time())
            cloud = sample_points(mesh, points, seed=0, n_fps=0)
            marks.append(time.process_time())
            farthest_point_order(cloud.xyz, min(2048, points))
            marks.append(time.process_time())
            total = marks[-1] - marks[0]
            for view in views:
                encode_webp(view[..., :3], "webp-90")
            keep = time.process_time() - marks[-1]
            if not warm_up:
                for stage, value in zip(STAGES, [*np.diff(marks), total, keep], strict=True):
                    seconds[stage].append(float(value))
    rows: list[list[object]] = []
    for stage, values in seconds.items():
        ms = 1000 * np.array(values)
        median, p95, mean = np.median(ms), np.percentile(ms, 95), ms.mean()
        told = (median, p95, mean, 1000 / median, 1000 / mean)
        rows.append([stage, *(round(float(x), 2) for x in told)])
    return rows
