from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.common import InputError
from pipeline.shards import POINT_SCALE
from tests.trainer.checkpoints import N_POINTS, write_checkpoint
from tests.trainer.conftest import WIDTH
from trainer import load_student
from trainer.batch import usual_batch
from trainer.checkpoint import DEMO
from trainer.checkpoint import WEIGHTS as CHECKPOINT_WEIGHTS
from trainer.student import Student


@pytest.fixture
def student(tmp_path: Path) -> Student:
    write_checkpoint(tmp_path / "ckpt")
    return load_student(tmp_path / "ckpt", device="cpu")


def clouds(count: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, n, 3)
    return torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)


def test_import__of_the_package_is_light() -> None:
    code = (
        "import sys, trainer\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'ray', 'timm'} & set(sys.modules)\n"
        "assert 'load_student' in trainer.__all__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import trainer

    with pytest.raises(AttributeError, match="no attribute 'load_studnet'"):
        _ = trainer.load_studnet


def test_load_student__says_what_it_is(student: Student) -> None:
    assert (student.width, student.n_points, student.neutral_rgb) == (WIDTH, N_POINTS, 102)
    assert student.teacher.model == "synthetic-0"
    assert student.config["step"] == 5


def test_encode__prepared_is_the_backbone_normalised(tmp_path: Path) -> None:
    backbone = write_checkpoint(tmp_path / "ckpt")
    student = load_student(tmp_path / "ckpt", device="cpu")
    xyz, rgb = clouds(5, N_POINTS + 9)
    with torch.no_grad():
        expected = F.normalize(backbone(xyz[:, :N_POINTS], rgb[:, :N_POINTS]), dim=-1)
    found = student.encode(xyz, rgb, prepared=True, batch_size=2)
    assert found.shape == (5, WIDTH)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found.norm(dim=-1), torch.ones(5))


@pytest.mark.parametrize(("asked", "sizes"), [(None, [16, 4]), (7, [7, 7, 6])])
def test_encode__few_at_a_time_on_a_cpu_unless_told_otherwise(
    student: Student, asked: int | None, sizes: list[int]
) -> None:
    seen: list[int] = []
    student.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    xyz, rgb = clouds(20, N_POINTS)
    student.encode(xyz, rgb, prepared=True, batch_size=asked)
    assert seen == sizes
    assert usual_batch("cuda") == 64


def test_encode__kinds_of_input_agree(student: Student) -> None:
    xyz, rgb = clouds(2, 100)
    bytes_ = (rgb * 255).round().to(torch.uint8)
    expected = student.encode(xyz, bytes_.float() / 255)
    assert torch.equal(student.encode(xyz.numpy(), bytes_.numpy()), expected)
    assert torch.equal(student.encode(xyz.double(), bytes_), expected)
    assert torch.allclose(student.encode(xyz[0], bytes_[0]), expected[:1], atol=1e-6)
    assert student.encode(xyz[:0], rgb[:0]).shape == (0, WIDTH)


def test_encode__place_and_size_do_not_matter(student: Student) -> None:
    xyz, rgb = clouds(3, 90)
    moved = xyz * 40 + torch.tensor([100.0, -3.0, 7.0])
    assert torch.allclose(student.encode(xyz, rgb), student.encode(moved, rgb), atol=1e-4)


def test_encode__without_colour_is_the_neutral_one(student: Student) -> None:
    xyz, _ = clouds(2, 80)
    grey = torch.full(xyz.shape, 102, dtype=torch.uint8)
    assert torch.equal(student.encode(xyz), student.encode(xyz, grey))


def farthest_points(points: NDArray[np.float64], count: int) -> list[int]:
    """The obvious loop, from the point farthest from the mean."""
    chosen = [int(np.linalg.norm(points - points.mean(0), axis=1).argmax())]
    while len(chosen) < count:
        nearest = np.linalg.norm(points[:, None] - points[chosen], axis=2).min(1)
        chosen.append(int(nearest.argmax()))
    return chosen


def test_prepare__farthest_points_first_and_each_point_once(student: Student) -> None:
    xyz, rgb = clouds(4, 200)
    points, colors = student.prepare(xyz, rgb)
    head = student.backbone.centroids
    assert points.shape == colors.shape == (4, N_POINTS, 3)
    for cloud, ours, colours, own in zip(xyz, points, colors, rgb, strict=True):
        centred = cloud - (cloud.amin(0) + cloud.amax(0)) / 2
        unit = (centred / centred.norm(dim=-1).max()).numpy()
        order = farthest_points(unit.astype(np.float64), head)
        assert np.allclose(ours[:head], unit[order], atol=1e-6)
        assert torch.equal(colours[:head], own[order])
        assert len(torch.unique(ours, dim=0)) == N_POINTS


def test_prepare__order_of_the_points_decides_the_rest_only(student: Student) -> None:
    xyz, rgb = clouds(1, N_POINTS)
    shuffled = torch.randperm(N_POINTS, generator=torch.Generator().manual_seed(1))
    points, _ = student.prepare(xyz, rgb)
    again, _ = student.prepare(xyz[:, shuffled], rgb[:, shuffled])
    head = student.backbone.centroids
    assert torch.allclose(points[:, :head], again[:, :head], atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 5, 40])
def test_prepare__small_clouds_are_repeated(student: Student, count: int) -> None:
    xyz, rgb = clouds(2, max(count, 2))
    xyz[:, count:] = xyz[:, :1] + 1  # two points at least, so that there is an extent
    points, _ = student.prepare(xyz, rgb)
    assert points.shape == (2, N_POINTS, 3)
    assert len(torch.unique(points[0], dim=0)) == max(count, 2)


def test_prepare__coinciding_points_are_legal(student: Student) -> None:
    xyz, rgb = clouds(1, 4)
    repeated = xyz.repeat(1, 30, 1)
    points, _ = student.prepare(repeated, rgb.repeat(1, 30, 1))
    assert len(torch.unique(points[0], dim=0)) == 4
    assert torch.isfinite(student.encode(repeated)).all()


def test_encode_stored__as_encode_of_the_decoded(student: Student) -> None:
    rng = np.random.default_rng(0)
    xyz = rng.integers(-POINT_SCALE, POINT_SCALE, (3, N_POINTS, 3)).astype(np.int16)
    rgb = rng.integers(0, 256, xyz.shape).astype(np.uint8)
    has_color = np.array([True, False, True])
    found = student.encode_stored(xyz, rgb, has_color)
    decoded = torch.from_numpy(xyz).float() / POINT_SCALE
    with_color = student.encode(decoded, rgb, prepared=True).numpy()
    without = student.encode(decoded, prepared=True).numpy()
    assert np.allclose(found[[0, 2]], with_color[[0, 2]], atol=1e-6)
    assert np.allclose(found[1], without[1], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xyz": torch.zeros(2, 5)}, r"xyz: shape \(1, 2, 5\)"),
        ({"xyz": torch.full((1, 80, 3), torch.nan)}, "xyz: holds NaN"),
        ({"xyz": torch.ones(1, 80, 3)}, "all points of a cloud coincide"),
        ({"rgb": torch.zeros(1, 79, 3)}, "a colour for every point"),
        ({"rgb": torch.full((1, 80, 3), 200.0)}, r"neither uint8 nor float in \[0, 1\]"),
        ({"rgb": torch.full((1, 80, 3), torch.nan)}, r"neither uint8 nor float in \[0, 1\]"),
        ({"rgb": torch.ones(1, 80, 3, dtype=torch.int32)}, "neither uint8"),
        ({"xyz": torch.rand(1, 63, 3), "prepared": True, "rgb": None}, "trained on 64"),
    ],
)
def test_encode__bad_clouds(student: Student, change: dict[str, Any], message: str) -> None:
    xyz, rgb = clouds(1, 80)
    with pytest.raises(InputError, match=message):
        student.encode(**{"xyz": xyz, "rgb": rgb, **change})


def test_load_student__from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "cache")
    asked = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    for name in ("org/name", "hf-hub:org/name", "org/name@v2"):
        assert load_student(name, device="cpu").config["step"] == 5
    files = ["config.json", "model.safetensors"]
    assert asked == [("org/name", None, files)] * 2 + [("org/name", "v2", files)]


def test_load_student__a_folder_comes_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "org" / "name")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.chdir(tmp_path)
    assert load_student("org/name", device="cpu").n_points == N_POINTS


def test_load_student__hub_without_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError("cannot reach it\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"org/name: .*cannot reach it\); check") as caught:
        load_student("org/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "hf-hub:nowhere"])
def test_load_student__neither_folder_nor_model(name: str) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_student(name)


def test_load_student__demo_comes_with_the_package_and_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    student = load_student("demo", device="cpu")
    assert student.teacher.model == "demo"
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 20_000_000
    assert {path.name for path in DEMO.iterdir()} == {
        "README.md",
        "config.json",
        CHECKPOINT_WEIGHTS,
    }
    card = (DEMO / "README.md").read_text()
    assert "## Limits" in card
    # It knows a cloud again that it sees turned about +y, among others.
    rng = np.random.default_rng(0)
    clouds = rng.normal(size=(4, 2000, 3)) * rng.uniform(0.2, 1, (4, 1, 3))
    turned = clouds[..., [2, 1, 0]] * np.array([1, 1, -1], np.float32)
    both = student.encode(np.concatenate([clouds, turned]).astype(np.float32)).numpy()
    assert (both[:4] @ both[4:].T).argmax(1).tolist() == [0, 1, 2, 3]
