"""Cleaning of names and captions, articles and templates."""

from __future__ import annotations

import pytest

from pipeline.captions import article, clean_caption, clean_name, expand, fill, texts_for
from pipeline.datasets.base import Record


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("base_meshes__brick_frog_02.glb", "brick frog"),
        ("quaternius__crops_pack__Apple_1.glb", "apple"),
        ("pack__Bathroom_Shower1", "bathroom shower"),
        ("BrickFrog12.obj", "brick frog"),
        ("USBStick", "usb stick"),
        ("hot-dog", "hot dog"),
        ("T-rex 3", "t-rex"),
        ("a/b\\tv_stand-01.PLY", "tv stand"),
        ("CoffeeCup.v2.glb", "coffee cup"),
        ("table_LOD0", "table"),
        ("6.35mm_audio_jack.glb", "6.35mm audio jack"),
        ("9mm bullet", "9mm bullet"),
        ("180 twist", "180 twist"),
        ("boeing 747", "boeing 747"),
        ("chair_3f2504e0-4f89-11d3-9a0c-0305e82c3301.glb", "chair"),
        ("3d73f0c95a2c4b8d9f", ""),
        ("chair_3d73f0c95a2c4b8d9f", "chair"),
        ("0012345678", ""),
        ("12", ""),
        ("model.obj", ""),
        ("model_03.obj", ""),
        ("model_boat.obj", "model boat"),
        ("facade", "facade"),
        ("  Wooden   Spoon ", "wooden spoon"),
        ("chair (copy)", "chair copy"),
        ("стул_02", "стул"),
        ("__.glb", ""),
        ("", ""),
        ("ﬁsh", "fish"),
    ],
)
def test_clean_name(raw: str, clean: str) -> None:
    assert clean_name(raw) == clean
    assert clean_name(clean) == clean  # cleaning twice changes nothing more


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A Red Mug,  with a\thandle.", "A Red Mug, with a handle."),
        ("<p>Low poly &amp; cute</p>", "Low poly & cute"),
        ("See https://example.org/x?y=1 for more", "See for more"),
        ('"quoted"', "quoted"),
        ("zero\u200bwidth\x00", "zero width"),
        ("5 < 6 and 7 > 2 apples", "5 < 6 and 7 > 2 apples"),
        ("12 34 !!", ""),
        ("", ""),
    ],
)
def test_clean_caption(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean


def test_clean_caption__is_cut_at_a_word() -> None:
    text = clean_caption("word " * 1000)
    assert 900 < len(text) <= 1000
    assert text.endswith("word")


def record(texts: list[tuple[str, str]], category: str | None = None) -> Record:
    return Record(
        uid="x/1",
        dataset="x",
        source="1",
        key="1",
        category=category,
        texts=tuple(text for text, _ in texts),
        text_sources=tuple(source for _, source in texts),
    )


def test_texts_for__cleans_by_source_drops_empty_and_repeated_in_order() -> None:
    raw = [
        ("A Mug_02", "caption"),
        ("Coffee_Mug_02.glb", "name"),
        ("coffee mug", "tags"),
        ("", "caption"),
        ("42", "name"),
        ("COFFEE MUG", "name"),
    ]
    assert texts_for(record(raw)) == [("A Mug_02", "caption"), ("coffee mug", "name")]


def test_texts_for__category_where_nothing_else_is_left() -> None:
    assert texts_for(record([("12", "name")], "kitchen_items")) == [("kitchen items", "category")]
    assert texts_for(record([("Pan", "name")], "kitchen_items")) == [("pan", "name")]
    assert texts_for(record([])) == []


@pytest.mark.parametrize(
    "name",
    [
        *("apple", "ice axe", "umbrella", "uninteresting box", "hour glass", "heirloom", "x-ray"),
        *("urn", "8 ball", "11 mm nut", "f 16", "honest man", "egg", "onion", "Easter egg"),
    ],
)
def test_article__an(name: str) -> None:
    assert article(name) == "an"


@pytest.mark.parametrize(
    "name",
    [
        *("chair", "unicorn", "university", "euro", "one way sign", "horse", "usb stick", "user"),
        *("utensil", "9mm bullet", "ukulele", "yacht", "ufo", "unit", "Uniform"),
    ],
)
def test_article__a(name: str) -> None:
    assert article(name) == "a"


@pytest.mark.parametrize(
    ("template", "name", "filled"),
    [
        ("a {}", "apple", "an apple"),
        ("An {} on a table", "chair", "A chair on a table"),
        ("a 3D model of a {}.", "oven", "a 3D model of an oven."),
        ("{} in a {}", "egg", "egg in an egg"),
        ("many {}s", "cup", "many cups"),
        ("data {}", "apple", "data apple"),
    ],
)
def test_fill__articles_fit(template: str, name: str, filled: str) -> None:
    assert fill(template, name) == filled


def test_expand__names_go_into_templates_and_other_texts_do_not() -> None:
    templates = ["a {}", "a 3D model of a {}", "an {}"]
    assert expand("oven", "name", templates) == ["an oven", "a 3D model of an oven"]
    assert expand("a red oven", "caption", templates) == ["a red oven"]
    assert expand("oven", "name", []) == ["oven"]


def test_expand__braces_in_a_name_are_no_template() -> None:
    assert expand("box {} 0", "name", ["a {}"]) == ["a box {} 0"]


def test_expand__template_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="thing"):
        expand("oven", "name", ["a thing"])
