from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from evaluation.embeddings import ModelInfo
from evaluation.shapes import load_cloud
from evaluation.sources import MeshSource, StudentEncoder, ViewsEncoder, find_meshes, view_embeds
from evaluation.student import Student, load_student, pick_device, run_name
from pipeline.common import InputError
from pipeline.datasets.folder import FolderDataset
from pipeline.shards import ShardSet
from tests.evaluation import world


class Recorder(torch.nn.Module):
    """Keeps its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, xyz: torch.Tensor, rgb: torch.Tensor) -> torch.Tensor:
        self.calls.append((xyz, rgb))
        return torch.ones(len(xyz), world.D)


def recording(
    n_points: int = 6, batch_size: int | None = 2, pool: int = 40
) -> tuple[Student, Recorder]:
    backbone = Recorder()
    model = ModelInfo("student", "recorder")
    student = Student(
        backbone, world.teacher_info(), n_points, model, batch_size=batch_size, pool_points=pool
    )
    return student, backbone


def test_embed__prefix_batches_and_neutral_colour() -> None:
    student, backbone = recording()
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-1, 1, (5, 10, 3)).astype(np.float32)
    rgb = rng.integers(0, 256, (5, 10, 3)).astype(np.uint8)
    has_color = np.array([True, False, True, False, True])
    found = student.embed(xyz, rgb, has_color)
    assert [len(x) for x, _ in backbone.calls] == [2, 2, 1]
    np.testing.assert_array_equal(torch.cat([x for x, _ in backbone.calls]), xyz[:, :6])
    colors = torch.cat([c for _, c in backbone.calls]).numpy()
    np.testing.assert_allclose(colors[has_color], rgb[has_color, :6] / 255, atol=1e-7)
    np.testing.assert_allclose(colors[~has_color], 102 / 255, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_embed__few_at_a_time_on_a_cpu_unless_told_otherwise() -> None:
    student, backbone = recording(batch_size=None)
    student.embed(
        np.zeros((20, 6, 3), np.float32), np.zeros((20, 6, 3), np.uint8), np.ones(20, bool)
    )
    assert [len(x) for x, _ in backbone.calls] == [16, 4]


def test_embed__no_clouds_and_too_small_clouds() -> None:
    student, _ = recording()
    none = student.embed(
        np.zeros((0, 6, 3), np.float32), np.zeros((0, 6, 3), np.uint8), np.zeros(0, bool)
    )
    assert none.shape == (0, world.D)
    with pytest.raises(InputError, match="5 points, but checkpoint recorder was trained on 6"):
        student.embed(
            np.zeros((1, 5, 3), np.float32), np.zeros((1, 5, 3), np.uint8), np.ones(1, bool)
        )


def test_embed__a_diverged_or_foreign_backbone_is_named() -> None:
    student, _ = recording()
    cloud = np.zeros((1, 6, 3), np.float32), np.zeros((1, 6, 3), np.uint8), np.ones(1, bool)
    student.backbone = lambda xyz, _: torch.full((len(xyz), world.D), torch.nan)
    with pytest.raises(InputError, match="not finite"):
        student.embed(*cloud)
    student.backbone = lambda xyz, _: torch.ones(len(xyz), 3)
    with pytest.raises(InputError, match="yields 3 values"):
        student.embed(*cloud)


def test_encoders__refuse_other_teachers_small_clouds_and_sets_without_views(
    tmp_path: Path, shards: Path
) -> None:
    opened = ShardSet.open(shards)
    with pytest.raises(InputError, match="fingerprints differ"):
        StudentEncoder(world.student(info=world.teacher_info(8, 5)), opened)
    with pytest.raises(InputError, match="width 9 against 8"):
        StudentEncoder(world.student(info=world.teacher_info(9)), opened)
    small, _ = recording(n_points=world.N_POINTS + 1)
    with pytest.raises(InputError, match="clouds of 64 points"):
        StudentEncoder(small, opened)
    bare = ShardSet.open(world.make_shards(tmp_path / "bare", 4, n_views=0))
    with pytest.raises(InputError, match="no image embeddings"):
        ViewsEncoder(bare)


def test_view_embeds__mean_and_first() -> None:
    views = np.array([[[1, 0], [0, 1]]], np.float16)
    np.testing.assert_allclose(view_embeds(views, "first"), [[1, 0]])
    np.testing.assert_allclose(view_embeds(views, "mean"), [[0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_load_cloud__is_centred_scaled_and_in_farthest_point_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(200, 3)) * 7 + [100, 0, -5]
    rgb = rng.uniform(0, 1, (200, 3))
    np.savez(tmp_path / "c.npz", xyz=xyz, rgb=rgb)
    cloud = load_cloud(tmp_path / "c.npz", 20)
    assert cloud.has_color
    assert np.linalg.norm(cloud.xyz, axis=1).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(cloud.xyz.min(0), -cloud.xyz.max(0), atol=1e-6)
    # Each of the first 20 is the farthest from those before it.
    for i in range(1, 20):
        to_prefix = np.linalg.norm(cloud.xyz[:, None] - cloud.xyz[None, :i], axis=2).min(1)
        assert to_prefix[i] == pytest.approx(to_prefix.max(), abs=1e-5)
    # Colours moved with their points.
    centre = (xyz.min(0) + xyz.max(0)) / 2
    scaled = (xyz - centre) / np.linalg.norm(xyz - centre, axis=1).max()
    for row in (0, 57, 199):
        origin = int(np.linalg.norm(scaled - cloud.xyz[row], axis=1).argmin())
        np.testing.assert_array_equal(cloud.rgb[row], np.rint(rgb[origin] * 255))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.zeros((4, 3))}, "xyz is missing"),
        ({"xyz": np.zeros((4, 2))}, "xyz is missing or not"),
        ({"xyz": np.zeros((0, 3))}, "holds no points"),
        ({"xyz": np.zeros((4, 3))}, "all points coincide"),
        ({"xyz": np.full((4, 3), np.nan)}, "NaN"),
        ({"xyz": np.eye(3), "rgb": np.zeros((2, 3), np.uint8)}, "rgb has shape"),
        ({"xyz": np.eye(3), "rgb": np.full((3, 3), 2.0)}, "neither uint8"),
        ({"xyz": np.array([["a", "b", "c"]])}, "not \\(N, 3\\) numbers"),
    ],
)
def test_load_cloud__what_is_wrong_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "c.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        load_cloud(tmp_path / "c.npz", 2)


def test_load_cloud__damaged_file_and_pickles(tmp_path: Path) -> None:
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match=r"c\.npz"):
        load_cloud(tmp_path / "c.npz", 2)
    np.savez(tmp_path / "p.npz", xyz=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="not a readable"):
        load_cloud(tmp_path / "p.npz", 2)


def test_embed_cloud__small_clouds_are_repeated(tmp_path: Path) -> None:
    student, backbone = recording(n_points=7)
    np.savez(tmp_path / "c.npz", xyz=np.eye(3))
    student.embed_cloud(student.load_shape(tmp_path / "c.npz"))
    xyz = backbone.calls[0][0][0]
    assert xyz.shape == (7, 3)
    np.testing.assert_array_equal(xyz[3:6], xyz[:3])


def test_embed_mesh__up_axis_seed_and_colour(tmp_path: Path) -> None:
    student, backbone = recording(n_points=30)
    box = trimesh.creation.box((1, 2, 0.2))  # tall along y
    box.export(tmp_path / "box.stl")
    for up_axis, seed in (("auto", 0), ("auto", 0), ("auto", 1), ("+z", 0)):
        student.embed_mesh(tmp_path / "box.stl", up_axis, seed)
    clouds = [xyz[0] for xyz, _ in backbone.calls]
    assert torch.equal(clouds[0], clouds[1])
    assert not torch.equal(clouds[0], clouds[2])
    # The height is the longest axis; with +z up it is the thinnest.
    assert int(np.ptp(clouds[0].numpy(), axis=0).argmax()) == 1
    assert int(np.ptp(clouds[3].numpy(), axis=0).argmin()) == 1
    assert float(backbone.calls[0][1].max()) == pytest.approx(102 / 255)
    with pytest.raises(InputError, match="--up-axis up"):
        student.embed_mesh(tmp_path / "box.stl", "up")


def test_mesh_source__broken_files_are_failures_not_the_end(tmp_path: Path) -> None:
    student, _ = recording()
    (tmp_path / "sub").mkdir()
    trimesh.creation.box().export(tmp_path / "sub" / "red_box-2.stl")
    (tmp_path / "broken.glb").write_bytes(b"")
    (tmp_path / "notes.txt").touch()
    files = find_meshes([tmp_path])
    assert [file.name for file in files] == ["broken.glb", "sub/red_box-2.stl"]
    source = MeshSource(student, files)
    found = list(source.rows())
    assert [(row.uid, row.texts) for row in found] == [(["folder/sub/red_box-2"], [["red box 2"]])]
    assert [name for name, _ in source.failures] == ["broken.glb"]
    assert "empty_file" in source.failures[0][1]


def make_tree(root: Path) -> Path:
    """Files that need not be meshes, with names that are hard to tell apart."""
    for name in (
        *("b.glb", "a/mesh.glb", "b/mesh.glb", "b/mesh.obj", "b/deep/x.PLY", "c d/é.stl"),
        *("same.glb", "same.glb.glb", "dots.v2.glb", ".hidden.glb", ".git/x.glb"),
        *("__MACOSX/b.glb", "notes.txt", "b/mesh.mtl", os.fsdecode(b"bad\xff.glb")),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_find_meshes__a_folder_has_the_uids_of_the_dataset_folder(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "set")
    records = list(FolderDataset(root, auto_metadata=False).records())
    found = find_meshes([root])
    assert {(one.uid, one.name) for one in found} == {(r.uid, r.source) for r in records}
    assert len(found) == len({one.uid for one in found}) == 10
    assert all(one.path.is_file() for one in found)
    assert tuple(
        next(one.uid for one in found if one.name == name) for name in ("a/mesh.glb", "b/mesh.glb")
    ) == ("folder/a/mesh", "folder/b/mesh.glb")


def test_find_meshes__several_are_named_from_what_they_have_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(tmp_path / "set")

    def named(*paths: Path | str) -> list[tuple[str, str]]:
        return [(one.uid, one.name) for one in find_meshes([Path(path) for path in paths])]

    two = [("folder/a/mesh", "a/mesh.glb"), ("folder/b/mesh", "b/mesh.glb")]
    assert named(root / "a/mesh.glb", root / "b/mesh.glb") == two
    assert named(root / "a", root / "b/mesh.glb") == two
    assert named(root / "b/mesh.glb") == [("folder/mesh", "mesh.glb")]
    assert named(root / "b/mesh.glb", root / "b/mesh.obj") == [
        ("folder/mesh.glb", "mesh.glb"),
        ("folder/mesh.obj", "mesh.obj"),
    ]
    assert len(named(root, root / "a", root / "b/mesh.glb")) == 10  # each once
    monkeypatch.chdir(root)
    assert named("a/mesh.glb", "./a/../b/mesh.glb") == two
    assert find_meshes([Path("a")])[0].path == Path("a/mesh.glb")  # as it was given


def test_find_meshes__empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no mesh file"):
        find_meshes([tmp_path])


def test_pick_device__an_absent_one_is_refused() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda")
    with pytest.raises(InputError, match="--device nonsense"):
        pick_device("nonsense")


def test_run_name__checkpoint_inside_of_a_run() -> None:
    assert run_name(Path("runs/mrd")) == "mrd"
    assert run_name(Path("runs/mrd/checkpoints/step-00000100")) == "mrd/step-00000100"


def test_run_name__the_best_of_two_runs_are_told_apart(tmp_path: Path) -> None:
    assert run_name(Path("runs/a/best")) == "a/best"
    assert run_name(Path("runs/b/best")) == "b/best"
    (tmp_path / "best").mkdir()  # a run that is called so
    assert run_name(tmp_path / "best") == "best"


def test_load_student__a_real_checkpoint_embeds_as_its_backbone_does(tmp_path: Path) -> None:
    from trainer import checkpoint
    from trainer.backbones import build_backbone

    torch.manual_seed(0)
    options = {"dim": 32, "depth": 1, "heads": 1, "centroids": 8, "neighbours": 8}
    backbone = build_backbone("tiny", world.D, options).eval()
    run = tmp_path / "run"
    config = {
        "backbone": {"name": "tiny", "options": options},
        "teacher": world.teacher_info().__dict__,
        "n_points": 32,
        "step": 5,
        "neutral_rgb": 102,
        "data": {"n_points": 64},
    }
    checkpoint.save(checkpoint.checkpoint_path(run, 5), config, backbone.state_dict())
    student = load_student(run)
    assert (student.n_points, student.model.step, student.model.name) == (32, 5, "run")
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-0.5, 0.5, (3, 64, 3)).astype(np.float32)
    rgb = rng.integers(0, 256, (3, 64, 3)).astype(np.uint8)
    found = student.embed(xyz, rgb, np.ones(3, bool))
    with torch.inference_mode():
        wanted = backbone(torch.tensor(xyz[:, :32]), torch.tensor(rgb[:, :32]) / 255)
    wanted = torch.nn.functional.normalize(wanted, dim=-1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(InputError):
        load_student(tmp_path / "none")


def test_encoder__draws_are_averaged_seeded_and_independent_of_the_batch(shards: Path) -> None:
    opened = ShardSet.open(shards)
    batch = opened.read(opened.row_groups[0], ["xyz", "rgb", "has_color"])
    rows = np.arange(6)
    one = StudentEncoder(world.student(), opened)
    three = StudentEncoder(world.student(), opened, draws=3, seed=4)
    each = three.each_draw(batch, rows)
    assert each.shape == (3, 6, world.D)
    np.testing.assert_array_equal(each[0], one(batch, rows))
    np.testing.assert_allclose(
        three(batch, rows), each.mean(0) / np.linalg.norm(each.mean(0), axis=1, keepdims=True),
        atol=1e-6,
    )  # fmt: skip
    np.testing.assert_array_equal(three.each_draw(batch, rows[4:])[:, 0], each[:, 4])
    other = StudentEncoder(world.student(), opened, draws=3, seed=5).each_draw(batch, rows)
    assert not np.array_equal(other[1], each[1])
    # A further draw is points of the cloud, farthest from each other first.
    points, colors = three._drawn(batch, 2, 1)
    assert batch.xyz is not None
    assert batch.rgb is not None
    pool = {
        (*xyz, *rgb)
        for xyz, rgb in zip(batch.xyz_float()[2].tolist(), batch.rgb[2].tolist(), strict=True)
    }
    drawn = [(*p, *c) for p, c in zip(points.tolist(), colors.tolist(), strict=True)]
    assert len(drawn) == len(set(drawn)) == 32
    assert set(drawn) <= pool
    gaps = [np.linalg.norm(points[:i] - points[i], axis=1).min() for i in range(1, len(points))]
    assert all(a >= b - 1e-6 for a, b in pairwise(gaps))


def test_encoder__draws_need_points_to_choose_from(tmp_path: Path) -> None:
    opened = ShardSet.open(world.make_shards(tmp_path / "s", count=4))
    student, _ = recording(n_points=40)
    StudentEncoder(student, opened)
    with pytest.raises(InputError, match="--draws 2 needs twice as many"):
        StudentEncoder(student, opened, draws=2)
