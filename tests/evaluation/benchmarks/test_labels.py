from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.benchmarks.labels import from_categories, from_file, key
from evaluation.benchmarks.templates import field_templates, load_templates
from pipeline.common import InputError
from tests.evaluation import world


def test_from_categories__spellings_of_one_name_are_one_class() -> None:
    labels = from_categories(["Coffee_Mug", "chair", None, "coffee mug", " "])
    assert labels.names == ["Coffee Mug", "chair"]
    assert labels.find("coffee-mug") == 0
    assert labels.find("CHAIR") == 1
    assert labels.find("table") is None
    assert labels.find(None) is None


def test_key__only_case_and_separators_go() -> None:
    assert key(" T-Shirt_ blue") == "t shirt blue"


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("l.txt", "mug\n\nwine_glass\n", ["mug", "wine glass"]),
        ("l.json", '["mug", "wine_glass"]', ["mug", "wine glass"]),
        ("l.json", '{"mug": "a mug", "n0": "glass", "n1": "glass"}', ["a mug", "glass"]),
    ],
)
def test_from_file__forms(tmp_path: Path, name: str, text: str, names: list[str]) -> None:
    (tmp_path / name).write_text(text)
    labels = from_file(tmp_path / name)
    assert labels.names == names
    assert labels.origin == name
    assert labels.find("mug") == 0


def test_from_file__two_categories_of_one_name_are_one_class(tmp_path: Path) -> None:
    pairs = {"sofa": "Sofa_bed", "couch": "sofa bed", "bed": "bed"}
    (tmp_path / "l.json").write_text(json.dumps(pairs))
    labels = from_file(tmp_path / "l.json")
    assert [labels.find(c) for c in ("sofa", "couch", "bed")] == [0, 0, 1]
    assert labels.names == ["Sofa_bed", "bed"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "\n \n", "holds no class name"),
        ("l.txt", "mug\nMUG\n", "there twice"),
        ("l.json", "{", "not JSON"),
        ("l.json", "[1, 2]", "neither a list"),
        ("l.json", '{"a": 1}', "neither a list"),
        ("l.json", "[]", "holds no class name"),
        ("l.json", '{"a": " _"}', "'a' has an empty name"),
    ],
)
def test_from_file__what_is_wrong_is_named(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        from_file(tmp_path / name)


def test_templates__the_fields_64_each_take_a_name(assets_dir: Path) -> None:
    found = field_templates()
    assert len(set(found)) == 64
    assert all(template.count("{}") == 1 for template in found)
    published = json.loads((assets_dir / "labels" / "uni3d_templates.json").read_text())
    assert found == published["modelnet40_64"]


def test_templates__choices(tmp_path: Path) -> None:
    manifest = world.manifest()
    assert load_templates("manifest", manifest) == ["a {}", "the {}"]
    assert load_templates("manifest", world.manifest(templates=[])) == ["{}"]
    assert load_templates("bare", manifest) == ["{}"]
    assert load_templates("field64", manifest) == field_templates()
    path = tmp_path / "t.txt"
    path.write_text("one {}\n\ntwo {} there\n")
    assert load_templates(str(path), manifest) == ["one {}", "two {} there"]


@pytest.mark.parametrize("name", ["l.txt", "l.json"])
def test_files__a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('["mug", "chair"]' if path.suffix == ".json" else "mug\nchair\n", "utf-8-sig")
    assert from_file(path).by_category == {"mug": 0, "chair": 1}
    path.write_text("a {}\nthe {}\n", "utf-8-sig")
    assert load_templates(str(path), world.manifest()) == ["a {}", "the {}"]


@pytest.mark.parametrize(
    "line", ["no name", "{} and {}", "{name}", "{0.x}", "{", "{0}", "{:>9}", "a {} }"]
)
def test_templates__a_line_that_takes_no_name_is_shown(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.txt").write_text(line)
    with pytest.raises(InputError, match="is no template"):
        load_templates(str(tmp_path / "t.txt"), world.manifest())
