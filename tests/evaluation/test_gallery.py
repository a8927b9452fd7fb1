from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.gallery import PICTURE_SIZE, draw_objects, gallery_rows, render_objects
from evaluation.index import Hit, Item
from pipeline.cloud_pictures import data_uri, draw_cloud
from pipeline.shards import Batch, RowGroup, ShardSet, create_or_open, write_part
from tests.evaluation.test_report import parse
from tests.running import Cli


def picture(uri: str) -> np.ndarray:
    raw = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGBA"))


def items(*sources: str) -> list[Item]:
    return [Item(f"tiny/{source[:3]}", source, "mug", ["a mug"]) for source in sources]


def test_render_objects__those_that_can_be_read_and_lie_in_the_folder(meshes: Path) -> None:
    found = render_objects(items("000.glb", "001.glb", "002.glb", "../outside.glb"), meshes)
    assert list(found) == ["tiny/000"]
    image = picture(found["tiny/000"]).astype(int)
    shown = image[image[..., 3] == 255]
    assert len(shown) > 0.2 * image[..., 0].size
    assert (shown[:, 0] > 60).mean() > 0.99
    assert (shown[:, 1:3] < 30).mean() > 0.99


def test_gallery_rows__mesh_before_cloud_before_nothing(meshes: Path, shards: Path) -> None:
    known = items("000.glb", "001.glb", "999.glb")
    hits = [Hit(i, 0.5, item) for i, item in enumerate(known, 1)]
    opened = ShardSet.open(shards)
    (row,) = gallery_rows([("q", hits)], opened, meshes)
    rendered = render_objects(known, meshes)
    assert row.tiles[0].picture == rendered["tiny/000"]
    assert row.tiles[1].picture is not None
    assert row.tiles[2].picture is None
    (plain,) = gallery_rows([("q", hits)])
    assert [tile.picture for tile in plain.tiles] == [None] * 3


def test_draw_objects__reads_uids_once_and_then_only_what_it_draws(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ShardSet.open(shards)
    rows = whole.rows(whole.row_groups[0])
    create_or_open(tmp_path, whole.manifest)
    for part in (rows[:8], rows[8:16]):
        write_part(tmp_path, whole.manifest, part)
    opened, asked = ShardSet.open(tmp_path), list[tuple[str, ...]]()
    read = ShardSet.read
    wanted = ["tiny/011", "tiny/002", "tiny/nowhere"]

    def spy(self: ShardSet, group: RowGroup, columns: Iterable[str]) -> Batch:
        asked.append(tuple(columns))
        return read(self, group, asked[-1])

    monkeypatch.setattr(ShardSet, "read", spy)
    found = draw_objects(opened, wanted)
    bulk = ("xyz", "rgb", "has_color")
    assert asked == [("uid",), ("uid",), bulk, bulk]
    assert draw_objects(opened, wanted[:1]) == {"tiny/011": found["tiny/011"]}
    assert asked[4:] == [bulk]
    for uid, picture_of in found.items():
        row = next(row for row in rows if row.uid == uid)
        xyz = np.asarray(row.xyz, np.float32)
        assert picture_of == data_uri(draw_cloud(xyz, row.rgb, row.has_color, PICTURE_SIZE))
    assert set(found) == set(wanted[:2])


def test_retrieve__a_page_of_several_queries(
    command: Cli, indexed: Path, shards: Path, meshes: Path, tmp_path: Path
) -> None:
    asked = tmp_path / "asked.csv"
    asked.write_text("text,minus\na <red> mug,\nan oak tree,a fish\n")
    out = tmp_path / "hits.html"
    common = ("retrieve", "--index", indexed, "--queries", asked, "-k", 3, "--out", out)
    printed = command.ok(*common, "--shards", shards, "--meshes", meshes)
    assert "a <red> mug" in printed
    page = parse(out)
    assert page.tags.count("img") == 6
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "an oak tree - a fish" in page.text
    assert "among 40 objects" in page.text
    command.ok(*common, "--json", "--overwrite")
    assert parse(out).tags.count("img") == 0
    found = json.loads(command.ok(*common[:-2], "--json"))
    assert [len(entry["hits"]) for entry in found] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "x.txt"), "ends in .json, .csv or .html"),
        (("--shards", "x"), "--shards is used only with --where or --out FILE.html"),
        (("--meshes", "x"), "--meshes is used only with --out FILE.html"),
        (("--meshes", "x", "--out", "x.html"), "--meshes x: no such folder"),
    ],
)
def test_retrieve__options_without_a_use_are_refused(
    command: Cli, indexed: Path, arguments: tuple[str, ...], message: str
) -> None:
    refused = command.refused("retrieve", "--index", indexed, "--text", "a mug", *arguments)
    assert message in refused
