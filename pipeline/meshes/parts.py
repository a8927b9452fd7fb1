"""What the readers share: limits against hostile files, and the parts that they yield."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scene import Material, MeshError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Node = TypeVar("Node", bound=Hashable)
Wrap = Literal["repeat", "mirror", "clamp"]  # what textures show outside of [0, 1]


@dataclass(frozen=True)
class Limits:
    """Caps on what one asset may claim. Past one of them the asset is a ``too_large`` failure."""

    file_bytes: int = 512 * 2**20  # the mesh file and everything it refers to, together
    json_bytes: int = 64 * 2**20  # the JSON of a glTF file
    faces: int = 5_000_000  # after instancing
    vertices: int = 15_000_000  # after instancing; also of one accessor
    nodes: int = 100_000  # of the scene graph, each counted as often as it is visited
    texture_pixels: int = 8192 * 8192  # of an image before decoding
    max_texture_side: int = 2048  # larger images are reduced by a whole factor to at most this


@dataclass(frozen=True)
class Surface:
    """A material, and what of it the asset says that ``Material`` has no place for."""

    material: Material
    explicit: bool = False  # the asset itself gave the base-colour factor
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")  # of its textures, across and down


# Without a material in the file: neutral grey, or white where vertex colours say the rest.
PLAIN = Surface(Material())
WHITE = Surface(Material(base_color=(1.0, 1.0, 1.0, 1.0)))

IDENTITY: F64 = np.eye(4)
IDENTITY.flags.writeable = False


@dataclass(frozen=True)
class Part:
    """Triangles of one material in their own frame, placed by ``transform``.

    ``uv`` has (0, 0) at the bottom left; ``color`` is linear RGBA. Nothing is validated yet: face
    indices may be out of range and positions not finite; ``pipeline.meshes.load`` checks both.
    """

    vertices: NDArray[np.floating]  # (V, 3)
    faces: NDArray[np.integer]  # (F, 3)
    surface: Surface = PLAIN
    normals: NDArray[np.floating] | None = None  # (V, 3)
    uv: NDArray[np.floating] | None = None  # (V, 2)
    color: NDArray[np.floating] | None = None  # (V, 4) linear, [0, 1]
    transform: F64 = field(default_factory=lambda: IDENTITY)  # (4, 4), column vectors


def require(condition: bool, kind: str, message: str) -> None:
    """Raise ``MeshError(kind, message)`` unless the condition holds."""
    if not condition:
        raise MeshError(kind, message)


def check_counts(limits: Limits, *, faces: int = 0, vertices: int = 0) -> None:
    """Raise ``too_large`` when a file claims more faces or vertices than allowed."""
    require(faces <= limits.faces, "too_large", f"{faces:,} faces; the limit is {limits.faces:,}")
    require(
        vertices <= limits.vertices,
        "too_large",
        f"{vertices:,} vertices; the limit is {limits.vertices:,}",
    )


def check_graph(
    starts: Iterable[Node],
    children: Mapping[Node, Sequence[Node]],
    limits: Limits,
    describe: Callable[[Node], str],
) -> dict[Node, int]:
    """Refuse a scene graph that is cyclic or unfolds to too many nodes, without unfolding it.

    Nodes may be shared, and so a small file may describe any number of instances. Returns how many
    nodes the graph unfolds to from every node that the starts reach. Raises ``MeshError``:
    ``cyclic_scene``, ``too_large``.
    """
    sizes: dict[Node, int] = {}
    path: set[Node] = set()
    for start in starts:
        stack = [(start, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving:
                path.discard(node)
                sizes[node] = 1 + sum(sizes[child] for child in children[node])
                require(
                    sizes[node] <= limits.nodes,
                    "too_large",
                    f"the scene graph unfolds to more than {limits.nodes:,} nodes",
                )
            elif node in path:
                raise MeshError("cyclic_scene", f"node {describe(node)} is its own ancestor")
            elif node not in sizes:
                path.add(node)
                stack.append((node, True))
                stack.extend((child, False) for child in children[node])
    return sizes


def fan(lengths: I64, limits: Limits) -> tuple[I64, I64]:
    """Polygons of so many corners (P,) as triangles around their first corners, in order.

    Returns each triangle's polygon (T,), and which corners of it they are (T, 3). Polygons of fewer
    than three corners give none. Raises ``too_large`` before it takes memory for them.
    """
    each = np.maximum(lengths - 2, 0)
    total = int(each.sum())
    check_counts(limits, faces=total)
    polygon = np.repeat(np.arange(len(lengths)), each)
    later = np.arange(total) - np.repeat(np.cumsum(each) - each, each) + 1
    return polygon, np.stack([np.zeros_like(later), later, later + 1], axis=1)


@contextmanager
def quiet_parsing() -> Iterator[None]:
    """Silence trimesh's log and warnings, but make an unreadable number an error.

    numpy only warns when text stops being numbers half way, and returns what came before.
    """
    logger = logging.getLogger("trimesh")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*could not be read to its end.*")
            yield
    finally:
        logger.disabled = before
