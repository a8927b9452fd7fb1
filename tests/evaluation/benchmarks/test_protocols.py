from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.benchmarks.labels import from_categories
from evaluation.benchmarks.protocols import PROTOCOLS, protocol, stored_class_texts
from evaluation.benchmarks.zeroshot import class_texts
from evaluation.embeddings import normalise
from evaluation.sources import StudentEncoder, centred
from pipeline.common import InputError
from pipeline.shards import Row, ShardSet, create_or_open, write_part
from tests.evaluation import world
from tests.running import Cli


def with_features(root: Path, **dataset: object) -> ShardSet:
    """Three objects whose category comes with a feature of its own, as imported sets have it."""
    made = world.manifest(n_views=0, dataset=dataset or {"name": "openshape", "options": {}})
    create_or_open(root, made)
    rng = np.random.default_rng(0)
    rows = []
    for i, name in enumerate(("mug", "oak tree", "mug")):
        rows.append(
            Row(
                uid=f"x/{i}",
                dataset="openshape",
                source=str(i),
                category=name,
                split="test",
                xyz=world.spell(world.unit_vector(i), rng),
                rgb=np.zeros((world.N_POINTS, 3), np.uint8),
                has_color=False,
                image_embeds=np.zeros((0, world.D), np.float32),
                texts=["a mug of tea", name],
                text_sources=["caption", "category"],
                text_embeds=np.stack([world.unit_vector(9), world.unit_vector(70 + len(name))]),
                sha256="0" * 64,
                n_faces=0,
                n_vertices=0,
                n_bytes=1,
            )
        )
    write_part(root, made, rows)
    return ShardSet.open(root)


def normalize_pc(points: np.ndarray) -> np.ndarray:
    """The step of both, of one cloud, as its description says."""
    points = points - points.mean(0)
    radius = np.sqrt((points**2).sum(1)).max()
    return points * 0 if radius < 1e-6 else points / radius


def test_centred__is_what_the_peers_do_cloud_by_cloud() -> None:
    clouds = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 50, 3)).astype(np.float32) + 0.2
    clouds[3] = 0.25  # one point, many times
    found = centred(clouds)
    for cloud, one in zip(clouds.astype(np.float64), found, strict=True):
        np.testing.assert_allclose(one, normalize_pc(cloud), atol=1e-6)
    assert found.dtype == np.float32


def test_encoder__centres_the_points_that_the_student_takes(tmp_path: Path) -> None:
    opened = with_features(tmp_path / "set")
    seen = []

    class Watching(world.Reader):
        def forward(self, xyz: object, rgb: object) -> object:  # type: ignore[override]
            seen.append(xyz.clone())  # type: ignore[attr-defined]
            return super().forward(xyz, rgb)  # type: ignore[arg-type]

    student = world.student()
    student.backbone = Watching()
    (batch,) = opened.batches(["xyz", "rgb", "has_color"])
    StudentEncoder(student, opened, centre="mean")(batch, np.arange(3))
    StudentEncoder(student, opened)(batch, np.arange(3))
    means = [points.mean(1).abs().max().item() for points in seen]
    assert means[0] < 1e-6 < 0.01 < means[1]
    assert seen[0].norm(dim=2).amax(1).tolist() == pytest.approx([1, 1, 1])


def test_class_texts__openshape_takes_the_features_of_the_data(tmp_path: Path) -> None:
    opened = with_features(tmp_path / "set")
    labels = from_categories(["mug", "oak tree"])

    def never() -> world.FakeTeacher:
        raise AssertionError("no teacher is needed")

    texts = class_texts(opened, labels, never, ["{}"], PROTOCOLS["openshape"])
    expected = normalise(np.stack([world.unit_vector(73), world.unit_vector(78)]))
    np.testing.assert_allclose(texts.embeds, expected, atol=1e-3)
    assert texts.templates == []
    assert "came with the data" in texts.told
    for name, told in (("ours", "an oak tree"), ("uni3d", "a oak tree")):
        prompts = class_texts(opened, labels, world.FakeTeacher, ["a {}"], PROTOCOLS[name])
        wanted = [world.text_vector("a mug"), world.text_vector(told)]
        np.testing.assert_allclose(prompts.embeds, wanted, atol=1e-6)


def test_class_texts__a_class_without_a_feature_needs_the_teacher(tmp_path: Path) -> None:
    opened = with_features(tmp_path / "set")
    labels = from_categories(["mug", "oak tree", "fish"])
    assert stored_class_texts(opened, labels) is None
    texts = class_texts(opened, labels, world.FakeTeacher, ["the {}"], PROTOCOLS["openshape"])
    assert texts.templates == ["the {}"]


def test_class_texts__our_own_texts_of_categories_are_no_release(tmp_path: Path) -> None:
    labels = from_categories(["mug", "oak tree"])
    theirs = {"name": "openshape", "options": {"kind": "lvis"}}
    sets: list[tuple[dict[str, object], bool]] = [
        ({"name": "modelnet", "options": {}}, False),
        ({"name": "merged", "sets": [theirs, {"name": "folder"}]}, False),
        ({"name": "merged", "sets": [theirs, {**theirs, "options": {}}]}, True),
    ]
    for number, (dataset, released) in enumerate(sets):
        opened = with_features(tmp_path / str(number), **dataset)
        assert (stored_class_texts(opened, labels) is not None) == released
        texts = class_texts(opened, labels, world.FakeTeacher, ["a {}"], PROTOCOLS["openshape"])
        assert texts.templates == ([] if released else ["a {}"])


def test_class_texts__templates_that_were_asked_for_are_used(tmp_path: Path) -> None:
    opened = with_features(tmp_path / "set")
    labels = from_categories(["mug", "oak tree"])
    texts = class_texts(
        opened, labels, world.FakeTeacher, ["a {}"], PROTOCOLS["openshape"], asked=True
    )
    assert texts.templates == ["a {}"]
    wanted = [world.text_vector(text) for text in ("a mug", "a oak tree")]  # as their code has it
    np.testing.assert_allclose(texts.embeds, wanted, atol=1e-6)


def test_command__templates_that_were_given_are_not_dropped(
    command: Cli, fakes: Path, tmp_path: Path
) -> None:
    with_features(tmp_path / "set")
    common = ("zeroshot", "--checkpoint", fakes, "--shards", tmp_path / "set")
    given, released = (
        command.json(*common, "--protocol", "openshape", *more)["protocol"]
        for more in (("--templates", "bare"), ())
    )
    assert (given["templates"], released["templates"]) == (["{}"], [])
    assert "came with the data" in released["measure"]
    assert "came with the data" not in given["measure"]


def test_protocol__unknown_names_those_that_there_are() -> None:
    with pytest.raises(InputError, match="--protocol x: use ours, openshape, uni3d"):
        protocol("x")
    assert {name: p.templates for name, p in PROTOCOLS.items()} == {
        "ours": "manifest",
        "openshape": "field64",
        "uni3d": "field64",
    }
