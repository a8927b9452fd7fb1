"""``pipeline inspect --html``: one self-contained page about a shard set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.catalog.analysis import (
    FACE_BINS,
    MAX_WORDS,
    Analysis,
    DuplicateGroups,
    Member,
)
from pipeline.catalog.features import IMAGES
from pipeline.charts import Bar, bar_chart, histogram
from pipeline.cloud_pictures import data_uri, draw_cloud
from pipeline.common import atomic_path, versions
from pipeline.console import ProgressBar
from pipeline.pages import render_page
from pipeline.shards import ShardSet

F32 = NDArray[np.float32]
PICTURE_SIZE = 96  # pixels
COSINE_BINS = 40
MAX_DATASETS = 12


@dataclass(frozen=True)
class GroupSection:
    """Groups of duplicates, with how many members are not shown."""

    found: DuplicateGroups
    groups: list[tuple[list[Member], int]]


def write_page(out: Path, root: str | Path, found: Analysis) -> None:
    """Write the page about the set at ``root`` atomically."""
    shown = [m for group in found.near.shown + found.same_files.shown for m in group]
    drawn = [*shown, *found.lonely, *found.disagreeing]
    rows = {member.row for member in drawn}
    common = common_folder([m.uid for m in drawn] + [m.nearest_uid or m.uid for m in drawn])
    page = render_page(
        "pipeline",
        "data",
        "catalog.html.j2",
        found=found,
        seen=found.inspection,
        facts=[*facts(found), *([("Uids below begin with", common)] if common else [])],
        common=common,
        by_image=found.measure == IMAGES,
        classes=class_chart(found),
        class_sizes=class_size_chart(found.class_counts),
        faces=face_chart(found),
        colors=color_chart(found),
        words=word_chart(found.words),
        max_words=MAX_WORDS,
        nearest=cosine_chart(found.nearest, (found.threshold, f"{found.threshold:g}"), 520),
        agreement=cosine_chart(found.agreement),
        sections={"near": section(found.near), "same": section(found.same_files)},
        pictures=draw_rows(ShardSet.open(root), rows),
        version=versions("mrd3d").get("mrd3d", ""),
    )
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def common_folder(uids: Sequence[str]) -> str:
    """What all uids begin with, up to a slash: left out where room is scarce."""
    levels = zip(*(uid.split("/")[:-1] for uid in uids), strict=False)
    same = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return "/".join([*same, ""])


def facts(found: Analysis) -> list[tuple[str, str]]:
    """The head of the page: what, and how much of it."""
    seen = found.inspection

    def share(part: int) -> str:
        return f"{part:,} ({part / seen.rows:.1%})"

    size = "" if seen.image_size is None else f" of {seen.image_size} px"
    return [
        ("Objects", f"{seen.rows:,}"),
        ("Failures", f"{seen.failures:,}"),
        ("Size", f"{seen.bytes_on_disk / 1e6:,.1f} MB in {seen.parts:,} parts"),
        ("Finished", seen.state),
        ("Teacher", f"{seen.teacher}, width {seen.embed_width}"),
        ("Views", f"{seen.n_views}{size}" if seen.n_views else "none"),
        ("Points", f"{seen.n_points:,}"),
        ("With colour", share(seen.rows_with_color)),
        ("Without text", share(seen.rows_without_text)),
        ("Without category", share(seen.rows_without_category)),
        ("Splits", ", ".join(f"{k} {v:,}" for k, v in seen.splits.items()) or "none"),
        ("Near-duplicates", share(found.near.sizes.objects)),
        ("From the same file", share(found.same_files.sizes.objects)),
    ]


def class_chart(found: Analysis) -> Markup:
    """The most frequent categories."""
    rows = found.inspection.rows
    return bar_chart(
        [
            Bar(name, [count], f"{count:,} ({count / rows:.1%})")
            for name, count in found.inspection.categories.items()
        ]
    )


def class_size_chart(counts: Sequence[int]) -> Markup:
    """How many categories have how many objects, by powers of two."""
    if not counts:
        return Markup("")
    bins = np.floor(np.log2(counts)).astype(int)
    top = int(bins.max())
    return histogram(
        np.bincount(bins, minlength=top + 1).tolist(),
        list(range(top + 2)),
        [f"{2**b:,} to {2 ** (b + 1) - 1:,} objects" for b in range(top + 1)],
        _thinned([(b, f"{2**b:,}") for b in range(top + 2)]),
        unit="categories",
    )


def face_chart(found: Analysis) -> Markup:
    """Objects by number of faces, on a logarithmic axis of whole powers of ten."""
    if not found.faces:
        return Markup("")
    low = min(found.faces) // FACE_BINS * FACE_BINS
    high = -(-(max(found.faces) + 1) // FACE_BINS) * FACE_BINS
    bins = range(low, high)
    return histogram(
        [found.faces.get(b, 0) for b in bins],
        [b / FACE_BINS for b in range(low, high + 1)],
        [f"{10 ** (b / FACE_BINS):,.0f} to {10 ** ((b + 1) / FACE_BINS):,.0f} faces" for b in bins],
        _thinned(
            [(b // FACE_BINS, _power(b // FACE_BINS)) for b in range(low, high + 1, FACE_BINS)]
        ),
        unit="objects",
    )


def _power(exponent: int) -> str:
    """10 to the exponent in few characters: 100, 10k, 1M."""
    thousands, rest = divmod(exponent, 3)
    return f"{10**rest}{('', 'k', 'M', 'G')[thousands]}" if thousands < 4 else f"1e{exponent}"


def color_chart(found: Analysis) -> Markup:
    """Objects with and without colour, by dataset."""
    bars = [
        Bar(name, [yes, no], f"{yes / (yes + no):.1%}") for name, (yes, no) in found.colors.items()
    ]
    return bar_chart(bars[:MAX_DATASETS], ("with colour", "without"))


def word_chart(words: Sequence[int]) -> Markup:
    """Texts by number of words."""
    last = max((i for i, count in enumerate(words) if count), default=0)
    shown = list(words[: last + 1])
    return histogram(
        shown,
        [i - 0.5 for i in range(len(shown) + 1)],
        [f"{i} words" + (" or more" if i == MAX_WORDS else "") for i in range(len(shown))],
        _thinned([(i, f"{i}{'+' if i == MAX_WORDS else ''}") for i in range(len(shown))]),
        unit="texts",
    )


def cosine_chart(cosines: F32, mark: tuple[float, str] | None = None, width: int = 340) -> Markup:
    """Objects by cosine, over the range that occurs."""
    if not len(cosines):
        return Markup("")
    low = float(np.floor(cosines.min() * 20) / 20)
    high = max(float(np.ceil(cosines.max() * 20) / 20), low + 0.05)
    counts, edges = np.histogram(np.clip(cosines, low, high), COSINE_BINS, (low, high))
    ticks = [(value, f"{value:.2f}") for value in np.linspace(low, high, 5).tolist()]
    titles = [f"{a:.3f} to {b:.3f}" for a, b in pairwise(edges)]
    return histogram(
        counts.tolist(), edges.tolist(), titles, ticks, unit="objects", mark=mark, width=width
    )


def _thinned(ticks: list[tuple[float, str]], most: int = 7) -> list[tuple[float, str]]:
    """Every n-th tick, so that labels do not run into each other."""
    return ticks[:: -(-len(ticks) // most)]


def section(found: DuplicateGroups) -> GroupSection:
    """Groups with the number of members beyond those shown."""
    groups = zip(found.shown, found.shown_sizes, strict=True)
    return GroupSection(found, [(group, size - len(group)) for group, size in groups])


def draw_rows(shards: ShardSet, rows: Iterable[int]) -> dict[int, str]:
    """Pictures of the clouds of some rows as ``data:`` addresses, by number of the row."""
    wanted = np.array(sorted(rows), np.int64)
    pictures: dict[int, str] = {}
    start = 0
    with ProgressBar("draw", len(wanted), "objects") as bar:
        for group in shards.row_groups:
            here = wanted[(wanted >= start) & (wanted < start + group.n_rows)] - start
            if len(here):
                batch = shards.read(group, ["xyz", "rgb", "has_color"])
                if batch.rgb is None or batch.has_color is None:
                    raise ValueError("the columns were not read")
                xyz = batch.xyz_float()
                for at in here.tolist():
                    image = draw_cloud(
                        xyz[at], batch.rgb[at], bool(batch.has_color[at]), PICTURE_SIZE
                    )
                    pictures[start + at] = data_uri(image)
                    bar.advance(1)
            start += group.n_rows
    return pictures
