"""The backbone of the cookbook, as a package of its own: trained, loaded, exported."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.docs.blocks import ROOT, blocks
from tests.trainer.conftest import MakeShards, make_shards  # noqa: F401 (a fixture)
from trainer import load_student
from trainer.backbones import registry
from trainer.backbones.measure import measure
from trainer.export import export
from trainer.recipe import load_recipe
from trainer.run import train


@pytest.fixture
def mean_net(monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "cookbook.md"
    (code,) = (
        block.text.split("<<'CODE'\n")[1].split("CODE\n")[0]
        for block in blocks(page)
        if block.text.startswith("cat > mean_net.py")
    )
    module = ModuleType("mean_net")
    monkeypatch.setitem(sys.modules, "mean_net", module)  # where its dataclass looks itself up
    exec(code, module.__dict__)
    point = SimpleNamespace(name="mean_net", value="mean_net", load=lambda: module)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [point] * (group == registry.ENTRY_POINTS)
    )


@pytest.mark.usefixtures("mean_net")
def test_backbone__of_the_cookbook_trains_and_is_exported(
    make_shards: MakeShards,  # noqa: F811
    tmp_path: Path,
) -> None:
    changes = ["model.backbone=mean-net", "data.batch_size=8", "train.steps=3", "data.n_points=64"]
    listed = measure("mean-net")
    assert (listed["tokens"], listed["centroids"], listed["neighbours"]) == (0, 1, None)
    run = tmp_path / "run"
    train([make_shards()], load_recipe("tiny", changes), run, device="cpu")
    assert load_student(run).n_points == 64
    card = (run / "README.md").read_text()
    assert "- Backbone: mean-net, 0.00M parameters, 64 points per cloud\n" in card
    assert export(run, tmp_path / "out", "pt2").max_difference < 1e-5
