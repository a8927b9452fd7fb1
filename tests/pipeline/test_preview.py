"""Contact sheets: layout, labels, size limits, and that nothing partial is left behind."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from typer.testing import CliRunner

from pipeline.cameras import make_cameras, ring
from pipeline.cli import app, main
from pipeline.common import InputError
from pipeline.datasets.base import Asset, Record
from pipeline.preview import (
    GAP,
    _shortened,
    contact_sheet,
    parse_views,
    preview_dataset,
    render_preview,
)
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster import RasterRenderer
from pipeline.scene import Material, Mesh, MeshError
from tests.pipeline.shapes import quad

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], np.uint8)


def tiles(size: int = 20, count: int = 5) -> np.ndarray:
    """Plain tiles, one colour each: (count, size, size, 3)."""
    return np.tile(COLOURS[np.arange(count) % 5][:, None, None], (1, size, size, 1))


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP")])
def test_contact_sheet__the_suffix_picks_the_format(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"sheet{suffix}"
    contact_sheet(tiles(), list("abcde"), 3, path)
    with Image.open(path) as sheet:
        assert sheet.format == kind
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_contact_sheet__tiles_stand_in_reading_order(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    contact_sheet(tiles(20), [""] * 5, 3, path)
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    assert sheet.shape == (2 * (20 + GAP) + GAP, 3 * (20 + GAP) + GAP, 3)
    for i in range(5):
        y, x = GAP + i // 3 * (20 + GAP) + 10, GAP + i % 3 * (20 + GAP) + 10
        assert sheet[y, x].tolist() == COLOURS[i].tolist()
    assert sheet[-GAP - 10, -GAP - 10].tolist() == [255, 255, 255]  # the sixth place is empty


def test_contact_sheet__labels_are_drawn_under_their_tile_and_never_beside(tmp_path: Path) -> None:
    path, plain = tmp_path / "sheet.png", tmp_path / "plain.png"
    labels = ["cup", "", "a very long label that cannot fit under so small a tile", "x", ""]
    contact_sheet(tiles(60), labels, 5, path)
    contact_sheet(tiles(60), [" "] * 5, 5, plain)
    with Image.open(path) as a, Image.open(plain) as b:
        ink = (np.asarray(a.convert("L")).astype(int) - np.asarray(b.convert("L"))) != 0
    assert not ink[: GAP + 60].any()
    columns = [ink[:, GAP + i * (60 + GAP) : GAP + i * (60 + GAP) + 60].any() for i in range(5)]
    assert columns == [True, False, True, True, False]
    assert not any(ink[:, i * (60 + GAP) : i * (60 + GAP) + GAP].any() for i in range(5))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("mug", "mug"),
        (" a  b ", "a b"),
        ("H\u00e4mmer", "Hammer"),
        ("\u690b", "\u690b"),
        ("base_meshes__cap_01", "base_...ap_01"),
        ("base_meshes__cap_02", "base_...ap_02"),
    ],
)
def test_shortened__both_ends_are_kept_and_accents_left_out(label: str, expected: str) -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (200, 20)))
    font = ImageFont.load_default(size=10)
    width = draw.textlength("base_...ap_02", font=font)
    assert _shortened(draw, label, font, int(np.ceil(width))) == expected


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_contact_sheet__stays_below_the_limit(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"sheet{suffix}"
    contact_sheet(noise, ["noise"] * 12, 4, path)
    free = path.stat().st_size
    contact_sheet(noise, ["noise"] * 12, 4, path, max_bytes=free // 3)
    assert path.stat().st_size <= free // 3
    with Image.open(path) as sheet:
        sheet.load()


def test_contact_sheet__a_limit_that_cannot_be_met_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "sheet.jpg"
    contact_sheet(tiles(), list("abcde"), 3, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"do not fit into 50 bytes"):
        contact_sheet(tiles(), list("abcde"), 3, path, max_bytes=50)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "labels", "columns", "message"),
    [
        ("sheet.gif", "abcde", 3, "use .jpg, .png or .webp"),
        ("sheet.png", "abc", 3, "3 labels for 5 pictures"),
        ("sheet.png", "abcde", 0, "give 1 or more"),
    ],
)
def test_contact_sheet__bad_input_is_one_line_with_the_remedy(
    tmp_path: Path, name: str, labels: str, columns: int, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        contact_sheet(tiles(), list(labels), columns, tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_contact_sheet__no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        contact_sheet(tiles(count=0), [], 3, tmp_path / "sheet.png")


def red(_: int = 0) -> Mesh:
    return quad(0.6, material=Material((1.0, 0.0, 0.0, 1.0)))


def test_render_preview__draws_the_views_of_each_object_and_stops_at_the_limit(
    tmp_path: Path,
) -> None:
    taken = []

    def items() -> Iterator[tuple[str, Mesh]]:
        for i in range(100):
            taken.append(i)
            yield f"object {i}", red()

    path = tmp_path / "sheet.png"
    config = RenderConfig(image_size=16)
    drawn = render_preview(
        items(), RasterRenderer(), ring(), config, path, views=(0, 5), columns=4, max_tiles=8
    )
    assert drawn == 8
    assert taken == [0, 1, 2, 3]
    with Image.open(path) as sheet:
        assert sheet.width == 4 * (16 + GAP) + GAP


def test_render_preview__unknown_views_and_empty_sources_are_refused(tmp_path: Path) -> None:
    arguments = (RasterRenderer(), ring(4), RenderConfig(image_size=16), tmp_path / "sheet.png")
    with pytest.raises(InputError, match="0 to 3"):
        render_preview([("a", red())], *arguments, views=(4,))
    with pytest.raises(InputError, match="no object could be drawn"):
        render_preview([], *arguments)


class Ten:
    """Ten records, the third of which cannot be loaded."""

    name = "ten"
    options: dict[str, object] = {}  # noqa: RUF012  as the protocol has it

    def records(self) -> Iterator[Record]:
        for i in range(10):
            yield Record(uid=f"ten/{i}", dataset="ten", source="", key=str(i), texts=(f"no {i}",))

    def count(self) -> int | None:
        return 10

    def load(self, record: Record) -> Asset:
        if record.key == "3":
            raise MeshError("no_faces", "broken on purpose")
        return Asset(red(), "0", 0)


def test_preview_dataset__counts_what_was_drawn_and_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "sheet.jpg"
    config = RenderConfig(image_size=32)
    drawn, failed = preview_dataset(Ten(), path, tiles=10, config=config)
    assert (drawn, len(failed)) == (9, 1)
    uid, reason = failed[0]
    assert uid.endswith("3")
    assert reason == "no_faces: broken on purpose"
    assert path.is_file()


def test_preview_dataset__all_views_of_an_object_share_a_line(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    config = RenderConfig(image_size=24, background=(0, 0, 0))
    drawn = preview_dataset(
        Ten(), path, tiles=11, cameras=make_cameras("ulip", 4), config=config, view="all,thumbnail"
    )
    assert drawn == (10, [])
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    assert sheet.shape[1] == 5 * (24 + GAP) + GAP
    assert sheet[GAP, GAP].tolist() == [0, 0, 0]  # the background that was asked for


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", ([0], False)),
        ("2, 0", ([2, 0], False)),
        ("all", ([0, 1, 2], False)),
        ("thumbnail", ([], True)),
        ("all,Thumbnail", ([0, 1, 2], True)),
    ],
)
def test_parse_views__numbers_all_and_thumbnail(text: str, expected: object) -> None:
    assert parse_views(text, 3) == expected


@pytest.mark.parametrize("text", ["3", "-1", "", "front", "0,,1", "²"])
def test_parse_views__unknown_view_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--view .*use all, thumbnail or numbers of 0 to 2"):
        parse_views(text, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.gif", "use .jpg, .png or .webp"), ("", "name a file"), ("file/x.png", "is a file")],
)
def test_command__a_picture_that_cannot_be_written_is_told_before_anything_is_drawn(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("pipeline.preview.preview_dataset", None)  # is not reached
    line = ["preview", "--dataset", "procedural", "--out", str(tmp_path / name)]
    done = CliRunner().invoke(app, line)
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


LINE = ["preview", "--dataset", "procedural", "--count", "3", "--image-size", "24", "--out"]


def test_command__prints_json_and_replaces_with_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    done = CliRunner().invoke(app, [*LINE, str(path), "--json"])
    assert json.loads(done.stdout) == {"out": str(path), "pictures": 3, "failed": {}}
    path.write_bytes(b"mine")
    refused = CliRunner().invoke(app, [*LINE, str(path)])
    assert str(refused.exception) == (
        f"--out {path}: is there already; add --overwrite to replace it"
    )
    assert path.read_bytes() == b"mine"
    assert CliRunner().invoke(app, [*LINE, str(path), "--overwrite"]).exit_code == 0
    with Image.open(path) as image:
        image.verify()


def test_command__interrupted_it_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"mine")

    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("pipeline.preview._attempts", stop)  # the file is about to be written
    monkeypatch.setattr(sys, "argv", ["pipeline", *LINE, str(path), "--overwrite"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "interrupted: nothing was written"
    assert printed.out == ""
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]
