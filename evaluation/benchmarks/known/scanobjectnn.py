"""ScanObjectNN (Uy et al., ICCV 2019), scanned objects, and the file that OpenShape released.

That file has 2,890 scans, train and test together; papers that cite its figures speak of 581.
"""

from __future__ import annotations

from evaluation.benchmarks.known.base import Benchmark, Variant
from pipeline.datasets.scanobjectnn import CLASSES

SCANOBJECTNN = Benchmark(
    name="scanobjectnn",
    told="ScanObjectNN, 15 classes of scans without colour",
    n_classes=len(CLASSES),
    variants=(
        Variant("openshape file", None, (2890,), (("kind", "scanobjectnn"),)),
        Variant("OBJ_ONLY, test", "test", (581,), (("subset", "OBJ_ONLY"),)),
        Variant("OBJ_BG, test", "test", (581,), (("subset", "OBJ_BG"),)),
        Variant("PB_T50_RS, test", "test", (2882,), (("subset", "PB_T50_RS"),)),
    ),
    sources=("openshape", "scanobjectnn"),
    classes=CLASSES,
)
