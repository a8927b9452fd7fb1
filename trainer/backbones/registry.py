"""Names to backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, fields, replace
from typing import Any

from torch import Tensor, nn

from pipeline.common import InputError
from trainer.config import suggestion


class Backbone(nn.Module, ABC):
    """Base of all encoders."""

    centroids: int  # leading points that must be in farthest-point order
    width: int  # D, the teacher's width

    @abstractmethod
    def forward(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> Tensor:
        """(B, D) embeddings, not normalised."""


def _presets() -> dict[str, Any]:
    from trainer.backbones.pointbert import PRESETS

    return dict(PRESETS)


def backbone_names() -> list[str]:
    """All registered names, the smaller first."""
    return list(_presets())


def resolve_options(name: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """All options of a backbone: those of its preset with ``options`` put over them.

    Raises ``InputError`` for an unknown name or option.
    """
    return asdict(_resolve(name, options or {}))


def build_backbone(name: str, width: int, options: dict[str, Any] | None = None) -> Backbone:
    """A freshly initialised backbone whose embeddings are ``width`` wide.

    Raises ``InputError`` for an unknown name or option.
    """
    from trainer.backbones.pointbert import PointBert

    return PointBert(_resolve(name, options or {}), width)


def _resolve(name: str, options: dict[str, Any]) -> Any:
    presets = _presets()
    if name not in presets:
        raise InputError(
            f"model.backbone {name}: unknown{suggestion(name, list(presets))}; "
            "`trainer backbones` lists all"
        )
    preset = presets[name]
    known = [field.name for field in fields(preset)]
    # TOML and JSON have lists where the options have tuples.
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    for key, value in options.items():
        if key not in known:
            raise InputError(
                f"model.options.{key}: {name} has no such option{suggestion(key, known)}; "
                f"known are {', '.join(known)}"
            )
        wanted = type(getattr(preset, key))
        if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
            raise InputError(
                f"model.options.{key}: {value!r} is not a {wanted.__name__}; correct the value"
            )
    try:
        return replace(preset, **options)
    except ValueError as error:
        raise InputError(f"model.options: {error}; correct the value") from error
