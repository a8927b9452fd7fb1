"""The Triton kernels against the plain versions: on a GPU, or interpreted on the CPU."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer import grouping
from trainer.backbones import build_backbone, pointbert

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def clouds(batch: int, points: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, points, 6, generator=generator) * 2 - 1).to(DEVICE)


def compare_all() -> None:
    """Every kernel against its oracle; called on a GPU, and on the CPU by the interpreter."""
    from trainer import triton_grouping as kernels

    # Sizes below, at and above one block of the scan; radii with empty, partial and full balls.
    for batch, points, centroids, k in ((1, 7, 3, 4), (1, 1024, 2, 8), (2, 1500, 2, 33)):
        cloud = clouds(batch, points, points)
        xyz, middle = cloud[..., :3], cloud[:, :centroids, :3]
        for radius in (0.05, 0.4, 4.0):
            expected = grouping.plain_ball_query(middle, xyz, radius, k)
            assert torch.equal(kernels.neighbours(xyz, middle, k, radius), expected)
            grouped = grouping.gather_points(cloud, expected)
            grouped = torch.cat([grouped[..., :3] - middle[:, :, None], grouped], dim=-1)
            assert torch.equal(kernels.grouped(cloud, middle, k, radius), grouped)
        far = middle + 9.0  # empty balls: the nearest point, k times
        expected = grouping.plain_ball_query(far, xyz, 0.1, k)
        assert torch.equal(kernels.neighbours(xyz, far, k, 0.1), expected)
        expected = grouping.plain_knn(middle, xyz, k).sort(-1).values
        index = kernels.neighbours(xyz, middle, k, None)
        assert torch.equal(index, expected)  # in the order of the index
        grouped = grouping.gather_points(cloud, expected)
        grouped = torch.cat([grouped[..., :3] - middle[:, :, None], grouped], dim=-1)
        assert torch.equal(kernels.grouped(cloud, middle, k, None), grouped)

    # Equal distances: each point is there three times; the lower index goes first. Some of them lie
    # in one part of the scan, some in two.
    for points in (40, 600):
        base = clouds(1, points, 3)
        cloud = torch.cat([base, base, base], dim=1)
        index = kernels.neighbours(cloud, base[:, :4, :3], 5, None)
        for row in range(4):
            squared = (cloud[0, :, :3] - base[0, row, :3]).square().sum(-1)
            order = torch.argsort(squared, stable=True)[:5]
            assert sorted(index[0, row].tolist()) == sorted(order.tolist())
    assert kernels.knn_fits(16_384)
    assert not kernels.knn_fits(16_385)


def compile_backbone() -> None:
    """A backbone with the kernels as one graph; called by the interpreter."""
    # As on a GPU, where the kernels take every search of the backbone.
    vars(pointbert)["group_points"] = functools.partial(grouping._fused, "grouped")
    model = build_backbone("tiny", 16, {"centroids": 8, "neighbours": 4}).eval()
    cloud = clouds(1, 64)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(
            whole(cloud[..., :3], cloud[..., 3:]), model(cloud[..., :3], cloud[..., 3:])
        )


@pytest.mark.parametrize("checked", ["compare_all", "compile_backbone"])
def test_kernels__equal_the_plain_versions_in_the_interpreter(checked: str) -> None:
    pytest.importorskip("triton")
    # Triton reads the variable when it is imported, so this needs a process of its own.
    code = f"from tests.trainer.test_triton_grouping import {checked}; {checked}()"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("points", [None, 1024, 10_000, 16_384])
def test_kernels__compile_for_a_gpu_and_keep_everything_in_registers(
    capability: int, points: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton and its assembler need no GPU. The interpreter takes what the compiler does not."""
    triton = pytest.importorskip("triton", minversion="3.3", reason="needs Triton 3.3")
    if INTERPRETED:
        pytest.skip("the interpreter compiles nothing")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trainer import triton_grouping as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants: dict[str, int] = {"channels": 6, "K": 64, "INDEX": False}
    if points is None:
        kernel, warps = kernels._ball_kernel, kernels.BALL_WARPS
        constants |= {"BLOCK_K": 64, "BLOCK": kernels.SCAN}
    else:
        block = triton.next_power_of_2(points)
        kernel, warps = kernels._knn_kernel, kernels.knn_warps(block)
        constants |= {"BLOCK": block, "PART": min(block, kernels.SCAN)}
    types = {"points": "*fp32", "centroids": "*fp32", "out": "*fp32", "radius2": "fp32"}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in kernel.arg_names
    }
    place = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(
        ASTSource(kernel, signature, place),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "enable_fp_fusion": False},
    )
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    told = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    [(registers, stack)] = re.findall(r"REG:(\d+) STACK:(\d+)", told)
    assert int(stack) == 0, "values are spilled to memory"
    assert int(registers) * warps * 32 <= 65_536, "a program has more registers than there are"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels__equal_the_plain_versions_on_a_gpu() -> None:
    compare_all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels__are_the_same_each_time_and_used_by_default() -> None:
    cloud = clouds(8, 10_000)
    middle = cloud[:, :384, :3]
    first = grouping.group_points(cloud, middle, 64, 0.2)
    assert torch.equal(first, grouping.group_points(cloud, middle, 64, 0.2))
    assert torch.equal(first, grouping.plain_group(cloud, middle, 64, 0.2))
    assert grouping.find_kernels() is not None


def test_group_points__falls_back_with_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MRD3D_TRITON", "0")
    monkeypatch.setattr(grouping, "_found", [])
    assert grouping.find_kernels() is None
    assert "plain PyTorch" in capsys.readouterr().err


def test_group_points__falls_back_where_triton_is_there_and_cannot_launch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = pytest.importorskip("trainer.triton_grouping", exc_type=ImportError)

    def fails() -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")

    monkeypatch.setattr(grouping, "_found", [])
    monkeypatch.setattr(kernels, "try_out", fails)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert grouping.find_kernels() is None
    told = capsys.readouterr().err
    assert "plain PyTorch" in told
    assert "(Failed to find C compiler.)" in told
    assert grouping.find_kernels() is None
    assert capsys.readouterr().err == ""  # told once


def test_group_points__is_offset_then_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    cloud = torch.rand(2, 30, 6, generator=generator)
    for radius in (None, 0.3):
        grouped = grouping.group_points(cloud, cloud[:, :5, :3], 4, radius)
        assert grouped.shape == (2, 5, 4, 9)
        torch.testing.assert_close(grouped[..., :3] + cloud[:, :5, None, :3], grouped[..., 3:6])
        if radius is not None:
            assert float(grouped[..., :3].norm(dim=-1).max()) <= 0.3 + 1e-6
