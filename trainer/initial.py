"""The weights that a student begins with: those of another run, released ones, a timm trunk."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.common import InputError, file_hash
from pipeline.shards import TeacherInfo
from trainer.backbones import Backbone, load_trunk, resolve_options
from trainer.checkpoint import WEIGHTS, is_best, load_model, read_config, resolve
from trainer.config import ModelConfig

# Options that a run may choose anew: they change how it learns, not what a weight means.
TRAINING_ONLY = ("patch_dropout", "drop_path", "head_dropout")


def settled(model: ModelConfig) -> ModelConfig:
    """The same with paths made absolute: a run goes on from other folders, and in other processes.

    The student of the package, models of a hub and what is not there stay as they are written.
    """
    changes = {}
    if model.init and (Path(model.init).exists() or is_best(Path(model.init))):
        changes["init"] = str(Path(model.init).absolute())
    if model.trunk:
        changes["trunk"] = str(Path(model.trunk).absolute())
    return model.model_copy(update=changes)


def pinned(model: ModelConfig) -> tuple[ModelConfig, str]:
    """``settled``, a run by the checkpoint that it gives now, and the SHA-256 of the weights.

    "" where a student begins with none. Raises ``InputError`` when they cannot be found.
    """
    model = settled(model)
    if model.trunk:
        if not Path(model.trunk).is_file():
            raise InputError(f"model.trunk {model.trunk}: no such file; give weights of timm")
        return model, file_hash(Path(model.trunk))
    if not model.init:
        return model, ""
    path = _found(model.init)
    if path.is_file():
        return model, file_hash(path)
    folder = resolve(path)
    if Path(model.init).is_absolute():
        model = model.model_copy(update={"init": str(folder)})
    return model, str(read_config(folder)["files"][WEIGHTS])


def _found(init: str) -> Path:
    from trainer.student import find

    try:
        return find(init)
    except InputError as error:
        raise InputError(f"model.init: {error}") from error


def begin(backbone: Backbone, model: ModelConfig) -> TeacherInfo | None:
    """Put the weights of ``model.init`` or ``model.trunk`` into a new backbone.

    Returns the teacher of the checkpoint, None without one. Raises ``InputError`` when there is no
    such checkpoint or file, or it is of another backbone, another width or other options.
    """
    load_trunk(backbone, model.trunk)
    if not model.init:
        return None
    source = f"model.init {model.init}"
    path = _found(model.init)
    try:
        loaded = load_model(path)
    except InputError as error:
        raise InputError(f"model.init: {error}") from error
    theirs = loaded.config["backbone"]
    name = theirs["name"]
    if name != model.backbone:
        raise InputError(
            f"{source}: a {name}, the recipe has {model.backbone}; --set model.backbone={name}"
        )
    ours = resolve_options(name, model.options)
    changes = [
        f"--set model.options.{key}={_shown(value)}"
        for key, value in resolve_options(name, theirs["options"]).items()
        if key not in TRAINING_ONLY and value != ours[key]
    ]
    if changes:
        raise InputError(f"{source}: options differ from the recipe; {' '.join(changes)}")
    if loaded.backbone.width != backbone.width:
        raise InputError(
            f"{source}: embeddings of {loaded.backbone.width} numbers, those of the shards' "
            f"teacher have {backbone.width}; embed the shards with {loaded.teacher.label}, or "
            "start from another checkpoint"
        )
    backbone.load_state_dict(loaded.backbone.state_dict())
    return loaded.teacher


def _shown(value: object) -> str:
    """As ``--set`` takes it in a shell: words bare, lists without spaces."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
