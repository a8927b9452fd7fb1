"""Captions of procedural objects: every word is read off the object's parameters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.captions import article
from pipeline.datasets.shapes.schema import Choice, Count, Flag, Num, ShapeClass, Value

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# Styles that are nouns, or as good as: they stand right before the object's noun, after colour and
# material: "a tall red estate car", "a light blue steam passenger train".
_KINDS = frozenset(
    """
    arch beam suspension truss jet propeller grand upright hatchback estate box flatbed tank dump
    steam diesel passenger freight bunk four-poster globe tripod pedestal trestle sunburst swivel
    """.split()  # noqa: SIM905
)
_FRAMES = ("{}", "{}", "a 3D model of {}", "a picture of {}", "this is {}")


def with_article(phrase: str) -> str:
    """``phrase`` with the indefinite article that its first sound asks for."""
    return f"{article(phrase)} {phrase}"


def attributes(
    shape: ShapeClass, values: Mapping[str, Value], color: str, material: str, second_color: str
) -> dict[str, Value]:
    """What can be said of an object: field name -> word, count or presence; colours, material."""
    found: dict[str, Value] = {"color": color, "material": material}
    if shape.second_part and (not shape.second_needs or values[shape.second_needs]):
        found["second_color"] = second_color
    for field in shape.fields:
        said = field.attribute(values[field.name])
        if said is not None:
            found[field.name] = said
    return found


def captions(
    shape: ShapeClass, said: Mapping[str, Value], rng: np.random.Generator, count: int = 2
) -> list[str]:
    """``count`` different sentences, each with its own choice of what to mention."""
    found: list[str] = []
    for attempt in range(8 * count):
        # The first tells much, later ones less: short queries must be understood as well.
        phrase = _phrase(shape, said, rng, keep=0.85 if not found else 0.45)
        sentence = str(rng.choice(_FRAMES)).format(phrase)
        if sentence not in found or attempt >= 7 * count:
            found.append(sentence)
        if len(found) == count:
            break
    return found


def _phrase(
    shape: ShapeClass, said: Mapping[str, Value], rng: np.random.Generator, keep: float
) -> str:
    adjectives, parts = _words(shape, said)
    sizes = [word for word in adjectives if rng.random() < keep]
    rng.shuffle(sizes)
    words = [word for word in sizes[:2] if word not in _KINDS]
    kinds = [word for word in adjectives if word in _KINDS and word in sizes[:2]]
    material = str(said["material"])
    if rng.random() < max(keep, 0.6):
        words.append(str(said["color"]))
    if material != "plain" and rng.random() < max(keep, 0.6):
        words.append(material)
    noun = shape.name
    if shape.synonyms and rng.random() < 0.25:
        noun = str(rng.choice(shape.synonyms))
    phrase = with_article(" ".join([*words, *kinds, noun]))
    kept = [part for part in parts if rng.random() < keep * 0.7]
    rng.shuffle(kept)
    with_parts = [p for p in kept if not p.startswith("without ")][:2]
    without = [p for p in kept if p.startswith("without ")][:1]
    if with_parts:
        phrase += " with " + " and ".join(with_parts)
    elif without:
        phrase += " " + without[0]
    return phrase


def _words(shape: ShapeClass, said: Mapping[str, Value]) -> tuple[list[str], list[str]]:
    """Adjectives, and parts that follow "with" (or start with "without")."""
    adjectives: list[str] = []
    parts: list[str] = []
    if "second_color" in said:
        parts.append(_colored(shape.second_part, str(said["second_color"])))
    for field in shape.fields:
        value = said.get(field.name)
        if value is None:
            continue
        if isinstance(field, Num | Choice):
            adjectives.append(str(value))
        elif isinstance(field, Count):
            parts.append(counted(int(value), field.one, field.many))
        elif isinstance(field, Flag):
            parts.append(field.part if value else f"without {field.part}")
    return adjectives, parts


def counted(value: int, one: str, many: str) -> str:
    """A number and its noun: "one leg", "four legs", "12 slats"."""
    number = _NUMBERS[value] if value < len(_NUMBERS) else str(value)
    return f"{number} {one if value == 1 else many}"


def _colored(part: str, color: str) -> str:
    """Colour a part: "a seat" to "a red seat", "wheels" to "red wheels"."""
    for start in ("a ", "an "):
        if part.startswith(start):
            return with_article(f"{color} {part.removeprefix(start)}")
    return f"{color} {part}"
