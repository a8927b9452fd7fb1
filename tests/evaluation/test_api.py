"""What notebooks import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluation
import pipeline
from evaluation import Index
from pipeline.common import InputError
from tests.evaluation import world


def test_index__query_is_what_the_command_finds(fakes: Path, indexed: Path, shards: Path) -> None:
    index = Index.open(indexed)
    found = index.query(text="a red mug", k=3)
    expected = index.search(world.text_vector("a red mug"), 3)
    assert [hit.item.uid for hit in found] == [hit.item.uid for hit in expected]
    some = index.query(text="a mug", minus="a fish", where="category = 'chair'", k=50)
    assert {hit.item.category for hit in some} == {"chair"}
    few = index.query(text="a mug", where="n_faces < 5", shards=str(shards), k=2)
    assert len(few) == 2
    with pytest.raises(InputError, match="give at least one of"):
        index.query()
    with pytest.raises(InputError, match="fingerprints differ"):
        index.query(text="a mug", teacher="other")


def test_index__query_by_shape(fakes: Path, indexed: Path, tmp_path: Path) -> None:
    cloud = tmp_path / "x.npz"
    np.savez(cloud, xyz=world.spell(world.unit_vector(1), np.random.default_rng(0)))
    assert len(Index.open(indexed).query(shape=cloud, checkpoint=fakes, k=4)) == 4


def test_packages__import_nothing_heavy_until_it_is_used() -> None:
    code = (
        "import sys, pipeline, evaluation, trainer\n"
        "heavy = {'torch', 'ray', 'faiss', 'open_clip', 'numba', 'duckdb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from pipeline import ShardSet, embed_folder\n"
        "from evaluation import Index, load_student\n"
        "assert 'ray' not in sys.modules and 'open_clip' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packages__unknown_names_are_attribute_errors() -> None:
    for package in (pipeline, evaluation):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            package.nothing  # noqa: B018
        for name in package.__all__:
            assert getattr(package, name)
