"""Real named objects in the public domain: everyday, fantasy and tool meshes of three makers.

The list ``evaluation/benchmarks/cc0_objects.csv`` says by the SHA-256 of each mesh file what it is
called, of which class it is, in which split and in which group. A group holds objects that are the
same, look the same or are of one family in one pack; it lies in one split as a whole.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evaluation.benchmarks.known.base import Benchmark, Variant
from evaluation.benchmarks.labels import key
from pipeline.common import InputError, atomic_path, file_hash
from pipeline.shards import ShardSet

LIST = Path(__file__).parent.parent / "cc0_objects.csv"
SUFFIX = ".glb"


@dataclass(frozen=True)
class Member:
    """One object of the list."""

    sha256: str  # of the bytes of the mesh file
    file: str  # what the file was called where the list was made
    name: str  # as one would say it
    label: str | None  # its class; None where it is of none
    split: str  # train, val or test
    group: str


@cache
def members() -> tuple[Member, ...]:
    """All objects of the list, by file name."""
    with LIST.open(newline="", encoding="utf-8") as stream:
        return tuple(
            Member(
                *(row["sha256"], row["file"], row["name"]),
                label=row["label"] or None,
                split=row["split"],
                group=row["group"],
            )
            for row in csv.DictReader(stream)
        )


def seen_classes(listed: tuple[Member, ...]) -> frozenset[str]:
    """Classes of which a training object is, or whose words stand in the name of one."""
    train = [member for member in listed if member.split == "train"]
    classes = {member.label for member in listed if member.label}
    names = "\n".join(member.name for member in train)
    spoken = {label for label in classes if re.search(rf"\b{re.escape(label)}\b", names)}
    return frozenset(spoken | {member.label for member in train if member.label})


@dataclass(frozen=True)
class Listed(Benchmark):
    """A benchmark whose objects are known one by one, by the SHA-256 of their files."""

    def variant(self, shards: ShardSet) -> Variant:
        """The variant, after a look at every row of the set.

        Raises ``InputError`` for a set of another source, without any object of the list, or with
        rows whose split or category is not that of the list. Other objects may be in the set in
        any split but the one that is measured.
        """
        variant = super().variant(shards)
        known = {member.sha256: member for member in members()}
        found = 0
        for batch in shards.batches(["sha256", "split", "category"]):
            assert batch.sha256 is not None
            assert batch.split is not None
            assert batch.category is not None
            for uid, sha256, split, category in zip(
                batch.uid, batch.sha256, batch.split, batch.category, strict=True
            ):
                member = known.get(sha256)
                found += member is not None
                wanted = (member.split, member.label) if member else (None, None)
                wrong = split == variant.split if member is None else split != wanted[0]
                if wrong or (member and key(category or "") != key(wanted[1] or "")):
                    told = (
                        f"is of split {wanted[0]}, class {wanted[1] or 'none'} in the list"
                        if member
                        else "is not in the list"
                    )
                    raise InputError(
                        f"{shards.storage.root}: {uid} (split {split or 'none'}, category "
                        f"{category or 'none'}) {told} of {self.name}; make the set with the "
                        f"--metadata that `evaluation benchmarks {self.name}` writes"
                    )
        if not found:
            raise InputError(
                f"{shards.storage.root}: holds no object of the list of {self.name}; make the set "
                f"with the --metadata that `evaluation benchmarks {self.name}` writes"
            )
        return variant


def _benchmark() -> Listed:
    listed = members()
    classes = tuple(sorted({member.label for member in listed if member.label}))
    test = [member for member in listed if member.split == "test"]
    labelled = sum(member.label is not None for member in test)
    return Listed(
        name="cc0-objects",
        told="real named objects in the public domain (The Base Mesh, Kenney, Quaternius)",
        n_classes=len(classes),
        # Classification is of those with a class; all are searched.
        variants=(Variant("test", "test", (labelled, len(test))),),
        sources=("folder",),
        classes=classes,
        seen=seen_classes(listed),
    )


CC0_OBJECTS = _benchmark()


def find_files(
    root: Path, advance: Callable[[int], None] | None = None
) -> tuple[dict[str, Path], int]:
    """Files of the list below ``root`` by SHA-256, whatever they are called, and how many others.

    Raises ``InputError`` where there is none of the list, or one of them twice.
    """
    if not root.is_dir():
        raise InputError(f"--root {root} is not a directory: give a folder of meshes")
    known = {member.sha256 for member in members()}
    found: dict[str, Path] = {}
    others = 0
    for path in mesh_files(root):
        digest = file_hash(path)
        if digest not in known:
            others += 1
        elif digest in found:
            raise InputError(
                f"--root {root}: {found[digest].relative_to(root)} and {path.relative_to(root)} "
                "are the same object; remove one"
            )
        else:
            found[digest] = path
        if advance:
            advance(1)
    if not found:
        raise InputError(
            f"--root {root}: none of its {others} {SUFFIX} files is of the {len(known)} of "
            "cc0-objects; see docs/evaluation.md for where they come from"
        )
    return found, others


def mesh_files(root: Path) -> list[Path]:
    """Files below ``root`` that may be of the list, sorted."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() == SUFFIX)


def write_metadata(out: Path, root: Path, found: dict[str, Path]) -> None:
    """The table that ``pipeline embed --dataset folder --metadata`` takes, atomically.

    Paths are relative to ``root``, or to the table's folder where that is below ``root``.
    """
    base, place = root.resolve(), out.resolve().parent
    base = place if place.is_relative_to(base) else base
    with atomic_path(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["file", "name", "category", "split"])
        for member in members():
            if member.sha256 in found:
                path = root.resolve() / found[member.sha256].relative_to(root)
                relative = os.path.relpath(path, base).replace(os.sep, "/")
                table.writerow([relative, member.name, member.label or "", member.split])
