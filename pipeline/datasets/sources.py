"""The sources that ``--dataset`` names: what each is, how to get it, how its dataset is built."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.common import InputError
from pipeline.datasets.base import Dataset
from pipeline.shards.storage import shown


@dataclass(frozen=True)
class SourceOptions:
    """What a user may say about a source. None: not said."""

    root: Path | None = None
    root_uri: str | None = None  # in its place: a folder on another store
    metadata: Path | None = None
    up_axis: str | None = None
    count: int | None = None
    seed: int | None = None
    subset: str | None = None  # a part or a variant of the source: lvis, OBJ_BG, v2 ...
    split: str | None = None  # train, val or test only
    pattern: str | None = None
    cache: Path | None = None  # where downloads are kept
    cache_bytes: int | None = None  # most bytes that the cache may hold
    delete_after_use: bool | None = None  # of a downloaded mesh


# Fields whose option has another name; an address is given in the place of a folder.
_OPTION = {"cache_bytes": "--cache-size", "root_uri": "--root"}


@dataclass(frozen=True)
class Source:
    """One source of objects, as ``pipeline datasets`` tells it."""

    name: str
    summary: str
    licence: str
    size: str  # objects and bytes, as published
    get: str  # what to download by hand and where to put it, or that nothing is needed
    options: tuple[str, ...]  # fields of SourceOptions that it reads, beside --dataset
    required: tuple[str, ...]  # those that must be given
    build: Callable[[SourceOptions], Dataset]
    subsets: tuple[str, ...] = ()  # values of --subset, the default first
    layout: str = ""  # what lies below --root, where that is fixed

    def to_json(self) -> dict[str, Any]:
        """What ``pipeline datasets --json`` tells: options as they are typed."""
        return {
            "name": self.name,
            "summary": self.summary,
            "licence": self.licence,
            "size": self.size,
            "get": self.get,
            "layout": self.layout,
            "options": list(dict.fromkeys(_typed(name) for name in (*self.options, "count"))),
            "required": [_typed(name) for name in self.required],
            "subsets": list(self.subsets),
        }


def _typed(field: str) -> str:
    """The option of a field of ``SourceOptions``."""
    return _OPTION.get(field, "--" + field.replace("_", "-"))


# One module per source (or per family) under pipeline.datasets, each with SOURCE or SOURCES.
_MODULES = (
    "procedural",
    "folder",
    "objaverse",
    "objaverse_xl",
    "points",
    "shapenet",
    "abo",
    "future3d",
    "modelnet",
    "modelnet_points",
    "scanobjectnn",
    "omniobject3d",
    "gso",
)


def sources() -> dict[str, Source]:
    """Every source by name."""
    found: dict[str, Source] = {}
    for module in _MODULES:
        loaded = import_module(f"pipeline.datasets.{module}")
        for source in getattr(loaded, "SOURCES", None) or (loaded.SOURCE,):
            found[source.name] = source
    return found


def make_dataset(name: str, options: SourceOptions) -> Dataset:
    """The dataset that ``--dataset name`` and the options say.

    ``name`` is a source's, or the path of a Python file with a ``SOURCE`` of one's own. Raises
    ``InputError`` that names the option: an unknown source or subset, an option that the source
    does not read, one that it needs.
    """
    if name.endswith(".py"):
        from pipeline.datasets.plugged import PluggedDataset, read_source

        source, code = read_source(Path(name))
        _check(source, options)
        return PluggedDataset(Path(name).name, code, options)
    known = sources()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
        raise InputError(f"--dataset {name}: unknown; {hint} (see `pipeline datasets`)")
    _check(known[name], options)
    return known[name].build(options)


def _check(source: Source, options: SourceOptions) -> None:
    """Raise ``InputError`` for an option that the source does not read, or one that it lacks."""
    name = source.name
    for field in fields(options):
        given = getattr(options, field.name) is not None
        option = _typed(field.name)
        # --count is read by every command: how many objects at most.
        if given and field.name == "root_uri" and field.name not in source.options:
            raise InputError(
                f"--root {shown(str(options.root_uri))}: {name} reads local folders only; copy the "
                "files to one, or mount the store"
            )
        if given and field.name not in (*source.options, "count"):
            raise InputError(f"{option}: the source {name} does not read it; leave it out")
        given = given or (field.name == "root" and options.root_uri is not None)
        if not given and field.name in source.required:
            raise InputError(f"{option}: {name} needs it; {source.get}")
    if options.subset is not None and options.subset not in source.subsets:
        raise InputError(
            f"--subset {options.subset}: {name} has no such subset; "
            f"use one of {', '.join(source.subsets)}"
        )
