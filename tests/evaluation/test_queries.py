from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from evaluation.embeddings import normalise
from evaluation.index import load_index
from evaluation.queries import Part, compose, parse_parts, read_queries
from pipeline.common import InputError
from tests.evaluation import world
from tests.running import Cli


def embed(part: Part) -> np.ndarray:
    return world.text_vector(part.value)


def test_compose__one_part_is_that_part_whatever_its_weight() -> None:
    for part in (Part("text", "a mug"), Part("text", "a mug", 0.2)):
        np.testing.assert_array_equal(compose([part], embed), world.text_vector("a mug"))


def test_compose__is_the_direction_of_the_weighted_sum() -> None:
    parts = [Part("text", "a mug"), Part("text", "fish", 0.5), Part("text", "chair", -0.25)]
    a, b, c = (world.text_vector(text).astype(float) for text in ("a mug", "fish", "chair"))
    np.testing.assert_allclose(compose(parts, embed), normalise(a + b / 2 - c / 4), atol=1e-6)


def test_compose__parts_that_cancel_are_refused() -> None:
    with pytest.raises(InputError, match=r"cancel each other \(a mug@2, -a mug@2\)"):
        compose([Part("text", "a mug", 2), Part("text", "a mug", -2)], embed)


def test_parts__weights_signs_and_files_with_an_at_sign(tmp_path: Path) -> None:
    odd, plain = tmp_path / "chair@2", tmp_path / "chair.png"
    for file in (odd, plain):
        file.write_bytes(b"x")
    found = parse_parts(["a mug", "red@0.5"], [str(odd), f"{plain}@3"], (), ["handle@2"])
    assert found == [
        Part("text", "a mug", 1.0),
        Part("text", "red", 0.5),
        Part("image", str(odd), 1.0),
        Part("image", str(plain), 3.0),
        Part("text", "handle", -2.0),
    ]
    assert [part.told() for part in found] == [
        *("a mug", "red@0.5", "chair@2", "chair.png@3", "-handle@2")
    ]


def test_queries__lines_paths_and_errors(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"x")
    table = tmp_path / "queries.csv"
    table.write_text("text,shape,minus\na mug,,fish@0.5\n,a.npz,\n")
    assert read_queries(table) == [
        [Part("text", "a mug"), Part("text", "fish", -0.5)],
        [Part("shape", str(tmp_path / "a.npz"))],
    ]
    for text, wrong in (
        ("text,shape\n,\n", "line 2: give at least one"),
        ("text,shape\nx,\n,b.npz\n", "line 3: --shape .*b.npz: no such file"),
        ("words\nx\n", "its columns are words"),
        ("text\n", "holds no line"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=wrong):
            read_queries(table)
    with pytest.raises(InputError, match="not a readable table"):
        read_queries(tmp_path / "none.csv")


def test_command__what_is_to_be_avoided_goes_down(command: Cli, indexed: Path) -> None:
    def rank(*options: str) -> float:
        hits = command.json("retrieve", "--index", indexed, "--text", "mug", "-k", 40, *options)
        return float(np.mean([hit["rank"] for hit in hits if hit["category"] == "fish"]))

    assert rank("--minus", "fish") > rank()
    assert rank("--text", "fish") < rank()


def test_command__several_queries_to_csv(command: Cli, indexed: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "q.csv", tmp_path / "hits.csv"
    table.write_text("text,minus\na mug,\nfish,chair\n")
    found = command.json("retrieve", "--index", indexed, "--queries", table, "-k", 3, "--out", out)
    assert [entry["query"] for entry in found] == ["a mug", "fish - chair"]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    assert {row["category"] for row in rows[:3]} == {"mug"}
    q = normalise(world.text_vector("fish") - world.text_vector("chair"))
    expected = load_index(indexed).search(q, 3)
    assert [row["uid"] for row in rows[3:]] == [hit.item.uid for hit in expected]
