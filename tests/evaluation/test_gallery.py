from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.gallery import gallery_rows, render_objects
from evaluation.index import Hit, Item
from pipeline.shards import ShardSet
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
        (("--shards", "x"), "--shards has a use with --where or --out FILE.html alone"),
        (("--meshes", "x"), "--meshes has a use with --out FILE.html alone"),
        (("--meshes", "x", "--out", "x.html"), "--meshes x: no such folder"),
    ],
)
def test_retrieve__options_without_a_use_are_refused(
    command: Cli, indexed: Path, arguments: tuple[str, ...], message: str
) -> None:
    refused = command.refused("retrieve", "--index", indexed, "--text", "a mug", *arguments)
    assert message in refused
