"""Small point clouds written in every format, by the plainest code that does it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def points_of(count: int = 60, seed: int = 0) -> NDArray[np.float32]:
    """Points (count, 3) that no rotation maps to themselves."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)) * [1.0, 2.0, 0.5] + [0.3, 1.0, -2.0]
    return np.asarray(points, np.float32)


def colors_of(count: int = 60, seed: int = 0) -> NDArray[np.uint8]:
    """Colours (count, 3) of the whole range."""
    colors = np.random.default_rng(seed + 1).integers(0, 256, (count, 3), dtype=np.uint8)
    colors[0], colors[1] = 0, 255
    return colors


def unit_of(count: int = 60, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors (count, 3)."""
    vectors = np.random.default_rng(seed + 2).normal(size=(count, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def normalised(xyz: NDArray[Any]) -> NDArray[np.float64]:
    """The frame of a normalised mesh, by the obvious arithmetic."""
    points = np.asarray(xyz, np.float64)
    points = points - (points.min(0) + points.max(0)) / 2
    return np.asarray(points / np.linalg.norm(points, axis=1).max())


def ply_bytes(
    xyz: NDArray[Any],
    rgb: NDArray[Any] | None = None,
    normals: NDArray[Any] | None = None,
    *,
    form: str = "binary_little_endian",
    rgb_names: tuple[str, str, str] = ("red", "green", "blue"),
    claim: int | None = None,
    extra: str = "",
) -> bytes:
    """A PLY file of points; ``claim`` is the count in the header where it is not the true one."""
    columns = [(name, "float", "f", xyz[:, i]) for i, name in enumerate("xyz")]
    if normals is not None:
        columns += [(f"n{a}", "float", "f", normals[:, i]) for i, a in enumerate("xyz")]
    if rgb is not None:
        kind = ("uchar", "B") if rgb.dtype == np.uint8 else ("float", "f")
        columns += [(name, *kind, rgb[:, i]) for i, name in enumerate(rgb_names)]
    header = f"ply\nformat {form} 1.0\ncomment made by a test\n"
    header += f"element vertex {len(xyz) if claim is None else claim}\n"
    header += "".join(f"property {kind} {name}\n" for name, kind, _, _ in columns)
    body = b""
    order = ">" if form == "binary_big_endian" else "<"
    for row in range(len(xyz)):
        values = [(code, column[row]) for _, _, code, column in columns]
        if form == "ascii":
            cells = [str(int(v)) if c == "B" else repr(float(v)) for c, v in values]
            body += " ".join(cells).encode() + b"\n"
        else:
            for code, value in values:
                body += struct.pack(order + code, value.item())
    return (header + extra + "end_header\n").encode() + body


def text_bytes(*columns: NDArray[Any], separator: str = " ", head: str = "") -> bytes:
    """A table of text; integers without a point."""
    rows = []
    for row in range(len(columns[0])):
        cells: list[str] = []
        for column in columns:
            whole = column.dtype.kind in "iu"
            cells += [str(int(v)) if whole else repr(float(v)) for v in column[row]]
        rows.append(separator.join(cells))
    return (head + "\n".join(rows) + "\n").encode()


def write_h5(path: Path, **arrays: Any) -> Path:
    """An HDF5 file of contiguous data sets."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file.create_dataset(name, data=value)
    return path
