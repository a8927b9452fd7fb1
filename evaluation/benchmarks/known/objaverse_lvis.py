"""Objaverse-LVIS (Deitke et al., CVPR 2023): the objects of Objaverse with a category of LVIS.

Papers say 46,832 objects; the list that OpenShape released has 46,205. The classes are those of the
set: names of LVIS, which write underscores for blanks.
"""

from __future__ import annotations

from evaluation.benchmarks.known.base import Benchmark, Variant

OBJAVERSE_LVIS = Benchmark(
    name="objaverse-lvis",
    told="Objaverse-LVIS, 1,156 classes of coloured meshes",
    n_classes=1156,
    variants=(
        Variant("openshape list", None, (46205,), (("kind", "lvis"),)),
        Variant("openshape list, held out", "test", (46205,), (("holdout_lvis", "True"),)),
        Variant("meshes", None, (46832, 46205), (("subset", "lvis"),)),
    ),
    sources=("openshape", "objaverse"),
    underscores=True,
)
