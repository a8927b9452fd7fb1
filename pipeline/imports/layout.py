"""Where things lie in a copy of the OpenShape release, and which objects its lists name.

The release, as downloaded (archives), unpacked, or in part:

    Objaverse/000-000.tar.gz ... 000-159.tar.gz
    ShapeNet.tar.gz  3D-FUTURE.tar.gz  ABO.tar.gz
    meta_data/split/{train_all,train_no_lvis,lvis}.json, split/ablation/train_shapenet_only.json
    meta_data/gpt4_filtering.json ...

Members are ``.../<dataset>/<group>/<id>.npy``; the group is the shard of Objaverse (000-017) or
the synset of ShapeNet, other datasets have none. An object is addressed by that path from the
dataset on, wherever the file lies: its *place*.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import InputError
from pipeline.console import note
from pipeline.imports.archives import SUFFIXES, Member, read_folder, read_tar

META = "meta_data"
OBJAVERSE = "Objaverse"
DATASETS = (OBJAVERSE, "ShapeNet", "3D-FUTURE", "ABO")
EVERYTHING = "all"
LISTS = ("train_all", "train_no_lvis", "train_shapenet_only")  # names of --split-file

_ABOVE_DATASETS = "merged_for_training_final"
_SHARD = re.compile(r"\d{3}-\d{3}")
GET = "download it from the data set OpenShape/openshape-training-data on Hugging Face"
_GET_META = f"{GET.replace(' it ', ' its meta_data.zip ')} and unzip it there"
_EXPECTED = (
    "expected Objaverse/000-*.tar.gz, ShapeNet.tar.gz, 3D-FUTURE.tar.gz, ABO.tar.gz (or the "
    "folders unpacked from them) and meta_data/ of the release"
)


@dataclass(frozen=True)
class Unit:
    """What one worker reads at a time: an archive, or a folder that holds .npy files."""

    path: Path
    place: tuple[str, ...]  # dataset, group: as far as known without opening it
    packed: bool

    def members(self, max_bytes: int) -> Iterator[Member]:
        """Its files. Raises ``DamagedArchiveError``."""
        read = read_tar if self.packed else read_folder
        return read(self.path, ".npy", max_bytes)

    def place_of(self, member: str) -> tuple[str, ...]:
        """Dataset, group where there is one, and id of the object in a member."""
        parts = member.removesuffix(".npy").split("/")
        return _from_dataset(parts) or (*self.place, parts[-1])


def find_units(root: Path) -> list[Unit]:
    """Archives and folders of objects under ``root``, in a fixed order.

    Where an archive lies beside what was unpacked from it, the archive is taken. Raises
    ``InputError`` that says what was expected and what is there when there is nothing to read, or
    two archives hold the same group.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; {_EXPECTED}; {GET}")
    packed: dict[tuple[str, ...], Unit] = {}
    folders: dict[tuple[str, ...], Unit] = {}
    for folder, files in _walk(root):
        for name in sorted(f for f in files if f.endswith(SUFFIXES) and not f.startswith(".")):
            path = folder / name
            stem = name[: -len(next(s for s in SUFFIXES if name.endswith(s)))]
            place = _place(root, (*path.relative_to(root).parts[:-1], stem))
            if place in packed:
                raise InputError(
                    f"{path}: holds the same group as {packed[place].path}; move one away"
                )
            packed[place] = Unit(path, place, packed=True)
        if any(f.endswith(".npy") for f in files):
            place = _place(root, folder.relative_to(root).parts)
            if place in folders:
                raise InputError(
                    f"{folder}: holds the same group as {folders[place].path}; move one away"
                )
            folders[place] = Unit(folder, place, packed=False)
    covered = [p for p in folders if any(p[:n] in packed for n in range(1, len(p) + 1))]
    if covered:
        note(
            f"{root}: {len(covered)} unpacked folders are skipped; their archives are read instead"
        )
    units = [*packed.values(), *(u for p, u in folders.items() if p not in covered)]
    if not units:
        raise InputError(f"{root}: {_EXPECTED}, found {_listing(root)}; {GET}")
    return sorted(units, key=lambda unit: unit.place)


def meta_file(root: Path, name: str, remedy: str = "") -> Path:
    """A file of ``meta_data``. Raises ``InputError`` when it is not there.

    ``remedy`` says what else there is to do than to fetch it.
    """
    path = root / META / name
    if path.is_file():
        return path
    if not (root / META).is_dir() and (root / f"{META}.zip").is_file():
        raise InputError(f"{root / META}.zip: still packed; unzip it in {root}")
    found = (
        f"{root / META} holds {_listing(root / META)}"
        if (root / META).is_dir()
        else (f"{root} has no {META}/ and holds {_listing(root)}")
    )
    also = f", or {remedy}" if remedy else ""
    raise InputError(f"{path}: not there; {found}; {_GET_META}{also}")


def read_list(path: Path) -> list[tuple[tuple[str, ...], str | None]]:
    """Place and category (None: not told) of every object of a list such as ``train_all.json``.

    Raises ``InputError`` when the file is not such a list.
    """
    place_and_category = []
    for entry in _json(path, list):
        if not isinstance(entry, _Entry):
            raise InputError(
                f"{path}: an item is not an object with an id; download the file again"
            )
        place_and_category.append((entry.place, entry.category))
    return place_and_category


def read_filtered(path: Path) -> frozenset[str]:
    """Ids of the objects whose raw text ``gpt4_filtering.json`` calls useless (flag ``N``)."""
    flags = _json(path, dict)
    return frozenset(name for name, flag in flags.items() if flag == "N")


def by_unit(
    places: Iterable[tuple[str, ...]], units: list[Unit]
) -> tuple[dict[tuple[str, ...], set[tuple[str, ...]]], int]:
    """Places under the unit that they lie in, and how many lie in none that is there."""
    known = {unit.place for unit in units}
    found: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    lacking = 0
    for place in places:
        for length in range(len(place) - 1, 0, -1):
            if place[:length] in known:
                found[place[:length]].add(place)
                break
        else:
            lacking += 1
    return found, lacking


@dataclass(frozen=True, slots=True)
class _Entry:
    place: tuple[str, ...]
    category: str | None


def _json(path: Path, kind: type) -> Any:
    """The file, with entries of lists and flags made small while it is read: it is large."""
    try:
        value = json.loads(path.read_bytes(), object_hook=_shrink)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON ({error}); download it again") from error
    if not isinstance(value, kind):
        raise InputError(f"{path}: not a {kind.__name__} of objects; download it again")
    return value


def _shrink(value: dict[str, Any]) -> Any:
    if "flag" in value:
        return value["flag"]
    name = value.get("id", value.get("uid"))
    if not isinstance(name, str):
        return value
    path = value.get("data_path")
    place = _from_dataset(path.removesuffix(".npy").split("/")) if isinstance(path, str) else None
    if place is None:
        group = value.get("group")
        dataset = value.get("dataset", OBJAVERSE)
        place = (str(dataset), *([group] if isinstance(group, str) and group else []), name)
    category = value.get("category")
    return _Entry(place, category if isinstance(category, str) else None)


def _from_dataset(parts: list[str]) -> tuple[str, ...] | None:
    """The parts of a path from the dataset's name on; None where it names none."""
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == _ABOVE_DATASETS:
            return tuple(parts[place + 1 :])
        if parts[place] in DATASETS:
            return tuple(parts[place:])
    return None


def _place(root: Path, parts: tuple[str, ...]) -> tuple[str, ...]:
    found = _from_dataset([*root.absolute().parts, *parts, ""])
    if found is not None:
        return found[:-1]
    if parts and _SHARD.fullmatch(parts[-1]):
        return (OBJAVERSE, parts[-1])
    return parts or (root.absolute().name,)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of their files, through links (of which releases have some), once."""
    seen: set[str] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(n for n in names if n != META and not n.startswith("."))
        yield Path(folder), files


def _listing(folder: Path) -> str:
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in folder.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) + more) if names else "nothing"
