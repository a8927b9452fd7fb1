"""The page about a shard set: its numbers against plain Python, and what stands on it."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.catalog import analysis
from pipeline.catalog.analysis import Analysis, analyse
from pipeline.catalog.page import (
    class_size_chart,
    common_folder,
    cosine_chart,
    draw_rows,
    face_chart,
    word_chart,
    write_page,
)
from pipeline.cli import app
from pipeline.common import InputError
from pipeline.shards import Failure, Row, ShardSet, write_failures
from tests.pipeline.set_tools import sound_manifest, sound_row, write_set
from tests.pipeline.shard_tools import unit

MANIFEST = sound_manifest()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """200 rows of two datasets, with duplicates, an outlier and names that are markup."""
    made: list[Row] = []
    rng = np.random.default_rng(0)
    centre = unit(rng.normal(size=(1, 8)))
    for i in range(200):
        embeds = unit(centre + 0.5 * rng.normal(size=(2, 8)))
        if 20 <= i < 25:
            embeds = unit(made[3].image_embeds + 0.001 * rng.normal(size=(2, 8)))
        if i == 50:
            embeds = unit(np.tile(-centre, (2, 1)))
        made.append(
            sound_row(
                MANIFEST,
                f"toy/{i:03d}",
                n_texts=i % 4,
                dataset="<b>toy" if i % 3 else "other",
                category=None if i % 9 == 0 else f"<i>class {int(math.sqrt(i))}",
                split=[None, "train", "test"][i % 3],
                sha256=f"{i // 2 if i < 10 else i:064d}",
                n_faces=0 if i % 10 == 0 else 7 * (i + 1) ** 2,
                image_embeds=embeds,
            )
        )
    made[6] = replace(made[6], texts=["a  red\tmug, a mug", "<script>"], text_sources=["name", "x"])
    made[11] = replace(made[11], texts=["", "<script>", "<script>"], text_sources=["x", "x", "x"])
    return made


@pytest.fixture(scope="module")
def root(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("page")
    write_set(where, MANIFEST, [rows[:90], rows[90:]])
    write_failures(where, [Failure("bad<", "toy", "bad.glb", "load", "Empty", "no <faces>")])
    return where


@pytest.fixture(scope="module")
def found(root: Path) -> Analysis:
    return analyse(root)


def test_analyse__counts_are_those_of_plain_python(found: Analysis, rows: list[Row]) -> None:
    classes = Counter(row.category for row in rows if row.category is not None)
    assert found.class_counts == sorted(classes.values(), reverse=True)
    shares = np.array(list(classes.values())) / classes.total()
    assert found.effective_classes == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found.rows_without_faces == 20
    bins = Counter(math.floor(4 * math.log10(row.n_faces)) for row in rows if row.n_faces)
    assert found.faces == dict(bins)
    for name in ("<b>toy", "other"):
        own = [row.has_color for row in rows if row.dataset == name]
        assert found.colors[name] == (sum(own), len(own) - sum(own))
    assert list(found.colors) == ["<b>toy", "other"]


def test_analyse__texts_are_those_of_plain_python(found: Analysis, rows: list[Row]) -> None:
    texts = [
        (row.uid, text, source)
        for row in rows
        for text, source in zip(row.texts, row.text_sources, strict=True)
    ]
    words = Counter(len(text.split()) for _, text, _ in texts)
    assert found.words == [words[count] for count in range(41)]
    assert (words[0], words[5]) == (1, 1)
    for source in found.text_sources:
        own = [(uid, text) for uid, text, kind in texts if kind == source.name]
        lengths = [len(text.split()) for _, text in own]
        assert (source.texts, source.max_words) == (len(own), max(lengths))
        assert source.objects == len({uid for uid, _ in own})
        assert source.distinct == len({text for _, text in own})
        assert source.mean_words == pytest.approx(np.mean(lengths))
    assert {source.name for source in found.text_sources} == {"name", "tags", "caption", "x"}
    assert found.repeated_texts == [("<script>", 2)]


def test_analyse__duplicates_and_outliers_are_found(found: Analysis, rows: list[Row]) -> None:
    means = unit(np.stack([row.image_embeds.astype(np.float16) for row in rows]).mean(axis=1))
    cosines = means @ means.T
    np.fill_diagonal(cosines, -1)
    np.testing.assert_allclose(found.nearest, cosines.max(axis=1), atol=2e-3)
    assert (found.lonely[0].uid, found.lonely[0].row) == ("toy/050", 50)
    assert found.lonely[0].nearest_uid == rows[int(cosines[50].argmax())].uid
    assert (found.threshold, found.reference) == (0.99, 200)
    largest = found.near.shown[0]
    assert {member.uid for member in largest} >= {f"toy/{i:03d}" for i in (3, *range(20, 25))}
    assert largest[0].value == pytest.approx(1, abs=1e-5)
    assert found.near.across_splits >= 1
    assert (found.same_files.sizes.groups, found.same_files.sizes.objects) == (5, 10)
    assert [[m.row for m in group] for group in found.same_files.shown] == [
        [2 * i, 2 * i + 1] for i in range(5)
    ]


def test_analyse__agreement_is_that_of_means(found: Analysis, rows: list[Row]) -> None:
    expected = sorted(
        float(unit(row.image_embeds.mean(axis=0)) @ unit(row.text_embeds.mean(axis=0)))
        for row in rows
        if len(row.texts)
    )
    np.testing.assert_allclose(np.sort(found.agreement), expected, atol=3e-3)
    np.testing.assert_allclose([m.value for m in found.disagreeing], expected[:12], atol=3e-3)


def test_analyse__near_changes_the_groups_and_must_be_a_cosine(root: Path) -> None:
    assert analyse(root, near=0.6).near.sizes.objects > analyse(root).near.sizes.objects
    for near in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="--near"):
            analyse(root, near=near)


def test_analyse__large_sets_look_among_a_sample(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(analysis, "REFERENCE", 50)
    some = analyse(root)
    assert some.reference == 50
    write_page(tmp_path / "page.html", root, some)
    assert "among 50 chosen at random" in (tmp_path / "page.html").read_text()


def test_analyse__empty_set(tmp_path: Path) -> None:
    write_set(tmp_path, MANIFEST, [])
    with pytest.raises(InputError, match="holds no rows"):
        analyse(tmp_path)


class Page(HTMLParser):
    """Collects tags, addresses and text; notes tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page__is_self_contained_whole_and_escaped(
    found: Analysis, root: Path, tmp_path: Path
) -> None:
    write_page(tmp_path / "page.html", root, found)
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "b"} & set(page.tags)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text
    for shown in ("<i>class 13", "<b>toy", "<script>", "bad<: no <faces>", "050", "0.99"):
        assert shown in page.text
    assert 'title="toy/050' in text  # in full; below a picture without what all begin with
    assert "Uids below begin with" in page.text
    members = {m.row for group in found.near.shown + found.same_files.shown for m in group}
    members |= {m.row for m in found.lonely + found.disagreeing}
    assert len(set(page.addresses)) == len(members)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_page__set_of_bare_clouds(tmp_path: Path) -> None:
    manifest = sound_manifest(n_views=0)
    rows = [
        sound_row(manifest, f"{i}", n_texts=0, category=None, n_faces=0, has_color=False)
        for i in range(5)
    ]
    write_set(tmp_path / "set", manifest, [rows])
    write_page(tmp_path / "page.html", tmp_path / "set", analyse(tmp_path / "set"))
    page = Page((tmp_path / "page.html").read_text())
    for shown in ("point occupancy", "without faces", "No object has a text", "has a category"):
        assert shown in page.text
    assert "Pictures and texts disagree" not in page.text


def test_pictures__are_of_the_rows_that_are_asked_for(root: Path, rows: list[Row]) -> None:
    found = draw_rows(ShardSet.open(root), [0, 63, 64, 120, 199])
    assert sorted(found) == [0, 63, 64, 120, 199]
    assert len(set(found.values())) == 5
    assert draw_rows(ShardSet.open(root), [120])[120] == found[120]


def test_charts__have_a_bar_for_whatever_is_there(found: Analysis) -> None:
    one, two = np.array([1.0], np.float32), np.array([0.5, 0.9], np.float32)
    for drawn, bars, shown in (
        (class_size_chart([1, 1, 2, 3, 9]), 3, ["8 to 15 objects: 1 categories"]),
        (face_chart(found), len(found.faces), ["faces: ", ">100<", ">10k<"]),
        (word_chart([0, 3, 0, 5]), 2, ["1 words: 3 texts", "3 words: 5 texts"]),
        (cosine_chart(two, (0.8, "0.8")), 2, [">0.8<", "mark"]),
        (cosine_chart(one), 1, ["1.00"]),
    ):
        assert str(drawn).count("<rect") == bars
        for text in shown:
            assert text in drawn
    assert str(cosine_chart(one[:0])) == str(word_chart([0])) == ""


def test_command__inspect_html(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    done = CliRunner().invoke(app, ["inspect", str(root), "--html", str(page), "--near", "0.9"])
    assert done.exit_code == 0, done.output
    assert "0.9 of their mean image embedding" in " ".join(Page(page.read_text()).text.split())
    assert "objects" in done.stdout
    page.write_text("mine")
    refused = CliRunner().invoke(app, ["inspect", str(root), "--html", str(page)])
    assert str(refused.exception) == (
        f"--html {page}: is there already; add --overwrite to replace it"
    )
    assert page.read_text() == "mine"


@pytest.mark.parametrize("name", ["", "file/page.html"])
def test_command__inspect_html_where_no_page_can_be_is_told_at_once(
    name: str, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["inspect", str(root), "--html", str(tmp_path / name)])
    assert isinstance(done.exception, InputError)
    assert str(done.exception).startswith("--html ")
    assert "compare" not in done.output


def test_common_folder__is_what_all_uids_begin_with_up_to_a_slash() -> None:
    assert common_folder(["set/a/cup_1", "set/a/cup_2"]) == "set/a/"
    assert common_folder(["set/a/x", "set/b"]) == "set/"
    assert common_folder(["one", "other"]) == ""
    assert common_folder([]) == ""
