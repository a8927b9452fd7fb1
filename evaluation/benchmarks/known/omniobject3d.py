"""OmniObject3D (Wu et al., CVPR 2023): real objects, scanned; the classes are those of the set."""

from __future__ import annotations

from evaluation.benchmarks.known.base import Benchmark, Variant

OMNIOBJECT3D = Benchmark(
    name="omniobject3d",
    told="OmniObject3D, real objects scanned with colour",
    n_classes=None,
    variants=(Variant("scans", None),),
    sources=("omniobject3d",),
)
