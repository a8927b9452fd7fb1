"""Queries of several parts: words, pictures and shapes together, weighted, and what to avoid.

All parts are unit vectors u of one space. The query is the direction of their weighted sum,

    q = sum_i w_i u_i - sum_j w_j u_j   (j: what is to be avoided),   searched as q / |q|

so that a query of one part is that part, and hits stay cosines. Cosines between modalities lie on
different levels (a shape is closer to shapes than to texts), so equal weights are not equal
influence: shapes and pictures lead, words steer.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.common import InputError
from pipeline.datasets.tables import delimiter

F32 = NDArray[np.float32]
Kind = Literal["text", "image", "shape"]
COLUMNS = ("text", "image", "shape", "minus")
_WEIGHT = re.compile(r"^(.+)@(\d+(?:\.\d+)?)$", re.DOTALL)
_LEAST = 1e-4  # length of a sum below which nothing is left to search for


@dataclass(frozen=True)
class Part:
    """One part of a query; ``weight`` is negative for what is to be avoided."""

    kind: Kind
    value: str  # the text, or the path of a file
    weight: float = 1.0

    def told(self) -> str:
        """For tables: ``a mug``, ``-handle``, ``chair.png@0.5``."""
        sign = "-" if self.weight < 0 else ""
        size = abs(self.weight)
        name = self.value if self.kind == "text" else Path(self.value).name
        return f"{sign}{name}" + ("" if size == 1 else f"@{size:g}")


def parse_parts(
    texts: Iterable[str] = (),
    images: Iterable[str] = (),
    shapes: Iterable[str] = (),
    minus: Iterable[str] = (),
) -> list[Part]:
    """Parts as the options name them; ``VALUE@0.5`` has the weight 0.5.

    Raises ``InputError`` for an empty text, a weight of 0, a file that is not there, or when
    nothing is to be looked for.
    """
    found = [_part("--text", "text", value, 1) for value in texts]
    found += [_part("--image", "image", value, 1) for value in images]
    found += [_part("--shape", "shape", value, 1) for value in shapes]
    if not found:
        raise InputError("give at least one of --text, --image and --shape")
    return found + [_part("--minus", "text", value, -1) for value in minus]


def _part(option: str, kind: Kind, value: str, sign: int) -> Part:
    weight, match = 1.0, _WEIGHT.match(value)
    if match and not (kind != "text" and Path(value).is_file()):  # picture@2 may be its name
        value, weight = match[1], float(match[2])
    if not value.strip():
        raise InputError(f'{option}: is empty; say what is meant, as in {option} "a red mug"')
    if weight == 0:
        raise InputError(f"{option} {value}@0: has weight 0; leave it out")
    if kind != "text" and not Path(value).is_file():
        hint = {"image": "give a PNG, JPEG or WebP file", "shape": "give a mesh or an .npz cloud"}
        raise InputError(f"{option} {value}: no such file; {hint[kind]}")
    return Part(kind, value.strip() if kind == "text" else value, sign * weight)


def read_queries(path: Path) -> list[list[Part]]:
    """One query a line of a CSV with columns of text, image, shape and minus.

    A column may be missing, a cell empty. Paths are relative to the file. Raises ``InputError``
    that names the line.
    """
    remedy = f"give a CSV with some of the columns {', '.join(COLUMNS)}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter(file))
            rows, names = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--queries {path}: not a readable table; {remedy}") from error
    if not set(names) & set(COLUMNS[:3]):
        told = ", ".join(names)[:300] or "none"
        raise InputError(f"--queries {path}: its columns are {told}; {remedy}")
    found = []
    for line, row in enumerate(rows, 2):
        cells = {c: (row.get(c) or "").strip() for c in COLUMNS}
        files = {c: str(path.parent / cells[c]) if cells[c] else "" for c in ("image", "shape")}
        given = {**cells, **files}
        try:
            found.append(parse_parts(*([given[c]] if given[c] else [] for c in COLUMNS)))
        except InputError as error:
            raise InputError(f"--queries {path}, line {line}: {error}") from error
    if not found:
        raise InputError(f"--queries {path}: holds no line; {remedy}")
    return found


def compose(parts: Sequence[Part], embed: Callable[[Part], F32]) -> F32:
    """(D,) unit vector of a query; ``embed`` gives the unit vector (D,) of a part.

    Raises ``InputError`` when the parts cancel each other.
    """
    if len(parts) == 1:
        return embed(parts[0])
    total = np.zeros(0)
    for part in parts:
        vector = part.weight * embed(part).astype(np.float64)
        total = vector if not total.size else total + vector
    length = float(np.linalg.norm(total))
    if length < _LEAST * sum(abs(part.weight) for part in parts):
        told = ", ".join(part.told() for part in parts)
        raise InputError(f"the parts of the query cancel each other ({told}); change the weights")
    return np.asarray(total / length, np.float32)
