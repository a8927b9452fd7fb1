"""The weights that a student begins with: those of another run, released ones, a timm trunk."""

from __future__ import annotations

import json

from pipeline.common import InputError
from pipeline.shards import TeacherInfo
from trainer.backbones import Backbone, load_trunk, resolve_options
from trainer.checkpoint import load_model
from trainer.config import ModelConfig

# Options that a run may choose anew: they change how it learns, not what a weight means.
TRAINING_ONLY = ("patch_dropout", "drop_path")


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
        raise InputError(f"{source}: of other options than the recipe; {' '.join(changes)}")
    if loaded.backbone.width != backbone.width:
        raise InputError(
            f"{source}: embeddings of {loaded.backbone.width} numbers, those of the shards' "
            f"teacher have {backbone.width}; embed the shards with {loaded.teacher.label}, or "
            "begin with another checkpoint"
        )
    backbone.load_state_dict(loaded.backbone.state_dict())
    return loaded.teacher


def _shown(value: object) -> str:
    """As ``--set`` takes it in a shell: words bare, lists without spaces."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
