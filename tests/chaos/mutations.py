"""Every hostile asset file of the suite: seeded, structure-aware, the same in every run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.mutate import LINK, Case, World
from tests.chaos.mutate_clouds import cloud_cases
from tests.chaos.mutate_gltf import gltf_cases
from tests.chaos.mutate_images import image_cases
from tests.chaos.mutate_meshes import mesh_cases
from tests.chaos.mutate_tables import table_cases

__all__ = ["Case", "World", "all_cases", "sample", "write_case"]


def all_cases() -> Iterator[Case]:
    """All cases, family after family, with unique names."""
    return itertools.chain(gltf_cases(), image_cases(), mesh_cases(), cloud_cases(), table_cases())


def sample(cases: list[Case], count: int) -> list[Case]:
    """A fixed choice: the first of every family, and others evenly spread."""
    first: dict[str, Case] = {}
    for case in cases:
        first.setdefault(case.name.split("/")[0], case)
    step = max(1, len(cases) // max(1, count - len(first)))
    chosen = {case.name: case for case in [*first.values(), *cases[step // 2 :: step]]}
    return list(chosen.values())[:count]


def write_case(case: Case, world: World, folder: Path) -> str:
    """Write the files of a case; the name of the one to load. Its contents tell cases apart."""
    files = case.build(world)
    folder.mkdir(parents=True)
    for name, content in files.items():
        if content.startswith(LINK):
            (folder / name).symlink_to(os.fsdecode(content[len(LINK) :]))
        else:
            (folder / name).write_bytes(content)
    return next(iter(files))
