"""Parametric objects of everyday classes with true captions: any number, from a seed.

Object i of a seed is a pure function of (seed, i): nothing is stored, a record is made when it is
asked for, and any worker can build any object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.common import canonical_json, content_hash
from pipeline.datasets import grammar
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.shapes import (
    buildings,
    craft,
    devices,
    figures,
    fixtures,
    furniture,
    household,
    kitchen,
    nature,
    storage,
    street,
    tools,
    vehicles,
)
from pipeline.datasets.shapes.builder import Builder
from pipeline.datasets.shapes.materials import METALS, PALETTE, WOODS, jittered
from pipeline.datasets.shapes.schema import REGISTRY, ShapeClass, Value, Values
from pipeline.datasets.sources import Source, SourceOptions
from pipeline.scene import Mesh

# Importing a theme registers its classes.
THEMES = (
    buildings,
    craft,
    devices,
    figures,
    fixtures,
    furniture,
    household,
    kitchen,
    nature,
    storage,
    street,
    tools,
    vehicles,
)
CLASSES: tuple[str, ...] = tuple(sorted(REGISTRY))

MAX_YAW_DEG = 15.0
MAX_STRETCH = 0.10
_ORDER = 0xC1A55  # sets the stream of class orders apart from the streams of objects


@dataclass(frozen=True)
class ObjectSpec:
    """Everything that one object is made of, before any geometry."""

    class_name: str
    params: dict[str, Any]  # drawn fields, colours (HSV), material, yaw in degrees, stretch (3,)
    attributes: dict[str, Value]  # what captions may say
    captions: tuple[str, ...]


@dataclass(frozen=True)
class ProceduralDataset:
    """``count`` objects of ``seed``, the first being object number ``start``.

    Classes are balanced: every run of ``len(CLASSES)`` consecutive objects that starts at a
    multiple of it holds each class once.
    """

    n_objects: int = 0
    seed: int = 0
    start: int = 0

    def __init__(self, count: int, seed: int = 0, start: int = 0) -> None:
        if count < 0 or seed < 0 or start < 0:
            raise ValueError("count, seed and start must not be negative")
        object.__setattr__(self, "n_objects", count)
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "start", start)

    @property
    def name(self) -> str:
        """Name of the source."""
        return "procedural"

    @property
    def options(self) -> dict[str, Any]:
        """The seed. How many objects there are is not part of what each of them is."""
        return {"seed": self.seed, "classes": len(CLASSES)}

    def records(self) -> Iterator[Record]:
        """Records in order, each made when it is asked for."""
        for index in range(self.start, self.start + self.n_objects):
            spec = draw(self.seed, index)
            yield Record(
                uid=f"procedural/{self.seed}-{index:08d}",
                dataset=self.name,
                source=f"seed {self.seed}, object {index}",
                key=f"{self.seed}:{index}",
                category=spec.class_name,
                texts=(spec.class_name, *spec.captions),
                text_sources=("name", *["caption"] * len(spec.captions)),
            )

    def count(self) -> int | None:
        """How many objects there are."""
        return self.n_objects

    def load(self, record: Record) -> Asset:
        """Build the object."""
        spec = describe(record)
        identity = canonical_json({"class": spec.class_name, "params": spec.params})
        return Asset(build(spec), content_hash(identity), 0)


def class_names() -> tuple[str, ...]:
    """Names of all classes, sorted."""
    return CLASSES


def describe(record: Record) -> ObjectSpec:
    """The specification of a record's object."""
    seed, _, index = record.key.partition(":")
    return draw(int(seed), int(index))


def build(spec: ObjectSpec) -> Mesh:
    """The mesh of a specification: normalised, +y up, front +z."""
    builder = Builder()
    REGISTRY[spec.class_name].build(Values(spec.params), builder)
    return builder.finish(spec.params)


def draw(seed: int, index: int, class_name: str | None = None) -> ObjectSpec:
    """Object ``index`` of ``seed``; ``class_name`` overrides its class (for looking at one)."""
    if class_name is None:
        block, place = divmod(index, len(CLASSES))
        class_name = CLASSES[_class_order(seed, block)[place]]
    shape = REGISTRY[class_name]
    rng = np.random.default_rng([seed, index])
    values: dict[str, Any] = {f.name: f.draw(float(rng.random())) for f in shape.fields}
    material = str(rng.choice(list(shape.materials), p=_weights(shape)))
    color = _main_color(shape, material, rng)
    others = shape.second_colors or tuple(PALETTE)
    second = str(rng.choice([name for name in others if name != color] or list(others)))
    pattern = str(rng.choice([name for name in PALETTE if name != color]))
    params = {
        **values,
        "material": material,
        "color_hsv": jittered(color, rng.random(3)),
        "second_hsv": jittered(second, rng.random(3)),
        "pattern_hsv": jittered(pattern, rng.random(3)),
        "pattern_scale": round(float(rng.uniform(0.25, 0.5)), 4),
        "yaw": round(float(rng.uniform(-MAX_YAW_DEG, MAX_YAW_DEG)), 3),
        "stretch": [round(float(x), 4) for x in rng.uniform(1 - MAX_STRETCH, 1 + MAX_STRETCH, 3)],
        "detail": int(rng.integers(1 << 31)),
    }
    said = grammar.attributes(shape, values, color, material, second)
    return ObjectSpec(class_name, params, said, tuple(grammar.captions(shape, said, rng)))


def _main_color(shape: ShapeClass, material: str, rng: np.random.Generator) -> str:
    if shape.colors and rng.random() < shape.typical:
        return str(rng.choice(shape.colors))
    if material == "metal":
        return str(rng.choice(list(METALS)))
    if material == "wooden":
        return str(rng.choice(WOODS))
    return str(rng.choice(list(PALETTE)))


def _weights(shape: ShapeClass) -> list[float]:
    total = sum(shape.materials.values())
    return [weight / total for weight in shape.materials.values()]


@lru_cache(maxsize=64)
def _class_order(seed: int, block: int) -> tuple[int, ...]:
    order = np.random.default_rng([seed, _ORDER, block]).permutation(len(CLASSES))
    return tuple(int(place) for place in order)


def _build(options: SourceOptions) -> ProceduralDataset:
    return ProceduralDataset(count=options.count or 0, seed=options.seed or 0)


SOURCE = Source(
    name="procedural",
    summary=f"parametric objects of {len(CLASSES)} everyday classes with captions, made on the fly",
    licence="Apache-2.0 (made by this package)",
    size="any number (--count), nothing on disk",
    get="say how many objects to make",
    options=("count", "seed"),
    required=("count",),
    build=_build,
)
