"""ModelNet40 and ModelNet10 (Wu et al., CVPR 2015), test splits.

Shards of ``pipeline embed --dataset modelnet`` (meshes) or ``pipeline import openshape-modelnet40``
(the clouds that OpenShape and its successors measure on).
"""

from __future__ import annotations

from evaluation.benchmarks.known.base import Benchmark, Variant
from pipeline.datasets.modelnet_points import CLASSES_10

CLASSES_40 = (
    *("airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair"),
    *("cone", "cup", "curtain", "desk", "door", "dresser", "flower pot", "glass box", "guitar"),
    *("keyboard", "lamp", "laptop", "mantel", "monitor", "night stand", "person", "piano"),
    *("plant", "radio", "range hood", "sink", "sofa", "stairs", "stool", "table", "tent"),
    *("toilet", "tv stand", "vase", "wardrobe", "xbox"),
)

MODELNET40 = Benchmark(
    name="modelnet40",
    told="ModelNet40, 40 classes of CAD models without colour",
    n_classes=40,
    variants=(
        Variant("openshape clouds", None, (2468,), (("kind", "modelnet40"),)),
        Variant("meshes, test", "test", (2468,), (("subset", "40"),)),
    ),
    sources=("openshape", "modelnet", "modelnet-points"),
    classes=CLASSES_40,
)

MODELNET10 = Benchmark(
    name="modelnet10",
    told="ModelNet10, 10 classes of it",
    n_classes=10,
    variants=(Variant("meshes, test", "test", (908,), (("subset", "10"),)),),
    sources=("modelnet", "modelnet-points"),
    classes=tuple(name.replace("_", " ") for name in sorted(CLASSES_10)),
)
