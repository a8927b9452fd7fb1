"""Sound shard sets with content that can be told apart, for what reads and rewrites sets."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.shards import (
    NEUTRAL_RGB,
    KeptImages,
    Manifest,
    Row,
    ShardSet,
    create_or_open,
    write_part,
    write_part_with_images,
)
from tests.pipeline.shard_tools import make_manifest, make_row


def sound_manifest(**changes: Any) -> Manifest:
    """Of clouds of 150 points, the first 100 in farthest-point order."""
    return make_manifest(**{"n_points": 150, "n_views": 2, "width": 8, "n_fps": 100, **changes})


def sound_row(manifest: Manifest, uid: str, **changes: Any) -> Row:
    """A row that breaks no rule; content depends on ``uid`` alone."""
    row = make_row(manifest, uid, **changes)
    rgb = row.rgb if row.has_color else np.full_like(row.rgb, NEUTRAL_RGB)
    thumbnail = row.image_embeds[0] if manifest.thumbnails and len(uid) % 2 else None
    return replace(
        row,
        xyz=ordered(row.xyz, manifest.n_fps),
        rgb=rgb,
        sha256=changes.get("sha256", hashlib.sha256(uid.encode()).hexdigest()),
        thumbnail_embed=changes.get("thumbnail_embed", thumbnail),
    )


def ordered(xyz: NDArray[Any], n_fps: int) -> NDArray[np.float32]:
    """Points with the first ``n_fps`` in farthest-point order, the plain way."""
    chosen, gaps = [0], np.full(len(xyz), np.inf)
    while len(chosen) < n_fps:
        gaps = np.minimum(gaps, np.linalg.norm(xyz - xyz[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(gaps)))
    rest = np.setdiff1d(np.arange(len(xyz)), chosen)
    return np.asarray(xyz[np.concatenate([chosen, rest])], np.float32)


def picture(color: int) -> bytes:
    """A small WebP of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (color % 256, 100, 50)).save(stream, "WEBP")
    return stream.getvalue()


def kept_of(row: Row) -> KeptImages:
    """Pictures that depend on the uid and the view."""
    number = int(hashlib.sha256(row.uid.encode()).hexdigest()[:4], 16)
    views = tuple(picture(number + view) for view in range(len(row.image_embeds)))
    return KeptImages(row.uid, views, None if row.thumbnail_embed is None else picture(7))


def write_set(root: str | Path, manifest: Manifest, parts: Sequence[Sequence[Row]]) -> None:
    """A set at ``root``, with pictures where the manifest says so."""
    create_or_open(root, manifest)
    for rows in parts:
        if manifest.kept_images is None:
            write_part(root, manifest, rows)
        else:
            write_part_with_images(root, manifest, rows, [kept_of(row) for row in rows])


def rows_of(root: str | Path) -> list[Row]:
    """All rows of a set, in reading order."""
    shards = ShardSet.open(root)
    return [row for group in shards.row_groups for row in shards.rows(group)]


def assert_same_rows(got: Sequence[Row], want: Sequence[Row], *, but: str = "") -> None:
    """Equal in every column, bit for bit, except the column ``but``."""
    assert [row.uid for row in got] == [row.uid for row in want]
    for one, other in zip(got, want, strict=True):
        for name, value in vars(other).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(one, name), value)
            elif name != but:
                assert getattr(one, name) == value, name
