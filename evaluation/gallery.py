"""Retrieval galleries: the answers of an index to text queries, with pictures of the shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.index import Hit, load_index
from evaluation.queries import Part
from evaluation.search import Embedder
from pipeline.cloud_pictures import data_uri, draw_cloud
from pipeline.common import InputError
from pipeline.shards import ShardSet

PICTURE_POINTS = 10_000


@dataclass(frozen=True)
class Tile:
    """One answer; ``picture`` is a ``data:`` address, or None when the shards lack the object."""

    hit: Hit
    picture: str | None


@dataclass(frozen=True)
class GalleryRow:
    """One query and its answers, best first."""

    query: str
    tiles: list[Tile]


def build_gallery(
    index_path: Path,
    queries: Sequence[str],
    shards: str,
    k: int,
    teacher_spec: str | None = None,
    device: str = "cpu",
) -> list[GalleryRow]:
    """Search ``queries`` in an index and draw the answers from the clouds of ``shards``.

    Raises ``InputError`` when an input is wrong, or the shards hold none of the answers.
    """
    index = load_index(index_path)
    opened = ShardSet.open(shards)
    embed = Embedder(index, None, teacher_spec, device)
    found = [(query, index.search(embed(Part("text", query)), k)) for query in queries]
    pictures = draw_objects(opened, {hit.item.uid for _, hits in found for hit in hits})
    if not pictures:
        raise InputError(
            f"--shards {shards}: holds none of the objects of {index_path}; "
            "give the shard set that was indexed"
        )
    return [
        GalleryRow(query, [Tile(hit, pictures.get(hit.item.uid)) for hit in hits])
        for query, hits in found
    ]


def draw_objects(shards: ShardSet, uids: Iterable[str], size: int = 144) -> dict[str, str]:
    """Pictures of the objects that are in the set, by uid, as ``data:`` addresses."""
    wanted = set(uids)
    groups = [g for g in shards.row_groups if wanted & set(shards.read(g, ["uid"]).uid)]
    pictures = {}
    for batch in shards.batches(["xyz", "rgb", "has_color"], groups):
        xyz = batch.xyz_float()
        assert batch.rgb is not None
        assert batch.has_color is not None
        for row, uid in enumerate(batch.uid):
            if uid in wanted:
                points = slice(0, PICTURE_POINTS)
                image = draw_cloud(
                    xyz[row, points], batch.rgb[row, points], bool(batch.has_color[row]), size
                )
                pictures[uid] = data_uri(image)
    return pictures
