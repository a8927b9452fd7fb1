"""A tiny synthetic world: shards whose clouds spell their own embedding, and a teacher of it.

A class has a direction in D = 8 dimensions; an object's target is near that of its class. The
first three points of its cloud hold the target, so a backbone that reads them is a perfect
student, and every figure is known.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.embeddings import ModelInfo, normalise
from evaluation.student import Student
from pipeline.captions import fill
from pipeline.shards import Manifest, Row, TeacherInfo, create_or_open, write_part

D = 8
N_POINTS = 64
CLASSES = ("mug", "chair", "oak_tree", "fish")
F32 = NDArray[np.float32]


def unit_vector(seed: int, width: int = D) -> F32:
    return normalise(np.random.default_rng(seed).normal(size=width))


def text_vector(text: str) -> F32:
    """The vector of a text: that of the class named in it, moved a little by the other words."""
    words = text.casefold().replace("_", " ")
    base = next((c for c in CLASSES if c.replace("_", " ") in words), None)
    own = unit_vector(zlib.crc32(words.encode()))
    return own if base is None else normalise(unit_vector(CLASSES.index(base)) + 0.05 * own)


def teacher_info(width: int = D, seed: int = 100) -> TeacherInfo:
    vector = unit_vector(seed, width).tolist()
    return TeacherInfo("fake", "v1", {}, width, 100.0, vector, vector)


class FakeTeacher:
    """Stands in for ``pipeline.teacher.Teacher``."""

    def __init__(self, info: TeacherInfo | None = None) -> None:
        self.info = info or teacher_info()

    def encode_texts(self, texts: Sequence[str], /) -> F32:
        return np.stack([text_vector(text) for text in texts])

    def encode_prompts(
        self, names: Sequence[str], templates: Sequence[str], /, *, fit_articles: bool = True
    ) -> F32:
        put = fill if fit_articles else str.format
        prompts = [[text_vector(put(t, name)) for t in templates] for name in names]
        return normalise(np.asarray(prompts, np.float32).mean(1))

    def encode_images(self, images: NDArray[np.uint8], /) -> F32:
        # A picture whose mean red is 50 * i is of class i.
        return np.stack([unit_vector(round(float(x[..., 0].mean()) / 50)) for x in images])


def spell(target: F32, rng: np.random.Generator) -> F32:
    """(N, 3) cloud whose first 8 coordinates are ``target``."""
    xyz = rng.uniform(-0.57, 0.57, (N_POINTS, 3)).astype(np.float32)
    xyz.reshape(-1)[:D] = target
    return xyz


class Reader(torch.nn.Module):
    """The backbone that reads the target; blind, it gives one constant for all."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, xyz_BN3: torch.Tensor, _rgb_BN3: torch.Tensor) -> torch.Tensor:
        values = xyz_BN3.flatten(1)[:, :D]
        return torch.ones_like(values) if self.blind else values


def student(blind: bool = False, info: TeacherInfo | None = None, hash_: str = "abc") -> Student:
    return Student(
        Reader(blind),
        info or teacher_info(),
        32,
        ModelInfo("student", "blind" if blind else "reader", "nowhere", hash_, 7),
        batch_size=5,
    )


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "teacher": teacher_info(),
        "dataset": {"name": "tiny", "options": {}},
        "n_points": N_POINTS,
        "n_fps": 32,
        "n_views": 3,
        "sampling_seed": 0,
        "renderer": {"name": "none", "settings": {"background": [10, 20, 30]}},
        "cameras": {},
        "templates": ["a {}", "the {}"],
    }
    return Manifest(**{**fields, **changes})


def make_shards(
    root: Path,
    count: int = 40,
    noise: float = 0.15,
    seed: int = 0,
    run: int = 1,
    splits: bool = True,
    **changes: Any,
) -> Path:
    """``count`` objects, classes in turn; every fifth has no colour, the last no category.

    Splits change every ``run`` objects: train, test, train ...
    """
    made = manifest(**changes)
    create_or_open(root, made)
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        name = CLASSES[i % len(CLASSES)]
        target = normalise(unit_vector(i % len(CLASSES)) + noise * rng.normal(size=D))
        views = normalise(target + 0.05 * rng.normal(size=(made.n_views, D)))
        texts = [name.replace("_", " "), f"{name} number {i // 8}"]
        color = rng.integers(0, 255, (N_POINTS, 3)).astype(np.uint8)
        rows.append(
            Row(
                uid=f"tiny/{i:03d}",
                dataset="tiny",
                source=f"{i:03d}.glb",
                category=name if i < count - 1 else None,
                split=("test" if i // run % 2 else "train") if splits else None,
                xyz=spell(target, rng),
                rgb=color,
                has_color=i % 5 != 0,
                image_embeds=views,
                texts=texts,
                text_sources=["name", "caption"],
                text_embeds=np.stack([text_vector(text) for text in texts]),
                sha256="0" * 64,
                n_faces=1,
                n_vertices=3,
                n_bytes=10,
            )
        )
    write_part(root, made, rows)
    return root
