"""What a run folder says of the run: ``run.json`` and ``environment.json``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.common import InputError, check_place, versions, write_json
from trainer.config import Recipe
from trainer.initial import settled
from trainer.recipe import flatten, override_recipe, parse_recipe

FORMAT = "mrd3d-run"
RUN = "run.json"

# What decides only what is recorded and how fast it goes, not what is learned.
FREE = (
    "data.cache_mib",
    "data.prefetch",
    "data.readers",
    "train.log_every",
    "train.keep",
    "train.parallel",
    "train.recompute",
    "train.wandb",
)
# What a resumed run may change: also what a machine may be too small for.
RESUMABLE = (*FREE, "train.micro_batch", "train.compile")


def require_new(out: Path) -> None:
    """Raise ``InputError`` where no run folder can be begun."""
    check_place(out, "--out", folder=True)
    if (out / RUN).is_file():
        raise InputError(
            f"--out {out}: already exists; `trainer resume {out}` continues it, or choose "
            "another folder"
        )
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out}: holds other files; choose another folder")


def absolute(shards: Sequence[str | Path]) -> list[str]:
    """Shard sets as they are found from other folders; remote ones as they are."""
    return [str(s) if "://" in str(s) else str(Path(s).absolute()) for s in shards]


def write_run(out: Path, recipe: Recipe, shards: Sequence[str | Path]) -> None:
    """Begin a run folder."""
    out.mkdir(parents=True, exist_ok=True)
    value = {
        "format": FORMAT,
        "recipe": recipe.model_dump(mode="json"),
        "shards": absolute(shards),
    }
    write_json(out / RUN, value)


def read_run(out: Path) -> tuple[Recipe, list[str]]:
    """Recipe and shards that a run began with. Raises ``InputError`` where there is none."""
    file = out / RUN
    if not file.is_file():
        raise InputError(
            f"{out}: no run to resume ({RUN} is missing); start one with `trainer run --out {out}`"
        )
    try:
        value = json.loads(file.read_text())
        return parse_recipe(value["recipe"], str(file)), list(value["shards"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: damaged ({error}); start another run") from error


def reopen(
    out: Path, recipe: Recipe | None, shards: Sequence[str | Path], overrides: Sequence[str]
) -> tuple[Recipe, Sequence[str | Path]]:
    """Recipe and shards of an existing run, checked against those given.

    Raises ``InputError`` where there is none, or a key differs that a resumed run may not change.
    """
    known, roots = read_run(out)
    recipe = override_recipe(recipe or known, overrides)
    if recipe.model != known.model:  # what the run has is settled: there may be a folder `demo` now
        recipe = recipe.model_copy(update={"model": settled(recipe.model)})
    ours, theirs = flatten(recipe), flatten(known)
    for key, now in ours.items():
        if now != theirs.get(key) and key not in RESUMABLE:
            raise InputError(
                f"resume: {key} is {now!r}, the run started with {theirs.get(key)!r}; "
                "leave out --recipe and --set, or start another run"
            )
    return recipe, shards or roots


def environment(device: torch.device) -> dict[str, Any]:
    """Machine and library versions of a run, without names of hosts or users."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "versions": versions("mrd3d", "torch", "numpy", "pyarrow", "safetensors", "pydantic"),
    }
