"""Stands in for the functions of ``evaluation.shapes``: files whose bytes say what goes wrong.

Imported by the child processes: it needs neither torch nor pytest.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.shapes import U8, Cloud, Seen
from pipeline.cameras import Cameras
from pipeline.common import InputError
from pipeline.pictures import Size
from pipeline.renderers.base import RenderConfig
from pipeline.scene import MeshError


def misbehave(path: Path) -> None:
    """As the file says: ``hang``, ``die``, ``hungry`` ...; ``once`` dies, and not again."""
    match path.read_bytes():
        case b"hang":
            time.sleep(600)
        case b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"once":
            path.write_bytes(b"good")
            os.kill(os.getpid(), signal.SIGKILL)
        case b"hungry":
            eaten = []
            while True:
                eaten.append(np.empty(1 << 25))  # 256 MiB
        case b"mesh":
            raise MeshError("no_faces", "the mesh has no faces")
        case b"input":
            raise InputError(f"{path}: is not that; give this")
        case b"bug":
            raise KeyError("surprise")


def load_shape(path: Path, up_axis: str, seed: int, pool_points: int, n_points: int) -> Cloud:
    misbehave(path)
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-0.5, 0.5, (pool_points, 3)).astype(np.float32)
    return Cloud(xyz, np.zeros((pool_points, 3), np.uint8), True)


def look(
    path: Path,
    up_axis: str,
    cameras: Cameras,
    config: RenderConfig,
    size: Size,
    seeds: Sequence[int],
    pool_points: int,
    n_points: int,
) -> Seen:
    clouds = [load_shape(path, up_axis, seed, pool_points, n_points) for seed in seeds]
    return Seen(np.full((len(cameras), 8, 8, 3), 50, np.uint8), tuple(clouds))


def render_mesh(path: Path, size: int) -> U8:
    misbehave(path)
    return np.full((size, size, 4), 255, np.uint8)


def nothing() -> None:
    """In the place of what takes a child a second to prepare."""


def own_pid(path: Path) -> int:
    """The process that it is called in; ``slow`` files keep it for a moment."""
    if path.read_bytes() == b"slow":
        time.sleep(0.5)
    return os.getpid()
