from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.benchmarks.parts import figures, fit, parts_probe, point_features, shape_iou, spread
from evaluation.benchmarks.shapenet_part import open_parts
from evaluation.embeddings import ModelInfo
from evaluation.sources import centred
from evaluation.student import Student
from pipeline.common import InputError
from tests.evaluation import world
from tests.running import Cli
from trainer.backbones.registry import build_backbone

SYNSETS = {"Mug": "03797390", "Table": "04379243"}


def cloud(kind: str, rng: np.random.Generator, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """A mug: body and handle (labels 0, 1). A table: top and legs (labels 2, 3)."""
    part = rng.random(count) < 0.6
    if kind == "Mug":
        angle = rng.uniform(0, 2 * np.pi, count)
        body = np.stack([np.cos(angle), rng.uniform(-1, 1, count), np.sin(angle)], 1)
        handle = np.stack([1.6 + 0.2 * np.cos(angle), 0.6 * np.sin(angle), 0 * angle], 1)
        return np.where(part[:, None], body, handle), np.where(part, 0, 1)
    top = rng.uniform(-1, 1, (count, 3)) * [1, 0.05, 1] + [0, 1, 0]
    legs = rng.uniform(-1, 1, (count, 3)) * [0.05, 1, 0.05]
    legs += rng.choice([-0.9, 0.9], (count, 2)) @ np.array([[1, 0, 0], [0, 0, 1]])
    return np.where(part[:, None], top, legs), np.where(part, 2, 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    lines = [f"{name}\t{synset}" for name, synset in SYNSETS.items()]
    (root / "synsetoffset2category.txt").write_text("\n".join(lines) + "\n")
    (root / "train_test_split").mkdir()
    for split, count in (("train", 8), ("val", 2), ("test", 4)):
        names = []
        for i in range(2 * count):
            kind = list(SYNSETS)[i % 2]
            xyz, parts = cloud(kind, rng)
            name = f"{SYNSETS[kind]}/{split}{i}"
            names.append(f"shape_data/{name}")
            (root / SYNSETS[kind]).mkdir(exist_ok=True)
            table = np.column_stack([xyz * rng.uniform(0.5, 2), 0 * xyz, parts])
            np.savetxt(root / f"{name}.txt", table, fmt="%.6f")
        path = root / "train_test_split" / f"shuffled_{split}_file_list.json"
        path.write_text(json.dumps(names))
    return root


def student(name: str = "tiny", **options: object) -> Student:
    torch.manual_seed(0)
    backbone = build_backbone(name, world.D, dict(options)).eval()
    info = ModelInfo("student", "s", "nowhere", "abc", 7)
    return Student(backbone, world.teacher_info(), 256, info)


def test_probe__finds_parts_that_lie_apart_and_is_deterministic(root: Path) -> None:
    data = open_parts(root)
    record = parts_probe(data, student())
    assert record["count"] == 8
    assert record["protocol"]["n_parts"] == 4
    assert record["metrics"]["instance_miou"]["value"] > 0.85
    assert [(row["name"], row["count"]) for row in record["per_class"]] == [
        ("Mug", 4),
        ("Table", 4),
    ]
    assert parts_probe(data, student())["metrics"] == record["metrics"]
    less = parts_probe(data, student(), points=2, limit=2)
    assert less["count"] == 2
    assert less["metrics"]["instance_miou"]["value"] < record["metrics"]["instance_miou"]["value"]


def test_shape_iou__as_the_definition_says() -> None:
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert shape_iou(truth, predicted, [0, 1]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert shape_iou(truth, predicted, [0, 1, 2]) == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert shape_iou(truth, 1 - truth, [0, 1]) == 0


def test_figures__instances_and_classes_are_averaged_apart() -> None:
    found = figures({"a": [1.0, 0.5, 0.0], "b": [1.0]})
    assert found["metrics"]["instance_miou"]["value"] == pytest.approx(2.5 / 4)
    assert found["metrics"]["class_miou"] == pytest.approx(0.75)


def test_spread__a_centroid_has_its_own_feature_and_the_middle_the_mean() -> None:
    centroids = np.array([[0, 0, 0], [1, 0, 0], [9, 9, 9]], np.float32)
    features = np.eye(3, dtype=np.float32)
    points = np.array([[1, 0, 0], [0.5, 0, 0]], np.float32)
    found = spread(points, centroids, features)
    np.testing.assert_allclose(found[0], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(found[1], [0.5, 0.5, 0], atol=2e-3)
    one = spread(points, centroids[:1], features[:1])
    np.testing.assert_array_equal(one, [[1, 0, 0], [1, 0, 0]])


def test_fit__separates_what_can_be_separated() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 3000)
    features = rng.normal(size=(3000, 8)) + 4 * np.eye(3, 8)[labels]
    probe = fit(features[:2000].astype(np.float16), labels[:2000])
    assert (probe(features[2000:].astype(np.float32)).argmax(1) == labels[2000:]).mean() > 0.97


def test_fit__a_part_that_was_not_drawn_has_scores_and_is_not_predicted() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    features = rng.normal(size=(500, 8)) + 4 * np.eye(2, 8)[labels]
    scores = fit(features, labels, n_parts=4)(features.astype(np.float32))
    assert scores.shape == (500, 4)
    assert (scores.argmax(1) < 2).all()


def test_probe__the_highest_part_may_be_in_no_drawn_point(tmp_path: Path) -> None:
    (tmp_path / "synsetoffset2category.txt").write_text("Table\t1\n")
    for name in ("1", "train_test_split"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for i, split in enumerate(("train", "val", "test")):
        xyz, parts = cloud("Table", rng)
        parts[:1] = 9  # one of 400 points, of which 4 are drawn
        np.savetxt(tmp_path / "1" / f"{i}.txt", np.column_stack([xyz, 0 * xyz, parts]))
        path = tmp_path / "train_test_split" / f"shuffled_{split}_file_list.json"
        path.write_text(json.dumps([f"shape_data/1/{i}"]))
    record = parts_probe(open_parts(tmp_path), student(), points=4, epochs=1)
    assert record["protocol"]["n_parts"] == 3
    assert 0 < record["metrics"]["instance_miou"]["value"] < 1


@pytest.mark.parametrize("name", ["tiny", "uni3d-ti"])
def test_point_features__move_with_the_points_and_not_with_scale(name: str) -> None:
    options = {"depth": 3, "centroids": 32} if name == "uni3d-ti" else {}
    one = student(name, **options)
    xyz, _ = cloud("Mug", np.random.default_rng(3), 300)
    found = point_features(one, xyz.astype(np.float32))
    assert len(found) == 300
    assert np.isfinite(found).all()
    moved = point_features(one, (3 * xyz + 5).astype(np.float32))
    np.testing.assert_allclose(moved, found, atol=2e-3)
    few = point_features(one, xyz[:100].astype(np.float32))  # fewer than the student takes
    assert len(few) == 100


def test_patch_features__of_all_blocks_would_be_the_input_of_the_embedding() -> None:
    """The patches come from the same pass that makes the embedding."""
    one = student("tiny")
    xyz = torch.from_numpy(
        centred(np.random.default_rng(0).normal(size=(2, 256, 3)).astype(np.float32))
    ).float()
    rgb = torch.full_like(xyz, 0.4)
    centroids, features = one.backbone.patch_features(xyz, rgb)  # type: ignore[attr-defined]
    model = one.backbone
    assert centroids.shape == (2, model.centroids, 3)  # type: ignore[attr-defined]
    torch.testing.assert_close(centroids, xyz[:, : centroids.shape[1]])
    seen = []
    blocks = model.blocks  # type: ignore[attr-defined]
    hooks = [b.register_forward_hook(lambda _m, _i, out: seen.append(out)) for b in blocks]
    model(xyz, rgb)
    for hook in hooks:
        hook.remove()
    width = seen[0].shape[-1]
    kept = features.shape[-1] // width
    last = torch.nn.functional.layer_norm(seen[len(blocks) - 2][:, 1:], (width,))
    torch.testing.assert_close(features[..., (kept - 1) * width :], last)


def test_point_features__a_backbone_without_patches_is_refused() -> None:
    with pytest.raises(InputError, match="checkpoint reader: its backbone has no patches"):
        point_features(world.student(), np.zeros((40, 3), np.float32))


def test_open__other_folders_and_damaged_files_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no synsetoffset2category.txt; give the folder"):
        open_parts(tmp_path)
    data = open_parts(root)
    with pytest.raises(InputError, match=r"shuffled_test_file_list.json: missing"):
        replace(data, root=tmp_path).listed("test")
    split = tmp_path / "train_test_split"
    split.mkdir()
    path = split / "shuffled_test_file_list.json"
    for text, told in [
        ("{", "not JSON"),
        ("{}", "not a list"),
        ("[]", "names no shape"),
        ('["shape_data/999/x"]', "names 999/x, of no category"),
        ('["shape_data/../03797390/.."]', "of no category"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=told):
            replace(data, root=tmp_path).listed("test")
    path.write_text('["shape_data/03797390/a"]')
    folder = tmp_path / "03797390"
    folder.mkdir()
    for content, told in [
        (None, "missing, though a list names it"),
        ("1 2 3\n", "3 columns"),
        ("a b\n", "not rows of numbers"),
        ("1 2 3 0 0 0 nan\n", "not points"),
    ]:
        if content is not None:
            (folder / "a.txt").write_text(content)
        with pytest.raises(InputError, match=told):
            list(replace(data, root=tmp_path).shapes("test"))


def test_parts__as_a_command(
    command: Cli, fakes: Path, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from evaluation import student as module

    monkeypatch.setattr(module, "load_student", lambda *_: student())
    out = tmp_path / "parts.json"
    common = ("parts", "--checkpoint", fakes, "--root", root)
    printed = command.ok(*common, "--limit", 4, "--epochs", 5, "--out", out)
    assert "instance mIoU" in printed
    page = tmp_path / "page.html"
    command.ok("report", out, "--out", page)
    assert "Parts of shapenet-part" in page.read_text()
    assert "--split train: use test or val" in command.refused(*common, "--split", "train")
