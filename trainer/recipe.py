"""Recipes as they are read: TOML files, dotted overrides, errors that name key and remedy."""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.common import InputError
from trainer.config import NonNegative, Recipe, Section, Whole

RECIPES = Path(__file__).parent / "recipes"
TWIN = "align-"  # before the name of a recipe: the same without distillation


class About(Section):
    """What a recipe says of itself; it decides nothing."""

    title: str
    data: str  # what it was made for
    gpus: Whole = 0  # 0: a CPU is enough
    gpu: str = ""
    hours: NonNegative  # expected, on that many GPUs
    basis: str  # where the hours come from
    source: str = ""  # publication and deviations from it


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, with the align-only twins."""
    names = [path.stem for path in RECIPES.glob("*.toml")]
    distilling = [name for name in names if load_recipe(name).loss.distill.enabled]
    return sorted([*names, *(_twin(name) for name in distilling)])


def _twin(name: str) -> str:
    """Name of a recipe without its distillation: the control that a gain is measured against."""
    return f"{TWIN}{name.removeprefix('mrd-')}"


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Recipe by name or by path of a TOML file, with ``key=value`` overrides applied in order.

    A file may begin with ``extends = "name"`` (or a path, from its own folder) and then holds
    what differs. ``align-X`` is ``mrd-X`` (or ``X``) with ``loss.distill.enabled = false``.

    Raises ``InputError`` for an unknown name, a file that is not TOML, an unknown key (with the
    nearest known one) or a value out of range.
    """
    values = _values(name)
    values.pop("about", None)
    if not overrides:
        return parse_recipe(values, f"--recipe {name}")
    changed = copy.deepcopy(values)
    for override in overrides:
        _apply(changed, override)
    try:
        return parse_recipe(changed, "--set")
    except InputError:
        parse_recipe(values, f"--recipe {name}")  # the fault may be the recipe's own
        raise


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with ``key=value`` overrides applied. Raises ``InputError`` as ``load_recipe``."""
    if not overrides:
        return recipe
    values = recipe.model_dump(mode="json")
    for override in overrides:
        _apply(values, override)
    return parse_recipe(values, "--set")


def load_about(name: str) -> About:
    """What a recipe says of itself. Raises ``InputError`` as ``load_recipe``, or without it."""
    try:
        return About.model_validate(_values(name).get("about", {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"--recipe {name}: [about] {key}: {first['msg'].lower()}") from error


def _values(name: str) -> dict[str, Any]:
    """Nested values of a recipe by name or path, what it extends included."""
    if not name.endswith(".toml"):
        known = [path.stem for path in RECIPES.glob("*.toml")]
        for stem in known:
            if name == _twin(stem) and name not in known:
                values = _values(stem)
                _apply(values, "loss.distill.enabled=false")
                return values
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    return _read(path, name, ())


def _read(path: Path, name: str, below: tuple[Path, ...]) -> dict[str, Any]:
    if path in below:
        raise InputError(f"{path}: extends itself, by way of {below[-1]}; break the cycle")
    if not path.is_file():
        known = recipe_names()
        source = f"{below[-1]}: extends" if below else "--recipe"
        raise InputError(
            f"{source} {name}: no such {'file' if name.endswith('.toml') else 'recipe'}"
            f"{suggestion(name, known)}; known are {', '.join(known)}, or give a .toml file"
        )
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error}); correct the file") from error
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise InputError(f"{path}: extends is not the name of a recipe; correct the file")
    file = path.parent / parent if parent.endswith(".toml") else RECIPES / f"{parent}.toml"
    return merged(_read(file, parent, (*below, path)), values)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over`` put in, table by table."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def parse_recipe(values: dict[str, Any], source: str) -> Recipe:
    """Validate nested values; ``source`` names where they came from in messages."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(error)}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise InputError(f"--set {override}: not of the form key=value; try --set optim.lr=1e-3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word, such as loss.distill.discrepancy=l2
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise InputError(f"--set {override}: {parent} is a value, not a section")
    section[last] = value


def _explain(error: ValidationError) -> str:
    """First problem as one line: key, what is wrong, remedy."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = list(known_keys())
        return f"unknown key {key}{suggestion(key, known)}; `trainer recipes --keys` lists all"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = first["input"]
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    if first["type"] == "tuple_type":
        form = json.dumps(flatten(Recipe())[key] or [given], default=str)
        return f"{key}: {message}{shown}; correct it in the recipe or with --set '{key}={form}'"
    if first["type"] == "value_error":  # several keys do not fit together
        return f"{f'{key}: ' if key else ''}{message}; correct it in the recipe or with --set"
    return f"{key}: {message}{shown}; correct it in the recipe or with --set {key}=..."


def suggestion(word: str, known: Sequence[str]) -> str:
    """``, did you mean X?`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near:
        last = {key.rsplit(".", 1)[-1]: key for key in known}
        near = [last[hit] for hit in difflib.get_close_matches(word.rsplit(".", 1)[-1], last, n=1)]
    return f", did you mean {near[0]}?" if near else ""


def known_keys(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a recipe."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from known_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Dotted keys to values of a recipe."""

    def walk(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict) and f"{prefix}{key}" != "model.options":
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(recipe.model_dump(mode="json"), ""))
