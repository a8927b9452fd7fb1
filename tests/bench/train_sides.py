"""What the training benchmarks compare: ready batches, and the sides as functions of one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.points import farthest_point_order
from pipeline.shards import (
    POINT_SCALE,
    Manifest,
    Row,
    TeacherInfo,
    create_or_open,
    write_part,
)
from tests.bench.train_plain import PlainTrainer
from trainer.backbones.pointbert import PointBert
from trainer.batch import CloudBatch, Position
from trainer.config import Recipe
from trainer.data import Batches
from trainer.loop import Loop
from trainer.recipe import load_recipe
from trainer.task import DistillTask

RECIPE = "mrd-pointbert-32m"
WIDTH, POINTS, N_FPS = 1280, 10_000, 2048
Work = Callable[[], object]
TableParts = tuple[str, list[str], list[list[object]], str]

# Data: boxes of several proportions, points in farthest-point order, random embeddings.


def make_clouds(
    count: int, points: int = POINTS, n_fps: int = N_FPS
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """(B, N, 3) points on the surfaces of boxes in the unit ball, and their colours."""
    rng = np.random.default_rng(0)
    xyz = np.empty((count, points, 3), np.float32)
    for place in range(count):
        size = rng.uniform(0.3, 1.0, 3)
        cloud = rng.uniform(-1, 1, (points, 3))
        axis = rng.choice(3, points, p=(1 / size) / (1 / size).sum())  # by area
        cloud[np.arange(points), axis] = rng.choice([-1.0, 1.0], points)
        cloud *= size / np.linalg.norm(size)
        wide = cloud.astype(np.float32)
        xyz[place] = wide[farthest_point_order(wide, n_fps)]
    return xyz, rng.integers(0, 256, xyz.shape, dtype=np.uint8)


def make_batch(count: int, points: int = POINTS, n_fps: int = N_FPS) -> CloudBatch:
    """A batch as the loader hands it over: quantised, an image and a text for every cloud."""
    xyz, rgb = make_clouds(count, points, n_fps)
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(count, WIDTH, generator=generator).half() for _ in range(2))
    return CloudBatch(
        row=np.arange(count),
        xyz=torch.from_numpy(np.rint(xyz * POINT_SCALE).astype(np.int16)),
        rgb=torch.from_numpy(rgb),
        image=image,
        text=text,
        has_text=torch.ones(count, dtype=torch.bool),
        next=Position(),
    )


def write_shards(root: Path, count: int) -> None:
    """The same clouds as a shard set, with 12 views and a text each."""
    xyz, rgb = make_clouds(count)
    rng = np.random.default_rng(1)
    direction = [1.0] + [0.0] * (WIDTH - 1)
    manifest = Manifest(
        teacher=TeacherInfo("none", "", {}, WIDTH, 100.0, direction, direction),
        dataset={"name": "boxes", "options": {}},
        n_points=POINTS,
        n_fps=N_FPS,
        n_views=12,
        sampling_seed=0,
        renderer={"name": "none"},
        cameras={},
        templates=["{}"],
        versions={},
    )
    rows = [
        Row(
            uid=f"boxes/{place}",
            dataset="boxes",
            source=f"{place}.glb",
            category="box",
            split=None,
            xyz=xyz[place],
            rgb=rgb[place],
            has_color=True,
            image_embeds=_unit(rng.normal(size=(12, WIDTH))),
            texts=["a box"],
            text_sources=["name"],
            text_embeds=_unit(rng.normal(size=(1, WIDTH))),
            sha256="0" * 64,
            n_faces=12,
            n_vertices=8,
            n_bytes=100,
        )
        for place in range(count)
    ]
    write_part(root, create_or_open(root, manifest), rows)


def _unit(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True), np.float32)


# The sides of the comparison.


def make_recipe(batch: int, *overrides: str) -> Recipe:
    """The recipe of the 32M at another batch."""
    fixed = [f"data.batch_size={batch}", "data.val_fraction=0", "train.precision=fp32"]
    return load_recipe(RECIPE, [*fixed, *overrides])


class Ready:
    """Stands for the loader: one batch, again and again."""

    rows_per_epoch = 1_000_000

    def __init__(self, batch: CloudBatch) -> None:
        self.batch = batch


def make_loop(recipe: Recipe, batch: CloudBatch, device: str = "cpu") -> tuple[Loop, DistillTask]:
    """The trainer's loop on a ready batch; ``step`` below runs it."""
    task = DistillTask(recipe, WIDTH, torch.device(device))
    loop = Loop(
        task,
        cast(Batches, Ready(batch)),
        None,
        None,
        lambda _: None,
        train=recipe.train,
        optim=recipe.optim,
        total=1_000_000,
    )
    return loop, task


def step(loop: Loop, batch: CloudBatch) -> Tensor:
    """One step of the trainer as the loop takes it; its loss."""
    return loop._step(batch)[0].loss


def point_bert(task: DistillTask) -> PointBert:
    """The student."""
    assert isinstance(task.student, PointBert)
    return task.student


def bare(student: PointBert, tokens_BTC: Tensor) -> Tensor:
    """Forward of the student's own trunk and projection on ready tokens."""
    for block in student.blocks:
        tokens_BTC = block(tokens_BTC)
    embedding: Tensor = student.project(tokens_BTC[:, 0])
    return embedding


def bare_work(student: PointBert, batch: int, autocast: bool = False) -> Work:
    """Forward and backward of the bare transformer; the tokens' gradient is computed too."""
    device = student.cls_token.device
    tokens = torch.randn(batch, student.tokens, student.options.dim, device=device)
    tokens.requires_grad_()
    gradient = torch.randn(batch, WIDTH, device=device)

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            embedding = bare(student, tokens).float()
        embedding.backward(gradient)  # type: ignore[no-untyped-call]

    return work


def plain_work(
    plain: PlainTrainer, batch: CloudBatch, device: str = "cpu", autocast: bool = False
) -> Work:
    """A step of the baseline: its clouds are decoded and never augmented."""
    clouds = batch.to(torch.device(device))
    assert clouds.image is not None
    assert clouds.text is not None
    inputs = clouds.xyz, clouds.rgb, clouds.image, clouds.text

    def work() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            plain.step(*inputs)

    return work
