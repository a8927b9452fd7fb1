"""Files of shapes to what models take: meshes and clouds, read, drawn and sampled. No torch.

The functions that take a path may be called in a process of their own, where a file that crashes
or hangs costs itself alone: ``evaluation.isolated``. ``Caller`` is either way of calling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras, ring
from pipeline.common import InputError
from pipeline.pictures import Size
from pipeline.renderers.base import RenderConfig
from pipeline.scene import Mesh, MeshError
from pipeline.shards import NEUTRAL_RGB

P = ParamSpec("P")
T = TypeVar("T")
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
_MAX_ARRAY_BYTES = 512 * 2**20  # of a cloud in .npz: an archive of little may unfold to much


class Caller(Protocol):
    """A way of calling a function of this module."""

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns, or raises."""


def here(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in this process, without a limit."""
    return function(*args, **kwargs)


@dataclass(frozen=True)
class Cloud:
    """One point cloud as the student takes it: in the unit sphere, +y up, farthest-point order."""

    xyz: F32  # (N, 3)
    rgb: U8  # (N, 3) sRGB
    has_color: bool


@dataclass(frozen=True)
class Seen:
    """A mesh as a teacher and a student see it."""

    views: U8  # (V, S, S, 3) sRGB on the background
    clouds: tuple[Cloud, ...]  # one a sampling


@contextmanager
def usable(path: Path, what: str) -> Iterator[None]:
    """``MeshError`` becomes an ``InputError``: the file cannot be ``what``, and why."""
    try:
        yield
    except MeshError as error:
        remedy = "another mesh"
        if error.kind == "timeout":
            remedy = "a simpler mesh, or a larger --timeout"
        raise InputError(
            f"{path}: cannot be {what} ({error.kind}: {error.message}); give {remedy}"
        ) from error


def read_mesh(path: Path, up_axis: str = "auto") -> Mesh:
    """A mesh file in the unit sphere, +y up.

    Raises ``MeshError`` when it cannot be read, ``InputError`` for an axis that is none.
    """
    from pipeline.meshes import UP_AXES, load_mesh

    if up_axis != "auto" and up_axis not in UP_AXES:
        raise InputError(f"--up-axis {up_axis}: use auto or one of {', '.join(UP_AXES)}")
    return load_mesh(path, up_axis).normalised()


def sample(mesh: Mesh, seed: int, pool_points: int, n_points: int) -> Cloud:
    """``pool_points`` points of a normalised mesh, the first ``n_points`` in farthest-point order.

    Raises ``MeshError``.
    """
    from pipeline.points import sample_points

    points = sample_points(mesh, pool_points, seed=seed, n_fps=n_points)
    return Cloud(points.xyz, points.rgb, points.has_color)


def sample_mesh(path: Path, up_axis: str, seed: int, pool_points: int, n_points: int) -> Cloud:
    """A cloud from a mesh file; see ``sample``. Raises ``MeshError`` or ``InputError``."""
    return sample(read_mesh(path, up_axis), seed, pool_points, n_points)


def load_shape(path: Path, up_axis: str, seed: int, pool_points: int, n_points: int) -> Cloud:
    """A cloud from a mesh file (see ``sample_mesh``) or an ``.npz`` (see ``load_cloud``).

    Raises ``MeshError`` or ``InputError``.
    """
    if path.suffix.lower() == ".npz":
        if up_axis not in ("auto", "+y"):
            raise InputError(f"{path}: clouds are +y up; --up-axis is for meshes only")
        cloud = load_cloud(path, n_points)  # of it no more is looked at: no more has to travel
        return Cloud(cloud.xyz[:n_points], cloud.rgb[:n_points], cloud.has_color)
    return sample_mesh(path, up_axis, seed, pool_points, n_points)


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
    """Views of a mesh file at a teacher's ``size``, and a sampling for each of ``seeds``.

    Raises ``MeshError`` (``blank_render`` when no view shows anything) or ``InputError``.
    """
    from pipeline.pictures import at_sizes, shows_something
    from pipeline.renderers import get_renderer

    mesh = read_mesh(path, up_axis)
    pictures = get_renderer("raster").render(mesh, cameras, config)
    if not any(shows_something(view, config.background) for view in pictures):
        raise MeshError("blank_render", "nothing of it is visible in any view", "render")
    clouds = tuple(sample(mesh, seed, pool_points, n_points) for seed in seeds)
    return Seen(at_sizes(pictures, [size])[size], clouds)


def render_mesh(path: Path, size: int) -> U8:
    """(S, S, 4) picture of a mesh file, three quarters from the front, its surroundings clear.

    Raises ``MeshError``.
    """
    from pipeline.renderers import get_renderer

    mesh = read_mesh(path)
    cameras = ring(1).with_thumbnail(mesh)
    views = get_renderer("raster").render(mesh, cameras, RenderConfig(image_size=size))
    return np.asarray(views[-1], np.uint8)


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
