"""Weights and clouds as the peers released them, measured in one command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.benchmarks.known.modelnet import CLASSES_40
from evaluation.sources import centred
from pipeline.imports.openshape_eval import EvalOptions, import_eval
from pipeline.shards import ShardSet
from tests.running import Cli
from tests.trainer import reference
from trainer.checkpoint import load_model
from trainer.released import import_weights

WIDTH, POINTS = 1280, 10_000
SHAPES = 8


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as OpenShape released it, of its smallest size, with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    state = reference.openshape_state(dim=256, depth=6, mlp=1024, local=96, width=WIDTH)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


@pytest.fixture(scope="module")
def features() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = [name.replace(" ", "_") for name in CLASSES_40]
    return {name: rng.normal(size=(1, WIDTH)).astype(np.float32) for name in names}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, features: dict[str, np.ndarray]) -> Path:
    """ModelNet40 of the same release: every class named, a few of them with shapes."""
    root = tmp_path_factory.mktemp("release")
    folder = root / "meta_data" / "modelnet40"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    names = [f"{list(features)[i % 40]}_{i:04d}" for i in range(SHAPES + 32)]
    clouds = np.empty(len(names), object)
    for i in range(len(names)):
        size = rng.uniform(0.2, 1, 3)
        xyz = (rng.uniform(-1, 1, (POINTS, 3)) * size).astype(np.float32)
        clouds[i] = {"xyz": xyz, "rgb": np.full((POINTS, 3), 100)}
    np.save(folder / "test_pc.npy", clouds, allow_pickle=True)
    split = [{"name": name, "category": name.rsplit("_", 1)[0]} for name in names]
    (folder / "test_split.json").write_text(json.dumps(split))
    released = {name: {"open_clip_text_feat": value} for name, value in features.items()}
    np.save(folder / "cat_name_pt_feat.npy", np.array(released, object), allow_pickle=True)
    out = root / "shards"
    import_eval(EvalOptions(root, str(out), "modelnet40"))
    return out


def test_zeroshot__released_weights_on_released_clouds_without_a_teacher(
    command: Cli, weights: Path, shards: Path, features: dict[str, np.ndarray], tmp_path: Path
) -> None:
    asked = ("--shards", shards, "--benchmark", "modelnet40", "--protocol", "openshape")
    record = command.json("zeroshot", "--checkpoint", weights, *asked)
    assert record["count"] == 40
    assert record["benchmark_counts"] == [2468]
    assert record["variant"] == "openshape clouds"
    assert "came with the data" in record["protocol"]["measure"]
    assert record["model"]["name"] == "model.pt"
    # The obvious version: every cloud by itself, centred, against the released features.
    model = load_model(weights)
    opened = ShardSet.open(shards)
    texts = np.concatenate([features[name.replace(" ", "_")] for name in CLASSES_40])
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    hits = []
    for batch in opened.batches(["xyz", "category"]):
        assert batch.category is not None
        for xyz, category in zip(batch.xyz_float(), batch.category, strict=True):
            points = torch.from_numpy(centred(xyz[None]))
            with torch.inference_mode():
                embed = model.backbone(points, torch.full_like(points, 0.4))[0].numpy()
            hits.append(int((texts @ embed).argmax()) == CLASSES_40.index(str(category)))
    assert record["metrics"]["top1"]["value"] == pytest.approx(np.mean(hits))
    import_weights("openshape", weights, tmp_path / "model")
    again = command.json("zeroshot", "--checkpoint", tmp_path / "model", *asked)
    assert again["metrics"] == record["metrics"]
    assert again["ranks"] == record["ranks"]


def test_zeroshot__a_file_that_is_no_released_model_is_refused(
    command: Cli, shards: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(3)}, other)
    refused = command.refused("zeroshot", "--checkpoint", other, "--shards", shards)
    assert "other.pt" in refused
    (tmp_path / "text.pt").write_text("no weights")
    refused = command.refused("zeroshot", "--checkpoint", tmp_path / "text.pt", "--shards", shards)
    assert "text.pt" in refused
