"""ShapeNetCore (Chang et al., 2015), 55 classes; the names are those of its taxonomy.

There is no one split of it: the count in a result says what was measured.
"""

from __future__ import annotations

from evaluation.benchmarks.known.base import Benchmark, Variant

SHAPENET_CORE = Benchmark(
    name="shapenet-core",
    told="ShapeNetCore, 55 classes of textured CAD models",
    n_classes=55,
    variants=(Variant("meshes", None),),
    sources=("shapenet",),
)
