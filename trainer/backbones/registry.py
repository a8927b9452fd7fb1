"""Names to backbones.

A family is a module with ``PRESETS``: options by name, frozen dataclasses with ``build(width)``.
Families of other people's packages come by the entry points ``mrd3d.backbones``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, fields, replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.common import InputError
from trainer.recipe import suggestion


class Backbone(nn.Module, ABC):
    """Base of all encoders."""

    centroids: int  # leading points that must be in farthest-point order
    width: int  # D, the teacher's width
    tokens: int  # that attend to one another, the CLS token included; 0: none do
    least_rows = 1  # clouds at a time in training; 2 where a BatchNorm sees one row a cloud

    @abstractmethod
    def forward(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> Tensor:
        """(B, D) embeddings, not normalised."""

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Layers that layer decay tells apart; the last one learns at the full rate."""

    @abstractmethod
    def layer_of(self, name: str) -> int:
        """Layer, 0 to ``n_layers`` - 1, of the parameter ``name`` of ``named_parameters``."""

    def no_decay(self) -> frozenset[str]:
        """Names of parameters without weight decay, beside vectors and those of norms."""
        return frozenset()


_FAMILIES = ("pointbert", "uni3d", "pointnext")
ENTRY_POINTS = "mrd3d.backbones"


def _presets() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for family in _FAMILIES:
        found |= import_module(f"trainer.backbones.{family}").PRESETS
    for point in entry_points(group=ENTRY_POINTS):
        try:
            presets = point.load().PRESETS
        except Exception as error:  # whatever the code of another package raises
            raise InputError(
                f"the entry point {point.name} = {point.value} of {ENTRY_POINTS} does not load "
                f"({type(error).__name__}: {error}); mend or uninstall its package"
            ) from error
        if taken := sorted(found.keys() & presets.keys()):
            raise InputError(f"{point.value}: its backbone {taken[0]} is there already; rename it")
        found |= presets
    return found


def backbone_names() -> list[str]:
    """All registered names, family by family, the smaller first."""
    return list(_presets())


def resolve_options(name: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """All options of a backbone: those of its preset with ``options`` put over them.

    Raises ``InputError`` for an unknown name or option.
    """
    return asdict(_resolve(name, options or {}))


def least_points(name: str, options: dict[str, Any] | None = None) -> int:
    """Points that a cloud must have for the backbone to group them. Raises ``InputError``."""
    return int(getattr(_resolve(name, options or {}), "least_points", 1))


def build_backbone(name: str, width: int, options: dict[str, Any] | None = None) -> Backbone:
    """A freshly initialised backbone whose embeddings are ``width`` wide.

    Raises ``InputError`` for an unknown name or option.
    """
    chosen = _resolve(name, options or {})
    try:
        backbone: Backbone = chosen.build(width)
    except ValueError as error:
        raise InputError(f"model.options: {error}; correct the value") from error
    return backbone


def load_trunk(backbone: Backbone, path: str) -> None:
    """Begin with a trunk trained on images, from a file of timm; nothing for an empty path.

    Raises ``InputError`` when the backbone has no such trunk or the file is not of it.
    """
    if not path:
        return
    load = getattr(backbone, "load_trunk", None)
    if load is None:
        raise InputError(
            f"model.trunk {path}: this backbone has no trunk of timm; "
            "leave it out, or choose one of uni3d-ti, -s, -b, -l, -g"
        )
    load(Path(path))


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
        fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if wanted is tuple and fits:
            kinds = {type(item) for item in getattr(preset, key)} or {int, float, str}
            kinds |= {int} if float in kinds else set()
            fits = {type(item) for item in value} <= kinds
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise InputError(
                f"model.options.{key}: {value!r} is not a {wanted.__name__}; correct the value"
            )
    try:
        return replace(preset, **options)
    except ValueError as error:
        raise InputError(f"model.options: {error}; correct the value") from error


def require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` when an option is none of its choices."""
    if value not in choices:
        raise ValueError(f"{key} {value!r} is none of {', '.join(map(repr, choices))}")


def require_share(key: str, value: float) -> None:
    """Raise ``ValueError`` when an option is not in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{key} {value} is not in [0, 1)")
