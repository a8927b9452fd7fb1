"""The rasteriser against Embree rays and VTK: 12 views of 224 px, 4 samples a pixel, one core.

Run as ``python -m tests.bench.bench_render [--quick] [--assets DIR]``. Real assets: those at evenly
spread quantiles of the face count, and the textured ones. The renderers take turns in every round
and the median round counts. Seconds are of processor time, all threads of the process together:
other programs do not disturb them, and a renderer gains nothing by more threads.

How much the pictures of a baseline differ from the rasteriser's is shown beside its speed: a
baseline that draws something else would be no baseline.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import ring
from pipeline.console import note, print_table
from pipeline.meshes import load_mesh
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster import RasterRenderer
from pipeline.scene import Mesh
from tests.bench import render_vtk
from tests.conftest import ASSETS

TARGETS = {"embree": 1.8, "vtk": 5.0}
TITLES = {"embree": "Embree rays", "vtk": "VTK"}
SPLITS = ((0, 200), (200, 600), (600, 10**9))  # faces
CONFIG = RenderConfig()  # 224 px, 2 x 2 samples
Draw = Callable[[Mesh], NDArray[np.uint8]]


@dataclass(frozen=True)
class Row:
    """One object: milliseconds by renderer, and how the baselines' pictures differ."""

    asset: str
    faces: int
    textured: bool
    milliseconds: dict[str, float]
    difference: dict[str, float]  # mean absolute, of 255, over the pixels that either covers

    def ratio(self, name: str) -> float:
        """How many times slower than the rasteriser."""
        return self.milliseconds[name] / self.milliseconds["raster"]


def sample_assets(folder: Path, count: int) -> list[Path]:
    """``count`` meshes at evenly spread quantiles of the face count, then the textured ones."""
    with (folder / "cc0-meshes" / "manifest.csv").open(newline="") as stream:
        listed = sorted(csv.DictReader(stream), key=lambda row: (int(row["faces"]), row["mesh"]))
    picks = ((np.arange(count) + 0.5) / count * len(listed)).astype(int)
    meshes = [folder / "cc0-meshes" / listed[i]["mesh"] for i in picks]
    return meshes + sorted((folder / "textured").glob("*.glb"))


def baselines() -> tuple[dict[str, Draw], list[str]]:
    """The baselines that can run here, and a line for each that cannot."""
    found: dict[str, Draw] = {}
    missing = []
    try:
        import embreex  # noqa: F401

        from tests.bench.render_embree import EmbreeRenderer

        found["embree"] = EmbreeRenderer(ring(), CONFIG).render
    except ModuleNotFoundError:
        missing.append("Embree: embreex is not installed (extra bench)")
    trouble = render_vtk.probe()
    if trouble:
        missing.append(f"VTK: {trouble}")
    else:
        found["vtk"] = render_vtk.VtkRenderer(ring(), CONFIG).render
    return found, missing


def run(folder: Path = ASSETS, count: int = 12, rounds: int = 5) -> tuple[list[Row], list[str]]:
    """Rows by object, and which baselines are missing and why.

    Raises ``FileNotFoundError`` without the real assets.
    """
    others, missing = baselines()
    raster, cameras = RasterRenderer(), ring()

    def draw_raster(mesh: Mesh) -> NDArray[np.uint8]:
        return raster.render(mesh, cameras, CONFIG)

    engines: dict[str, Draw] = {"raster": draw_raster, **others}
    rows = []
    for path in sample_assets(folder, count):
        mesh = load_mesh(path).normalised()
        pictures = {name: draw(mesh) for name, draw in engines.items()}  # and warm up
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(rounds):
            for name, draw in engines.items():
                begun = time.process_time()
                draw(mesh)
                seconds[name].append(time.process_time() - begun)
        rows.append(
            Row(
                path.stem,
                len(mesh.faces),
                any(material.texture is not None for material in mesh.materials),
                {name: 1e3 * statistics.median(found) for name, found in seconds.items()},
                {name: _difference(pictures["raster"], pictures[name], name) for name in others},
            )
        )
    return rows, missing


def _difference(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], name: str) -> float:
    """Mean absolute difference of the sRGB codes where either picture shows something."""
    colours = (render_vtk.encode(theirs) if name == "vtk" else theirs[..., :3]).astype(int)
    seen = (ours[..., 3] > 0) | (colours != CONFIG.background).any(-1)
    return float(np.abs(ours[..., :3].astype(int) - colours)[seen].mean())


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))


Result = tuple[str, list[str], list[list[object]], str]


def tables(quick: bool = False, folder: Path = ASSETS) -> list[Result]:
    """(title, columns, rows, notes) of the object table and of the summary by face count."""
    rows, missing = run(folder, 4 if quick else 12, 3 if quick else 7)
    names = [name for name in TITLES if name in rows[0].milliseconds]
    by_object: list[list[object]] = [
        [
            row.asset + (" (textured)" if row.textured else ""),
            row.faces,
            round(row.milliseconds["raster"], 2),
            *(round(row.milliseconds[name], 1) for name in names),
            *(round(row.ratio(name), 1) for name in names),
            *(round(row.difference[name], 2) for name in names),
        ]
        for row in rows
    ]
    columns = [
        "object",
        "faces",
        "raster ms",
        *(f"{TITLES[name]} ms" for name in names),
        *(f"{TITLES[name]} / raster" for name in names),
        *(f"{TITLES[name]}: mean difference of 255" for name in names),
    ]
    notes = (
        "12 views of 224 px, 2 x 2 samples, processor time of the whole render call, median of "
        "interleaved rounds. Embree shares the rasteriser's shading; VTK draws on Mesa, and "
        "its head light shines along the view axis, which shows in the differences. "
    ) + " ".join(f"Missing baseline. {line}." for line in missing)
    groups: list[tuple[str, list[Row]]] = [("all", rows)]
    for low, high in SPLITS:
        label = f"{low} to {high - 1} faces" if high < 10**9 else f"{low} faces and more"
        groups.append((label, [r for r in rows if not r.textured and low <= r.faces < high]))
    groups.append(("textured", [r for r in rows if r.textured]))
    summary: list[list[object]] = []
    for label, members in groups:
        if not members:
            continue
        line: list[object] = [label, len(members)]
        line.append(round(statistics.median(r.milliseconds["raster"] for r in members), 2))
        for name in names:
            ratios = [row.ratio(name) for row in members]
            line += [round(statistics.median(ratios), 1), round(geometric_mean(ratios), 1)]
        summary.append(line)
    heads = [f"{TITLES[n]} / raster, {kind}" for n in names for kind in ("median", "geo. mean")]
    targets = ", ".join(f"{TITLES[n]} {TARGETS[n]}" for n in names) or "no baseline here"
    return [
        ("Rendering", columns, by_object, notes.strip()),
        (
            "Rendering: how many times slower",
            ["objects", "count", "raster ms, median", *heads],
            summary,
            f"Targets for the median of all: {targets}.",
        ),
    ]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few objects and rounds")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the real assets")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for title, columns, rows, notes in tables(args.quick, args.assets):
        note(notes)
        print_table(title, columns, rows)


if __name__ == "__main__":
    main()
