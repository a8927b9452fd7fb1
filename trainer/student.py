"""A trained student for other people's code: two lines from a checkpoint to embeddings.

    from trainer import load_student
    model = load_student("runs/mrd")  # or "org/name" of a hub
    embeddings = model.encode(xyz, rgb)  # (B, D), L2-normalised

The embeddings live in the space of the teacher named by ``model.teacher``: compare them by cosine
with that teacher's embeddings of images and texts. See docs/student.md.

Shape suffixes: B clouds, N points, D width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.common import InputError
from pipeline.shards import POINT_SCALE, TeacherInfo
from trainer.backbones import Backbone
from trainer.batch import usual_batch
from trainer.checkpoint import CONFIG, WEIGHTS, LoadedModel, is_best, load_model
from trainer.grouping import farthest_point_sample
from trainer.run import choose_device

Array = Tensor | NDArray[Any]

HUB = "hf-hub:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Student:
    """A trained point-cloud encoder. Get one with ``load_student``."""

    backbone: Backbone  # in eval mode, without gradients
    teacher: TeacherInfo  # whose embedding space it shares
    n_points: int  # points that it was trained on
    neutral_rgb: int  # 0-255, of the points of clouds without colour
    config: dict[str, Any]  # config.json of the checkpoint
    device: torch.device

    @property
    def width(self) -> int:
        """D."""
        return self.teacher.width

    @torch.inference_mode()
    def encode(
        self,
        xyz: Array,
        rgb: Array | None = None,
        *,
        prepared: bool = False,
        batch_size: int | None = None,
    ) -> Tensor:
        """Embed clouds to (B, D) float32, L2-normalised, on the device of the student.

        ``xyz`` is (B, N, 3), or (N, 3) for one cloud, of any N and any scale, **+y up**. ``rgb``
        is the sRGB colour of the points, of the same shape: float in [0, 1] or uint8 in 0-255;
        None for clouds without colour.

        Each cloud is centred at the middle of its bounding box, scaled into the unit sphere, put
        into farthest-point order as far as the backbone takes centroids, and cut or repeated to
        ``n_points``. Shards order more points: embeddings of the same clouds from there agree to a
        cosine of 0.99 in the mean (``demo``). ``prepared`` says that they are so already: then
        N must be at least ``n_points``, of which the first are used. Equal clouds give equal
        embeddings.

        Raises ``InputError`` for other shapes, values that are not finite, colours out of range,
        and clouds without extent.
        """
        points_BN3 = self._points(xyz)
        if points_BN3.shape[1] < self.n_points and prepared:
            raise InputError(
                f"xyz: clouds of {points_BN3.shape[1]} points, the student was trained on "
                f"{self.n_points}; leave out prepared=True"
            )
        colors_BN3 = self._colors(rgb, points_BN3)
        size = batch_size or usual_batch(self.device)
        found = []
        for start in range(0, len(points_BN3), size):
            part = slice(start, start + size)
            points, colors = (v[part].to(self.device) for v in (points_BN3, colors_BN3))
            if not prepared:
                points, colors = self.prepare(points, colors)
            points, colors = points[:, : self.n_points], colors[:, : self.n_points]
            found.append(F.normalize(self.backbone(points, colors).float(), dim=-1))
        if not found:
            return torch.zeros(0, self.width, device=self.device)
        return torch.cat(found)

    def encode_stored(
        self,
        xyz: NDArray[np.int16],
        rgb: NDArray[np.uint8],
        has_color: NDArray[np.bool_],
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Embed clouds as shards store them; without colour they get the neutral one."""
        colors = np.where(has_color[:, None, None], rgb, np.uint8(self.neutral_rgb))
        points = xyz.astype(np.float32) / np.float32(POINT_SCALE)
        return self.encode(points, colors, prepared=True, batch_size=batch_size).cpu().numpy()

    def prepare(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> tuple[Tensor, Tensor]:
        """Clouds as the backbone takes them: (B, ``n_points``, 3) each, normalised and ordered.

        Raises ``InputError`` for a cloud whose points all coincide.
        """
        low, high = xyz_BN3.amin(1, keepdim=True), xyz_BN3.amax(1, keepdim=True)
        centred = xyz_BN3 - (low + high) / 2
        radius_B = centred.norm(dim=-1).amax(1)
        if not bool((radius_B > 0).all()):
            raise InputError("xyz: all points of a cloud coincide; give clouds with an extent")
        points = centred / radius_B[:, None, None]
        order_BN = self._order(points)[..., None].expand(-1, -1, 3)
        return points.gather(1, order_BN), rgb_BN3.gather(1, order_BN)

    def _order(self, xyz_BN3: Tensor) -> Tensor:
        """(B, n_points): the farthest-point sample, then others, drawn alike for every cloud."""
        batch, count, _ = xyz_BN3.shape
        head = min(self.backbone.centroids, count)
        # Begin with the point farthest from the mean: the order of the points must not matter.
        far_B = (xyz_BN3 - xyz_BN3.mean(1, keepdim=True)).square().sum(-1).argmax(1)
        first_BN = torch.arange(count, device=xyz_BN3.device).repeat(batch, 1)
        rows = torch.arange(batch, device=xyz_BN3.device)
        first_BN[rows, far_B], first_BN[:, 0] = 0, far_B
        swapped = xyz_BN3.gather(1, first_BN[..., None].expand(-1, -1, 3))
        head_BH = first_BN.gather(1, farthest_point_sample(swapped, head))
        chosen = torch.zeros(batch, count, dtype=torch.bool, device=xyz_BN3.device)
        chosen.scatter_(1, head_BH, True)
        # Of coinciding points some come twice in the sample; cut to what every cloud has left.
        shuffle = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        rank_N = shuffle.to(xyz_BN3.device)[None].expand(batch, -1)
        rest = (rank_N + chosen * count).argsort(1)[:, : count - head]
        order = torch.cat([head_BH, rest], dim=1)
        repeats = -(-self.n_points // count)
        return order.repeat(1, repeats)[:, : self.n_points]

    def _points(self, xyz: Array) -> Tensor:
        points = torch.as_tensor(xyz)
        if points.ndim == 2:
            points = points[None]
        if points.ndim != 3 or points.shape[2] != 3 or points.shape[1] == 0:
            raise InputError(f"xyz: shape {tuple(points.shape)}; give (B, N, 3) or (N, 3)")
        points = points.float()
        if not bool(torch.isfinite(points).all()):
            raise InputError("xyz: holds NaN or infinity; remove these points")
        return points

    def _colors(self, rgb: Array | None, points_BN3: Tensor) -> Tensor:
        if rgb is None:
            return torch.full_like(points_BN3, self.neutral_rgb / 255)
        colors = torch.as_tensor(rgb)
        colors = colors[None] if colors.ndim == 2 else colors
        if colors.shape != points_BN3.shape:
            shapes = f"{tuple(colors.shape)}, xyz {tuple(points_BN3.shape)}"
            raise InputError(f"rgb: shape {shapes}; give a colour for every point")
        if colors.dtype == torch.uint8:
            return colors.float() / 255
        in_range = bool(((colors >= 0) & (colors <= 1)).all())  # False for NaN as well
        if not colors.is_floating_point() or not in_range:
            raise InputError("rgb: neither uint8 nor float in [0, 1]; divide by the largest value")
        return colors.float()


def load_student(source: str | Path, device: str = "auto") -> Student:
    """The student of a run folder, a checkpoint, an export of safetensors, or a hub's model.

    ``source`` is a local folder, ``demo`` for the small student that comes with the package, or
    ``org/name`` (or ``hf-hub:org/name``, either with ``@revision``) of the Hugging Face hub, where
    ``huggingface_hub`` keeps its cache. ``device`` is auto (a GPU where there is one), cpu or cuda.
    A run folder gives its newest checkpoint, ``RUN/best`` its best by validation.

    Raises ``InputError`` when there is no such folder or model, or it is damaged.
    """
    return as_student(load_model(find(source)), choose_device(device))


def as_student(loaded: LoadedModel, device: torch.device) -> Student:
    """The student of a loaded checkpoint."""
    return Student(
        loaded.backbone.to(device),
        loaded.teacher,
        loaded.n_points,
        loaded.neutral_rgb,
        loaded.config,
        device,
    )


def find(source: str | Path) -> Path:
    """Local folder of a source; a hub's model is fetched first."""
    text = str(source)
    local = Path(source).exists() or is_best(Path(source))
    if (local and not text.startswith(HUB)) or text == "demo":
        return Path(source)
    name = text.removeprefix(HUB)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name):
        raise InputError(f"{source}: no such folder; give a run folder, a checkpoint or org/name")
    return fetch(name)


def fetch(name: str) -> Path:
    """Folder of a model ``org/name[@revision]`` of the hub, from the cache where it is there."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise InputError(
            f"{name}: no such folder; for the hub, pip install huggingface_hub"
        ) from error
    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS]
        )
    # No network and nothing in the cache, no such model or no access, a name the hub refuses.
    except (OSError, ValueError, HfHubHTTPError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name}: no such folder, and not to be had from the hub ({first}); "
            "check the name, the network and the access"
        ) from error
    return Path(folder)
