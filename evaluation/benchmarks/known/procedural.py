"""The procedural objects of this project, which need no download: those held out from training."""

from __future__ import annotations

from evaluation.benchmarks.known.base import Benchmark, Variant
from pipeline.datasets.procedural import CLASSES

PROCEDURAL = Benchmark(
    name="procedural",
    told=f"parametric objects of {len(CLASSES)} everyday classes",
    n_classes=len(CLASSES),
    variants=(Variant("held out", "test"),),
    sources=("procedural",),
    classes=tuple(name.replace("_", " ") for name in CLASSES),
)
