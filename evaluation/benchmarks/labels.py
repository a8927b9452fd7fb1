"""Label sets: which classes there are, what they are called, and where a category belongs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import InputError
from trainer.heldout import category_key

key = category_key  # categories are compared in one form everywhere


@dataclass(frozen=True)
class LabelSet:
    """Classes in order. ``by_category`` maps the normalised category to its class."""

    names: list[str]  # as given to the teacher
    by_category: dict[str, int]
    origin: str  # "categories", or the name of the file

    def __len__(self) -> int:
        return len(self.names)

    def find(self, category: str | None) -> int | None:
        """Class of a category, or None when it is not in the set."""
        return None if category is None else self.by_category.get(key(category))


def spoken(category: str) -> str:
    """A category as words for a prompt: ``coffee_mug`` to ``coffee mug``."""
    return " ".join(category.replace("_", " ").split())


def from_categories(categories: Iterable[str | None]) -> LabelSet:
    """Every category that occurs, in alphabetical order."""
    found: dict[str, str] = {}
    for category in sorted({c for c in categories if c is not None and key(c)}):
        found.setdefault(key(category), spoken(category))
    names = list(found.values())
    return LabelSet(names, {k: i for i, k in enumerate(found)}, "categories")


def from_file(path: Path) -> LabelSet:
    """Classes from a file: one name a line, a JSON list, or a JSON object category -> name.

    Classes without objects stay as wrong answers that can be given. Raises ``InputError`` when the
    file cannot be read, is empty, or names a class twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--labels {path}: not a readable text file; write one name per line"
        ) from error
    pairs = _json_pairs(text, path) if path.suffix.lower() == ".json" else _line_pairs(text)
    if not pairs:
        raise InputError(f"--labels {path}: holds no class name; write one per line")
    by_category: dict[str, int] = {}
    classes: dict[str, int] = {}
    names: list[str] = []
    for category, name in pairs:
        if key(category) in by_category:
            raise InputError(f"--labels {path}: {category!r} is there twice; remove one")
        if not key(name):
            raise InputError(f"--labels {path}: {category!r} has an empty name; write one")
        # Categories of one name are one class: two equal classes could not be told apart. Its
        # first spelling is what the teacher is given.
        by_category[key(category)] = classes.setdefault(key(name), len(classes))
        if len(names) < len(classes):
            names.append(name)
    return LabelSet(names, by_category, path.name)


def _line_pairs(text: str) -> list[tuple[str, str]]:
    names = [line.strip() for line in text.splitlines()]
    return [(name, spoken(name)) for name in names if key(name)]


def _json_pairs(text: str, path: Path) -> list[tuple[str, str]]:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--labels {path}: not JSON ({error}); see the README") from error
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [(item, spoken(item)) for item in value if key(item)]
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise InputError(f"--labels {path}: neither a list of names nor an object category -> name")
    return [(category, name) for category, name in value.items() if key(category)]
