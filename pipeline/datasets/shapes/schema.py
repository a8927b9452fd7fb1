"""What a class of objects is: its parameters, how they are drawn and worded, and its builder.

A class declares its parameters as fields; drawing them, telling them in words and building the
mesh are separate steps, so that captions of a million objects need no geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pipeline.datasets.shapes.builder import Builder

Value = float | int | bool | str


@dataclass(frozen=True)
class Num:
    """A continuous parameter. The lowest and highest thirds of its range may have a word."""

    name: str
    low: float
    high: float
    low_word: str = ""
    high_word: str = ""

    def draw(self, u: float) -> float:
        """Value for ``u`` uniform in [0, 1)."""
        return round(self.low + (self.high - self.low) * u, 4)

    def attribute(self, value: Value) -> Value | None:
        """The word that is true of ``value``, or None in the middle of the range."""
        place = (float(value) - self.low) / (self.high - self.low)
        return (place < 1 / 3 and self.low_word) or (place > 2 / 3 and self.high_word) or None


@dataclass(frozen=True)
class Count:
    """A whole number of things, all of ``low`` ... ``high`` equally likely."""

    name: str
    low: int
    high: int
    one: str = ""  # noun for one of them; without it the count is never mentioned
    many: str = ""
    step: int = 1

    def draw(self, u: float) -> int:
        """Value for ``u`` uniform in [0, 1)."""
        choices = (self.high - self.low) // self.step + 1
        return self.low + self.step * min(int(u * choices), choices - 1)

    def attribute(self, value: Value) -> Value | None:
        """The count itself, where it has a noun."""
        return int(value) if self.one else None


@dataclass(frozen=True)
class Flag:
    """A part that is there or not."""

    name: str
    probability: float
    part: str = ""  # with its article: "a handle"; without it the flag is never mentioned

    def draw(self, u: float) -> bool:
        """Value for ``u`` uniform in [0, 1)."""
        return u < self.probability

    def attribute(self, value: Value) -> Value | None:
        """Whether the part is there, where it has a name."""
        return bool(value) if self.part else None


@dataclass(frozen=True)
class Choice:
    """One of several styles; ``options`` maps each to its adjective, "" for none."""

    name: str
    options: Mapping[str, str]

    def draw(self, u: float) -> str:
        """Value for ``u`` uniform in [0, 1)."""
        names = list(self.options)
        return names[min(int(u * len(names)), len(names) - 1)]

    def attribute(self, value: Value) -> Value | None:
        """The adjective, or None."""
        return self.options[str(value)] or None


Field = Num | Count | Flag | Choice


class Values:
    """Drawn parameters with attribute access, as builders read them: ``p.height``."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(f"no parameter named {name}") from None

    def rng(self) -> np.random.Generator:
        """Random numbers for small irregularities, fixed by the object's own parameters."""
        return np.random.default_rng(int(self._values["detail"]))


BuildFunction = Callable[[Values, "Builder"], None]


@dataclass(frozen=True)
class ShapeClass:
    """One class of objects."""

    name: str
    fields: tuple[Field, ...]
    build: BuildFunction
    synonyms: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()  # typical main colours
    typical: float = 0.0  # probability of one of them
    second_part: str = ""  # what bears the second colour, with its article: "a seat"
    second_needs: str = ""  # flag without which that part is not there
    second_colors: tuple[str, ...] = ()  # where given, the second colour is one of them
    materials: Mapping[str, float] = field(default_factory=dict)  # name -> weight


REGISTRY: dict[str, ShapeClass] = {}

CERAMIC = {"plain": 0.5, "striped": 0.15, "spotted": 0.15, "checkered": 0.1, "metal": 0.1}
FURNITURE = {"plain": 0.4, "wooden": 0.35, "metal": 0.1, "striped": 0.08, "checkered": 0.07}
FABRIC = {"plain": 0.5, "striped": 0.2, "spotted": 0.15, "checkered": 0.15}
PAINTED = {"plain": 0.7, "striped": 0.12, "spotted": 0.06, "checkered": 0.06, "metal": 0.06}
TOOL = {"plain": 0.4, "metal": 0.4, "wooden": 0.2}
METAL = {"metal": 0.75, "plain": 0.25}
PLAIN = {"plain": 1.0}


def shape(
    name: str,
    *fields: Field,
    synonyms: tuple[str, ...] = (),
    colors: tuple[str, ...] = (),
    typical: float = 0.75,
    second: str = "",
    second_needs: str = "",
    second_colors: tuple[str, ...] = (),
    materials: Mapping[str, float] = PAINTED,
) -> Callable[[BuildFunction], BuildFunction]:
    """Register the decorated builder as the class ``name``."""

    def register(build: BuildFunction) -> BuildFunction:
        if name in REGISTRY:
            raise ValueError(f"class {name!r} is defined twice")
        REGISTRY[name] = ShapeClass(
            name,
            fields,
            build,
            synonyms,
            colors,
            typical if colors else 0.0,
            second,
            second_needs,
            second_colors,
            dict(materials),
        )
        return build

    return register
