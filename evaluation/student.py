"""The student: a checkpoint that turns point clouds and meshes into embeddings.

Shape suffixes: B clouds, N points, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.embeddings import ModelInfo, normalise
from pipeline.common import InputError
from pipeline.scene import Mesh, MeshError
from pipeline.shards import NEUTRAL_RGB, TeacherInfo

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
_MAX_ARRAY_BYTES = 512 * 2**20  # of a cloud in .npz: an archive of little may unfold to much

# What `pipeline embed` samples by default: the pool from which a prefix is farthest-point ordered.
SHARD_POINTS = 10_000


@dataclass(frozen=True)
class Cloud:
    """One point cloud as the student takes it: in the unit sphere, +y up, farthest-point order."""

    xyz: F32  # (N, 3)
    rgb: U8  # (N, 3) sRGB
    has_color: bool


class Student:
    """A trained point encoder. Build it with ``load_student``."""

    def __init__(
        self,
        backbone: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        teacher: TeacherInfo,
        n_points: int,
        model: ModelInfo,
        *,
        pool_points: int = SHARD_POINTS,
        device: str = "cpu",
        batch_size: int = 64,
        neutral_rgb: int = NEUTRAL_RGB,
    ) -> None:
        self.backbone, self.teacher, self.model = backbone, teacher, model
        self.n_points, self.pool_points = n_points, max(n_points, pool_points)
        self.device, self.batch_size, self.neutral_rgb = device, batch_size, neutral_rgb

    @torch.inference_mode()
    def embed(self, xyz: F32, rgb: U8, has_color: NDArray[np.bool_]) -> F32:
        """Embed clouds in farthest-point order to (B, D) float32, L2-normalised.

        ``xyz`` is (B, N, 3) in [-1, 1], +y up; the first ``n_points`` are used. ``rgb`` is
        (B, N, 3) sRGB 0-255. Where ``has_color`` (B,) is false the colour is the neutral one
        of the training (102), whatever ``rgb`` holds.

        Raises ``InputError`` when the clouds are smaller than the model was trained on.
        """
        if xyz.shape[1] < self.n_points:
            raise InputError(
                f"clouds of {xyz.shape[1]} points, but checkpoint {self.model.name} was trained on "
                f"{self.n_points}; make shards with at least that many (--points)"
            )
        xyz, rgb = xyz[:, : self.n_points], rgb[:, : self.n_points]
        found = []
        for start in range(0, len(xyz), self.batch_size):
            part = slice(start, start + self.batch_size)
            color = np.where(has_color[part, None, None], rgb[part], np.uint8(self.neutral_rgb))
            points = torch.from_numpy(np.ascontiguousarray(xyz[part], np.float32))
            colors = torch.from_numpy(np.ascontiguousarray(color)).to(self.device).float() / 255
            features = self.backbone(points.to(self.device), colors)
            if features.shape[1] != self.teacher.width:
                raise InputError(
                    f"checkpoint {self.model.name} yields {features.shape[1]} values, its teacher "
                    f"record says {self.teacher.width}; the checkpoint is damaged, train it again"
                )
            found.append(features.float().cpu().numpy())
        if not found:
            return np.zeros((0, self.teacher.width), np.float32)
        embeds = np.concatenate(found)
        if not np.isfinite(embeds).all():
            raise InputError(
                f"checkpoint {self.model.name} yields values that are not finite; "
                "its training diverged, use an earlier checkpoint"
            )
        return normalise(embeds)

    def embed_cloud(self, cloud: Cloud) -> F32:
        """Embed one cloud to (D,). Clouds smaller than ``n_points`` are repeated to fill it."""
        repeats = -(-self.n_points // len(cloud.xyz))
        xyz = np.tile(cloud.xyz, (repeats, 1))[None]
        rgb = np.tile(cloud.rgb, (repeats, 1))[None]
        return np.asarray(self.embed(xyz, rgb, np.array([cloud.has_color]))[0], np.float32)

    def embed_mesh(self, path: Path, up_axis: str = "auto", seed: int = 0) -> F32:
        """Embed a mesh file to (D,). Raises ``InputError`` when it cannot be read."""
        return self.embed_cloud(self.sample_mesh(path, up_axis, seed))

    def sample_mesh(self, path: Path, up_axis: str = "auto", seed: int = 0) -> Cloud:
        """Sample a mesh file as the pipeline does. Raises ``InputError`` with the reason.

        ``up_axis`` is as in ``pipeline.meshes.load_mesh``; equal seeds give equal clouds.
        """
        mesh = read_mesh(path, up_axis)
        try:
            return self.sample(mesh, seed)
        except MeshError as error:
            raise _unusable(path, error) from error

    def sample(self, mesh: Mesh, seed: int = 0) -> Cloud:
        """Sample a normalised mesh as the pipeline does. Raises ``MeshError``."""
        from pipeline.points import sample_points

        points = sample_points(mesh, self.pool_points, seed=seed, n_fps=self.n_points)
        return Cloud(points.xyz, points.rgb, points.has_color)

    def load_shape(self, path: Path, up_axis: str = "auto", seed: int = 0) -> Cloud:
        """A cloud from a mesh file or an ``.npz`` (see ``load_cloud``)."""
        if path.suffix.lower() == ".npz":
            if up_axis not in ("auto", "+y"):
                raise InputError(f"{path}: clouds are +y up; --up-axis is for meshes only")
            return load_cloud(path, self.n_points)
        return self.sample_mesh(path, up_axis, seed)


def read_mesh(path: Path, up_axis: str = "auto") -> Mesh:
    """A mesh file in the unit sphere, +y up. Raises ``InputError`` when it cannot be read."""
    from pipeline.meshes import UP_AXES, load_mesh

    if up_axis != "auto" and up_axis not in UP_AXES:
        raise InputError(f"--up-axis {up_axis}: use auto or one of {', '.join(UP_AXES)}")
    try:
        return load_mesh(path, up_axis).normalised()
    except MeshError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: MeshError) -> InputError:
    return InputError(
        f"{path}: cannot be embedded ({error.kind}: {error.message}); give another mesh"
    )


def load_cloud(path: Path, n_fps: int) -> Cloud:
    """Read a cloud from ``.npz``: ``xyz`` (N, 3), +y up, any scale; optional ``rgb`` (N, 3).

    ``rgb`` is uint8 0-255, or float 0-1. Without it the cloud is colourless. The cloud is centred
    at the middle of its bounding box, scaled into the unit sphere and put into farthest-point
    order. Raises ``InputError`` for anything else.
    """
    from pipeline.points import farthest_point_order

    remedy = "give an .npz with xyz (N, 3) and optional rgb (N, 3)"
    try:
        # Opened here: numpy leaves a file that is no archive open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            claimed = max((entry.file_size for entry in file.zip.infolist()), default=0)
            if claimed > _MAX_ARRAY_BYTES:
                raise InputError(f"{path}: an array of {claimed:,} bytes; {remedy}")
            arrays = {name: file[name] for name in file.files if name in ("xyz", "rgb")}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, AttributeError) as error:  # no .zip: an .npy
        raise InputError(f"{path}: not a readable .npz of plain arrays; {remedy}") from error
    except Exception as error:  # zipfile raises kinds of its own on damaged archives
        raise InputError(f"{path}: damaged ({error}); {remedy}") from error
    xyz = arrays.get("xyz")
    if xyz is None or xyz.ndim != 2 or xyz.shape[1] != 3 or xyz.dtype.kind not in "fiu":
        raise InputError(f"{path}: xyz is missing or not (N, 3) numbers; {remedy}")
    if not len(xyz):
        raise InputError(f"{path}: xyz holds no points; {remedy}")
    points = xyz.astype(np.float64)
    if not np.isfinite(points).all():
        raise InputError(f"{path}: xyz holds NaN or infinity; {remedy}")
    with np.errstate(over="ignore", invalid="ignore"):
        points -= points.min(0) / 2 + points.max(0) / 2
        radius = float(np.linalg.norm(points, axis=1).max())
    if not 0 < radius < np.inf:
        raise InputError(f"{path}: all points coincide, or are too far apart; {remedy}")
    unit = (points / radius).astype(np.float32)
    rgb = _colors(arrays.get("rgb"), len(unit), f"{path}: rgb", remedy)
    order = farthest_point_order(unit, min(n_fps, len(unit)))
    has_color = rgb is not None
    if rgb is None:
        rgb = np.full(unit.shape, NEUTRAL_RGB, np.uint8)
    return Cloud(unit[order], rgb[order], has_color)


def _colors(rgb: NDArray[Any] | None, count: int, name: str, remedy: str) -> U8 | None:
    if rgb is None:
        return None
    if rgb.shape != (count, 3):
        raise InputError(f"{name} has shape {rgb.shape}, not ({count}, 3); {remedy}")
    if rgb.dtype == np.uint8:
        return rgb.astype(np.uint8)
    if rgb.dtype.kind == "f" and np.isfinite(rgb).all() and rgb.min() >= 0 and rgb.max() <= 1:
        return np.asarray(np.rint(rgb * 255), np.uint8)
    raise InputError(f"{name} is neither uint8 nor float in [0, 1]; {remedy}")


def pick_device(device: str) -> str:
    """``auto`` becomes ``cuda`` where there is one, else ``cpu``. Others are checked.

    Raises ``InputError`` for a device that is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: not available here; use cpu or auto") from error
    return device


def load_student(path: str | Path, device: str = "cpu", batch_size: int = 64) -> Student:
    """Load a checkpoint directory, or the newest checkpoint of a run folder.

    Raises ``InputError`` when there is none or it is damaged.
    """
    from trainer.checkpoint import load_model

    loaded = load_model(path, device)
    data = loaded.config.get("data") or {}
    pool = data.get("n_points") if isinstance(data, dict) else None
    return Student(
        loaded.backbone,
        loaded.teacher,
        loaded.n_points,
        ModelInfo(
            kind="student",
            name=run_name(Path(path)),
            # The checkpoint itself, not its run: a longer run would have a newer one.
            path=str(loaded.path.absolute()),
            hash=loaded.hash,
            step=loaded.step,
        ),
        pool_points=int(pool) if pool else SHARD_POINTS,
        device=device,
        batch_size=batch_size,
        neutral_rgb=loaded.neutral_rgb,
    )


def run_name(path: Path) -> str:
    """A short name of a run or checkpoint for tables: its folder's name, with its run's if inside.

    Example: ``runs/mrd`` gives ``mrd``; ``runs/mrd/checkpoints/step-000100`` gives
    ``mrd/step-000100``.
    """
    path = path.expanduser().absolute()
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}/{path.name}"
    return path.name
