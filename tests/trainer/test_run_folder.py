from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.common import InputError
from tests.trainer.conftest import small_recipe
from trainer.run_folder import reopen, write_run


def test_reopen__a_folder_called_as_the_initial_weights_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, recipe = tmp_path / "run", small_recipe("model.init=demo")
    write_run(out, recipe, [tmp_path / "shards"])
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    for given, overrides in ((None, []), (None, ["train.keep=3"]), (recipe, [])):
        found, shards = reopen(out, given, [], overrides)
        assert found.model == recipe.model
        assert shards == [str(tmp_path / "shards")]


def test_reopen__weights_that_are_given_again_are_found_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, weights = tmp_path / "run", tmp_path / "first"
    weights.mkdir()
    write_run(out, small_recipe(f"model.init={weights}"), [])
    monkeypatch.chdir(tmp_path)
    found, _ = reopen(out, small_recipe("model.init=first"), [], [])
    assert found.model.init == str(weights)
    with pytest.raises(InputError, match=r"resume: model\.init is .*other.*, the run started with"):
        reopen(out, None, [], ["model.init=other"])
