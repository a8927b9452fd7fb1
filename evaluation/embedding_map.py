"""Embeddings as a map: t-SNE of an embeddings file, coloured by class.

t-SNE (van der Maaten and Hinton, 2008) by cosine, started from the principal components, so that
the same file gives the same map. Neighbours on a map are neighbours in the embedding; distances
between far groups and the sizes of groups mean nothing.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from evaluation.embeddings import read_embeddings
from pipeline.charts import cut
from pipeline.common import InputError

F32 = NDArray[np.float32]
MAX_POINTS = 3000  # drawn; t-SNE takes some 15 s for them
MAX_LABELS = 30  # classes named on the map
_LEAST = 5
_PERPLEXITY = 30.0
_GOLDEN = 0.61803398875  # of the colour wheel between classes, so that neighbours differ


@dataclass(frozen=True)
class MapSection:
    """One map and what stands below it."""

    model: str
    drawing: Markup
    told: str


def map_section(path: Path, seed: int = 0) -> MapSection:
    """The map of an embeddings file. Raises ``InputError`` for too few rows, or another file."""
    loaded = read_embeddings(path)
    rows = loaded.rows
    if len(rows) < _LEAST:
        raise InputError(f"--map {path}: {len(rows)} rows are too few for a map; give more")
    chosen = np.random.default_rng(seed).permutation(len(rows))[:MAX_POINTS]
    chosen = np.sort(chosen)
    places = positions(rows.vectors[chosen], seed)
    classes = [rows.category[i] for i in chosen]
    drawing = scatter(places, classes, [rows.uid[i] for i in chosen])
    told = f"{len(chosen):,} objects"
    if len(chosen) < len(rows):
        told += f", sampled from {len(rows):,}"
    return MapSection(loaded.meta.model.name, drawing, told)


def positions(vectors: F32, seed: int = 0) -> F32:
    """(N, 2) t-SNE positions of unit vectors (N, D); the same for the same input."""
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    model = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=seed)
    return np.asarray(model.fit_transform(vectors), np.float32)


def scatter(
    places: F32, classes: Sequence[str | None], names: Sequence[str], side: int = 640
) -> Markup:
    """Dots (N, 2) in the colours of their classes, the largest classes named in their middle.

    Objects without a class are grey. Pointing at a dot names it.
    """
    low, high = places.min(0), places.max(0)
    span = float(max((high - low).max(), 1e-9))
    at = 12 + (places - (low + high) / 2 + span / 2) / span * (side - 24)
    counts = Counter(name for name in classes if name is not None)
    order = sorted(counts)
    colors = {name: _color(i) for i, name in enumerate(order)}
    parts = [f'<svg viewBox="0 0 {side} {side}" role="img" class="map" style="max-width:{side}px">']
    for (x, y), name, uid in zip(at, classes, names, strict=True):
        color = "#8a9097" if name is None else colors[name]
        title = escape(f"{name or 'no class'}: {uid}")
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"><title>{title}</title>'
            "</circle>"
        )
    taken: list[tuple[float, float, float]] = []  # middle and half width of what is written
    for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        mine = at[[i for i, other in enumerate(classes) if other == name]]
        x, y = (float(value) for value in np.median(mine, axis=0))
        told = cut(name.replace("_", " "), 20)
        half = 3.4 * len(told)
        if any(abs(x - a) < half + b and abs(y - c) < 12 for a, c, b in taken):
            continue
        taken.append((x, y, half))
        parts.append(
            f'<text class="name" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(told)}</text>'
        )
        if len(taken) == MAX_LABELS:
            break
    return Markup("".join(parts) + "</svg>")  # names are escaped above


def _color(number: int) -> str:
    """A colour that is legible on light and dark."""
    hue = (number * _GOLDEN) % 1
    lightness = (0.42, 0.52, 0.62)[number % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.62)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
