"""Dataset ``gso``: names, the text-format metadata, textures beside the meshes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.captions import texts_for
from pipeline.common import InputError
from pipeline.datasets.gso import GsoDataset, read_pbtxt
from tests.pipeline.layout_files import PBTXT, gso, write


def test_records__names_and_metadata(tmp_path: Path) -> None:
    sofa, mug = GsoDataset(gso(tmp_path)).records()
    assert mug.uid == "gso/ACE_Coffee_Mug_Kristen_16_oz_cup"
    assert mug.category == "bottles and cans and cups"
    assert list(zip(mug.texts, mug.text_sources, strict=True)) == [
        ("ACE_Coffee_Mug_Kristen_16_oz_cup", "name"),
        ('A mug. 16 oz,\n "blue" \u201cenamel\u201d', "description"),
        ("mug, kitchen", "tags"),
        ("bottles and cans and cups", "category"),
    ]
    assert texts_for(mug)[0] == ("ace coffee mug kristen 16 oz cup", "name")
    assert sofa.category is None
    assert sofa.texts == ("3D_Dollhouse_Sofa",)


def test_records__metadata_cut_short_is_an_input_error(tmp_path: Path) -> None:
    name = "ACE_Coffee_Mug_Kristen_16_oz_cup/metadata.pbtxt"
    write(gso(tmp_path), {name: PBTXT[: PBTXT.index("legal {") + 8]})
    with pytest.raises(InputError, match=r"metadata\.pbtxt: cannot be read .*cut short"):
        list(GsoDataset(tmp_path).records())


def test_read_pbtxt__fields_by_path() -> None:
    fields = read_pbtxt(PBTXT)
    assert fields["name"] == ["ACE Coffee Mug"]
    assert fields["model.file_format.version.major"] == ["1"]
    assert fields["tags"] == ["mug", "kitchen"]
    assert fields["categories.first"] == ["Bottles and Cans and Cups"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a: "x" "y"\n\'z\' b: 1', {"a": ["xyz"], "b": ["1"]}),
        ("a < b: 'q\\x41\\101' >", {"a.b": ["qAA"]}),
        ("a: { b: -1.5e3 }; c: true", {"a.b": ["-1.5e3"], "c": ["true"]}),
        ("# only a comment", {}),
        ('a: "# not one" # one', {"a": ["# not one"]}),
    ],
)
def test_read_pbtxt__forms_of_the_format(text: str, expected: dict[str, list[str]]) -> None:
    assert read_pbtxt(text) == expected


@pytest.mark.parametrize("text", ["a {", "}", '"x"', 'a: "open', "{ a: 1 }", "a = 1"])
def test_read_pbtxt__broken_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_pbtxt(text)
