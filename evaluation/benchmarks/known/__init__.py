"""The benchmarks of the field that are known by name, one file each.

A benchmark says which classes can be answered, which rows are measured, and how many there should
be. Any other set with categories can be measured as well: its classes are then its categories.
"""

from __future__ import annotations

import difflib

from evaluation.benchmarks.known.base import Benchmark
from evaluation.benchmarks.known.cc0_objects import CC0_OBJECTS
from evaluation.benchmarks.known.modelnet import MODELNET10, MODELNET40
from evaluation.benchmarks.known.objaverse_lvis import OBJAVERSE_LVIS
from evaluation.benchmarks.known.omniobject3d import OMNIOBJECT3D
from evaluation.benchmarks.known.procedural import PROCEDURAL
from evaluation.benchmarks.known.scanobjectnn import SCANOBJECTNN
from evaluation.benchmarks.known.shapenet_core import SHAPENET_CORE
from pipeline.common import InputError

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        OBJAVERSE_LVIS,
        MODELNET40,
        MODELNET10,
        SCANOBJECTNN,
        SHAPENET_CORE,
        OMNIOBJECT3D,
        PROCEDURAL,
        CC0_OBJECTS,
    )
}


def find(name: str | None) -> Benchmark | None:
    """The benchmark of a name; None for a name of the user's own.

    Raises ``InputError`` for what is nearly a known name.
    """
    if name is None:
        return None
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    plain = {known.replace("-", ""): known for known in BENCHMARKS}
    asked = "".join(c for c in name.casefold() if c.isalnum())
    near = difflib.get_close_matches(asked, plain, 1, cutoff=0.9)
    if near:
        raise InputError(
            f"--benchmark {name}: did you mean {plain[near[0]]}? A custom name must differ more"
        )
    return None
