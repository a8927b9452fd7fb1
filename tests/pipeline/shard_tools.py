"""Small shard sets for tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.shards import Manifest, Row, TeacherInfo, create_or_open, write_part


def make_manifest(
    *, n_points: int = 8, n_views: int = 2, width: int = 4, **changes: Any
) -> Manifest:
    """A valid manifest of a small set; ``changes`` replace its fields."""
    first = [1.0] + [0.0] * (width - 1)
    teacher = TeacherInfo("toy", "v1", {"context": 77}, width, 100.0, first, first[::-1])
    manifest = Manifest(
        teacher=teacher,
        dataset={"name": "toy", "options": {"count": 3}},
        n_points=n_points,
        n_fps=n_points // 2,
        n_views=n_views,
        sampling_seed=7,
        renderer={"name": "raster", "version": "1", "settings": {"image_size": 224}},
        cameras={"name": "ring", "fov_y_deg": 40.0, "poses": [[1.0, 0.0], [0.0, 1.0]]},
        templates=["a 3D model of {}."],
        versions={"numpy": "2.0"},
    )
    return replace(manifest, **{"contract_version": 0, **changes})  # 0: found anew


def unit(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """The vectors of the last axis, L2-normalised."""
    normalised = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(normalised, np.float32)


def make_row(manifest: Manifest, uid: str, *, n_texts: int = 2, **changes: Any) -> Row:
    """A valid row with random content that depends on ``uid`` alone."""
    rng = np.random.default_rng(list(uid.encode("utf-8", "replace")))
    n, v, d = manifest.n_points, manifest.n_views, manifest.teacher.width
    row = Row(
        uid=uid,
        dataset="toy",
        source=f"{uid}.glb",
        category=str(rng.choice(["mug", "chair", "tree"])),
        split=None,
        xyz=rng.uniform(-1, 1, (n, 3)).astype(np.float32),
        rgb=rng.integers(0, 256, (n, 3), dtype=np.uint8),
        has_color=bool(rng.integers(2)),
        image_embeds=unit(rng.normal(size=(v, d))),
        texts=[f"text {k} of {uid}" for k in range(n_texts)],
        text_sources=["name", "tags", "caption"][:n_texts],
        text_embeds=unit(rng.normal(size=(n_texts, d))),
        sha256="0" * 64,
        n_faces=int(rng.integers(1, 10_000)),
        n_vertices=12,
        n_bytes=345,
    )
    return replace(row, **changes)


def make_set(root: str | Path, manifest: Manifest, parts: Iterable[Iterable[Row]]) -> list[str]:
    """A shard set at ``root`` with one file per item of ``parts``; the names of the files."""
    create_or_open(root, manifest)
    return [write_part(root, manifest, list(rows)) for rows in parts]
