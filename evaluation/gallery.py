"""Retrieval galleries: the answers of an index to queries, with pictures of the shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.index import Hit, Item, load_index
from evaluation.queries import Part
from evaluation.search import Embedder
from evaluation.shapes import Caller, here, render_mesh
from pipeline.cloud_pictures import data_uri, draw_cloud
from pipeline.common import InputError, atomic_path, versions
from pipeline.pages import render_page
from pipeline.scene import MeshError
from pipeline.shards import RowGroup, ShardSet

PICTURE_POINTS = 10_000
PICTURE_SIZE = 144  # pixels


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
    rows = gallery_rows(found, opened)
    if not any(tile.picture for row in rows for tile in row.tiles):
        raise InputError(
            f"--shards {shards}: holds none of the objects of {index_path}; "
            "give the shard set that was indexed"
        )
    return rows


def gallery_rows(
    found: Sequence[tuple[str, Sequence[Hit]]],
    shards: ShardSet | None = None,
    meshes: Path | None = None,
    call: Caller = here,
) -> list[GalleryRow]:
    """Queries and their hits with pictures.

    An object is rendered where its mesh lies in the folder ``meshes`` (at the path that it had in
    its source; ``call``, as ``evaluation.shapes.Caller``), else drawn from its cloud in ``shards``,
    else shown without a picture.
    """
    items = {hit.item.uid: hit.item for _, hits in found for hit in hits}
    pictures = {} if meshes is None else render_objects(items.values(), meshes, call=call)
    if shards is not None:
        pictures = {**draw_objects(shards, set(items) - set(pictures)), **pictures}
    return [
        GalleryRow(query, [Tile(hit, pictures.get(hit.item.uid)) for hit in hits])
        for query, hits in found
    ]


def write_gallery(out: Path, title: str, told: str, rows: Sequence[GalleryRow]) -> None:
    """Write one self-contained page of queries and hits, atomically; ``told`` stands above."""
    page = render_page(
        "evaluation",
        "templates",
        "hits.html.j2",
        title=title,
        told=told,
        gallery=rows,
        version=versions("mrd3d").get("mrd3d", ""),
    )
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_objects(
    items: Iterable[Item], folder: Path, size: int = PICTURE_SIZE, call: Caller = here
) -> dict[str, str]:
    """Rendered pictures by uid, as ``data:`` addresses, of objects whose mesh is in ``folder``.

    Meshes that cannot be read are left out, and so is what lies outside of the folder.
    """
    root = folder.resolve()
    pictures = {}
    for item in items:
        path = (root / item.source).resolve()
        if path.is_relative_to(root) and path.is_file():
            try:
                pictures[item.uid] = data_uri(call(render_mesh, path, size))
            except (InputError, MeshError):
                continue
    return pictures


def draw_objects(shards: ShardSet, uids: Iterable[str], size: int = PICTURE_SIZE) -> dict[str, str]:
    """Pictures of the objects that are in the set, by uid, as ``data:`` addresses."""
    wanted: dict[RowGroup, list[int]] = {}
    for uid in uids:
        if uid in shards.places:
            group, row = shards.places[uid]
            wanted.setdefault(group, []).append(row)
    pictures = {}
    for group, rows in wanted.items():
        batch = shards.read(group, ["xyz", "rgb", "has_color"])
        xyz = batch.xyz_float()
        assert batch.rgb is not None
        assert batch.has_color is not None
        for row in rows:
            points = slice(0, PICTURE_POINTS)
            image = draw_cloud(
                xyz[row, points], batch.rgb[row, points], bool(batch.has_color[row]), size
            )
            pictures[batch.uid[row]] = data_uri(image)
    return pictures
