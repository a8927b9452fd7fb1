"""Small pictures of coloured point clouds, in numpy: for galleries, without the mesh at hand.

Perspective splats into a depth buffer at twice the size, Lambert light on normals estimated on a
voxel grid, dark edges where the depth steps (eye-dome lighting, Boucheny 2009), then a 2x2 mean.
The background is transparent.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

COLOURLESS = (132, 156, 190)  # a grey-blue that stands on light and on dark pages
AMBIENT, DIFFUSE = 0.30, 0.76
FOV_DEG = 32.0
_CELLS = 24  # voxels along the unit ball's diameter for normals
_STEP = 0.05  # a larger difference of depth between neighbours is an edge, not a slope


def draw_cloud(
    xyz: F32,
    rgb: U8,
    has_color: bool,
    size: int = 144,
    yaw_deg: float = 30.0,
    pitch_deg: float = 22.0,
) -> U8:
    """Picture of one cloud, (size, size, 4) uint8 sRGB with alpha.

    ``xyz`` (N, 3) lies in the unit ball, +y up, front towards +z; ``rgb`` (N, 3) is sRGB. The
    camera stands ``yaw_deg`` to the right of the front and ``pitch_deg`` above.
    """
    points: F64 = np.asarray(xyz, np.float64)
    view = points @ _rotation(yaw_deg, pitch_deg).T  # +z towards the camera
    distance = 1.0 / np.sin(np.radians(FOV_DEG) / 2)
    depth = distance - view[:, 2]
    canvas = 2 * size
    # Fill the frame with what is there: flat or thin objects would be small otherwise.
    plane = view[:, :2] / depth[:, None]
    low, high = plane.min(0), plane.max(0)
    extent = max(float((high - low).max()), 1e-6)
    scale = 0.90 * canvas / extent
    pixel = (plane - (low + high) / 2) * scale * [1, -1] + canvas / 2

    normals, spacing = _normals(points)
    toward = np.array([0.0, 0.0, distance]) - view
    toward /= np.linalg.norm(toward, axis=1, keepdims=True)
    facing = normals @ _rotation(yaw_deg, pitch_deg).T
    facing *= np.sign(np.einsum("nk,nk->n", facing, toward) + 1e-12)[:, None]  # two-sided
    light = np.array([-0.35, 0.55, 0.76])
    lambert = np.clip(facing @ (light / np.linalg.norm(light)), 0, 1)

    color = (rgb if has_color else np.full(rgb.shape, COLOURLESS, np.uint8)) / 255.0
    shaded = np.power(color, 2.2) * (AMBIENT + DIFFUSE * lambert)[:, None]

    # Splats just wide enough to close the gaps between neighbours.
    radius = int(np.clip(np.ceil(0.9 * spacing * scale / distance), 1, canvas // 16))
    winner = _close(_splat(pixel, depth, radius, canvas), depth)
    hit = winner >= 0
    image = np.zeros((canvas, canvas, 4))
    image[hit, :3] = shaded[winner[hit]]
    image[hit, 3] = 1
    image[..., :3] *= _edges(np.where(hit, depth[np.maximum(winner, 0)], np.inf))[..., None]
    return _resolve(image)


def _rotation(yaw_deg: float, pitch_deg: float) -> F64:
    """World to camera axes: turn the object by -yaw about +y, then tilt it by pitch about +x."""
    yaw, pitch = np.radians(yaw_deg), np.radians(pitch_deg)
    turn = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    tilt = np.array(
        [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    )
    return np.asarray(tilt @ turn, np.float64)


def _normals(xyz: F64) -> tuple[F64, float]:
    """Unit normals (N, 3), either sign, and the spacing of the points (length).

    Least axis of the covariance of the points in the 3x3x3 voxels around each point's own: the
    sums come from a box filter on a grid, so it takes milliseconds and no neighbour search.
    """
    cell = np.clip(((xyz + 1) / 2 * _CELLS).astype(np.int64), 0, _CELLS - 1) + 1
    side = _CELLS + 2
    flat = (cell[:, 0] * side + cell[:, 1]) * side + cell[:, 2]
    products = np.einsum("ni,nj->nij", xyz, xyz).reshape(-1, 9)
    moments = np.concatenate([np.ones((len(xyz), 1)), xyz, products], axis=1)
    grid = np.stack(
        [np.bincount(flat, column, minlength=side**3) for column in moments.T], axis=-1
    ).reshape(side, side, side, 13)
    occupied = int(np.count_nonzero(grid[..., 0]))
    for axis in range(3):
        grid = grid + np.roll(grid, 1, axis) + np.roll(grid, -1, axis)
    used, inverse = np.unique(flat, return_inverse=True)
    sums = grid.reshape(-1, 13)[used]
    mean = sums[:, 1:4] / sums[:, :1]
    covariance = sums[:, 4:].reshape(-1, 3, 3) / sums[:, :1, None]
    covariance -= np.einsum("ni,nj->nij", mean, mean)
    _, axes = np.linalg.eigh(covariance)
    # A surface crosses about as many voxels as its area over that of a voxel's face.
    area = occupied * (2 / _CELLS) ** 2
    return axes[:, :, 0][inverse], float(np.sqrt(area / len(xyz)))


def _splat(pixel: F64, depth: F64, radius: int, canvas: int) -> I64:
    """(canvas, canvas) number of the nearest point covering each pixel, -1 where none."""
    span = np.arange(-radius, radius + 1)
    dx, dy = (grid.ravel() for grid in np.meshgrid(span, span))
    round_ = dx**2 + dy**2 <= (radius + 0.3) ** 2
    dx, dy = dx[round_], dy[round_]
    order = np.argsort(-depth, kind="stable")  # far to near: the last one written stays
    x = np.floor(pixel[order, 0]).astype(np.int64)[:, None] + dx
    y = np.floor(pixel[order, 1]).astype(np.int64)[:, None] + dy
    inside = (x >= 0) & (x < canvas) & (y >= 0) & (y < canvas)
    numbers = np.broadcast_to(order[:, None], x.shape)[inside]
    winner = np.full(canvas * canvas, -1, np.int64)
    winner[(y * canvas + x)[inside]] = numbers
    return winner.reshape(canvas, canvas)


def _close(winner: I64, depth: F64, rounds: int = 4) -> I64:
    """Fill pixels that most neighbours lie clearly in front of: gaps that splats have left.

    A straight silhouette has three nearer neighbours of eight, a pixel in a gap five or more.
    """
    for _ in range(rounds):
        padded = np.pad(winner, 1, constant_values=-1)
        height, width = winner.shape
        around = np.stack(
            [
                padded[dy : dy + height, dx : dx + width]
                for dy in range(3)
                for dx in range(3)
                if (dy, dx) != (1, 1)
            ]
        )
        distances = np.where(around >= 0, depth[around], np.inf)
        own = np.where(winner >= 0, depth[winner], np.inf)
        gap = np.count_nonzero(distances < own - _STEP, axis=0) >= 5
        if not gap.any():
            break
        nearest = np.take_along_axis(around, distances.argmin(0)[None], 0)[0]
        winner = np.where(gap, nearest, winner)
    return winner


def _edges(depth: F64) -> F64:
    """(H, W) factor in (0, 1]: darker where neighbours are nearer to the camera."""
    total = np.zeros(depth.shape)
    padded = np.pad(depth, 2, constant_values=np.inf)
    height, width = depth.shape
    inside = np.isfinite(depth)
    own = np.where(inside, depth, 0.0)
    for dy, dx in ((-2, 0), (2, 0), (0, -2), (0, 2)):
        other = padded[2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width]
        nearer = np.where(
            np.isfinite(other) & inside, own - np.where(np.isfinite(other), other, 0), 0
        )
        # Slopes of the surface itself are small steps; only true steps darken.
        total += np.clip(nearer - _STEP, 0, 0.25)
    return np.exp(-1.6 * total)


def _resolve(image: F64) -> U8:
    """Linear RGBA at twice the size to sRGB uint8: mean of 2x2, weighted by coverage."""
    premultiplied = image.copy()
    premultiplied[..., :3] *= image[..., 3:]
    half = image.shape[0] // 2
    mean = premultiplied.reshape(half, 2, half, 2, 4).mean((1, 3))
    alpha = mean[..., 3:]
    color = np.divide(mean[..., :3], alpha, out=np.zeros_like(mean[..., :3]), where=alpha > 0)
    result = np.concatenate([np.power(np.clip(color, 0, 1), 1 / 2.2), alpha], axis=-1)
    return np.asarray(np.rint(result * 255), np.uint8)


def png_bytes(image: U8) -> bytes:
    """(H, W, 3 or 4) uint8 as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def data_uri(image: U8) -> str:
    """(H, W, 3 or 4) uint8 as a ``data:`` address for HTML."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
