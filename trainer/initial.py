"""The weights that a student begins with: those of another run, released ones, a timm trunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.common import InputError
from pipeline.shards import TeacherInfo
from trainer.backbones import Backbone, load_trunk, resolve_options
from trainer.checkpoint import load_model
from trainer.config import ModelConfig

# Options that a run may choose anew: they change how it learns, not what a weight means.
FREE = ("patch_dropout", "drop_path")


def begin(backbone: Backbone, model: ModelConfig) -> TeacherInfo | None:
    """Put the weights of ``model.init`` or ``model.trunk`` into a new backbone.

    Returns the teacher of the checkpoint, None without one. Raises ``InputError`` when there is no
    such checkpoint or file, or it is of another backbone, another width or other options.
    """
    load_trunk(backbone, model.trunk)
    if not model.init:
        return None
    from trainer.student import find

    source = f"model.init {model.init}"
    try:
        loaded = load_model(find(model.init))
    except InputError as error:
        raise InputError(f"model.init: {error}") from error
    name, options = loaded.config["backbone"]["name"], loaded.config["backbone"]["options"]
    if name != model.backbone:
        raise InputError(
            f"{source}: a {name}, the recipe has {model.backbone}; --set model.backbone={name}"
        )
    changes = _changes(options, resolve_options(name, model.options))
    if changes:
        raise InputError(f"{source}: of other options than the recipe; {' '.join(changes)}")
    if loaded.backbone.width != backbone.width:
        raise InputError(
            f"{source}: embeddings of {loaded.backbone.width} numbers, those of the shards' "
            f"teacher have {backbone.width}; embed the shards with {loaded.teacher.label}, or "
            "begin with another checkpoint"
        )
    backbone.load_state_dict(loaded.backbone.state_dict())
    return loaded.teacher


def _changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """``--set`` of every option that would have to be as in the checkpoint."""
    return [
        f"--set model.options.{key}={_toml(theirs[key])}"
        for key in ours
        if key not in FREE and key in theirs and _plain(theirs[key]) != _plain(ours[key])
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(_plain(value)).replace(" ", "")
