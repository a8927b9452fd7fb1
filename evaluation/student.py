"""The student: a checkpoint that turns point clouds and meshes into embeddings.

Shape suffixes: B clouds, N points, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.embeddings import ModelInfo, normalise
from evaluation.shapes import Caller, Cloud, here, load_shape, sample, sample_mesh, usable
from pipeline.common import InputError
from pipeline.scene import Mesh
from pipeline.shards import NEUTRAL_RGB, TeacherInfo
from trainer.batch import usual_batch

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

# What `pipeline embed` samples by default: the pool from which a prefix is farthest-point ordered.
SHARD_POINTS = 10_000


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
        batch_size: int | None = None,
        neutral_rgb: int = NEUTRAL_RGB,
        trained_on: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """``trained_on``: which splits of which sets, by configuration hash."""
        self._trained_on = trained_on or {}
        self.backbone, self.teacher, self.model = backbone, teacher, model
        self.n_points, self.pool_points = n_points, max(n_points, pool_points)
        self.device, self.neutral_rgb = device, neutral_rgb
        self.batch_size = batch_size or usual_batch(device)

    def has_seen(self, config_hash: str, split: str | None) -> bool:
        """Whether rows of a set, or of a split of it, were trained on."""
        splits = self._trained_on.get(config_hash)
        return splits is not None and (split is None or split in splits)

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

    def embed_mesh(
        self, path: str | Path, up_axis: str = "auto", seed: int = 0, call: Caller = here
    ) -> F32:
        """Embed a mesh file to (D,), as ``sample_mesh``."""
        return self.embed_cloud(self.sample_mesh(Path(path), up_axis, seed, call))

    def sample_mesh(
        self, path: Path, up_axis: str = "auto", seed: int = 0, call: Caller = here
    ) -> Cloud:
        """Sample a mesh file as the pipeline does.

        ``up_axis`` is as in ``pipeline.meshes.load_mesh``; equal seeds give equal clouds. ``call``
        may be an ``evaluation.isolated.IsolatedCalls``, for a file from someone else. Raises
        ``InputError`` with the reason when the file cannot be read.
        """
        with usable(path, "embedded"):
            return call(sample_mesh, path, up_axis, seed, self.pool_points, self.n_points)

    def load_shape(
        self, path: Path, up_axis: str = "auto", seed: int = 0, call: Caller = here
    ) -> Cloud:
        """A cloud from a mesh file (see ``sample_mesh``) or an ``.npz`` (``shapes.load_cloud``)."""
        with usable(path, "embedded"):
            return call(load_shape, path, up_axis, seed, self.pool_points, self.n_points)

    def sample(self, mesh: Mesh, seed: int = 0) -> Cloud:
        """Sample a normalised mesh as the pipeline does. Raises ``MeshError``."""
        return sample(mesh, seed, self.pool_points, self.n_points)


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


def load_student(path: str | Path, device: str = "cpu", batch_size: int | None = None) -> Student:
    """Load a checkpoint directory, a run folder's newest, or ``RUN/best``.

    ``batch_size``: clouds at a time; None: as many as suit the device.

    Raises ``InputError`` when there is none or it is damaged.
    """
    from trainer.checkpoint import load_model

    loaded = load_model(path, device)
    data = loaded.config.get("data") or {}
    data = data if isinstance(data, dict) else {}
    pool = data.get("n_points")
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
        trained_on={one["config_hash"]: data.get("splits", ()) for one in data.get("shards", ())},
    )


def run_name(path: Path) -> str:
    """A short name of a run or checkpoint for tables: its folder's name, with its run's if inside.

    Example: ``runs/mrd`` gives ``mrd``; ``runs/mrd/checkpoints/step-000100`` gives
    ``mrd/step-000100``, and ``runs/mrd/best`` gives ``mrd/best``.
    """
    path = path.expanduser().absolute()
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}/{path.name}"
    if path.name == "best" and not path.exists():  # a folder is a run of that name
        return f"{path.parent.name}/{path.name}"
    return path.name
