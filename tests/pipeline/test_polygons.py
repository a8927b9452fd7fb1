"""Polygons as triangles against the shoelace formula, the crossing number, and plain fans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.meshes import Limits
from pipeline.meshes import polygons as polygons_module
from pipeline.meshes.parts import F64, I64, fan
from pipeline.meshes.polygons import triangulate
from pipeline.scene import Mesh, MeshError
from tests.pipeline.layout_files import RED
from tests.pipeline.test_mesh_materials import quad_dae
from tests.pipeline.test_meshes import load_bytes

L_SHAPE = np.array([[3, 0], [3, 1], [1, 1], [1, 3], [0, 3], [0, 0]], float)
U_SHAPE = np.array([[0, 0], [3, 0], [3, 3], [2, 3], [2, 1], [1, 1], [1, 3], [0, 3]], float)
DART = np.array([[0, 0], [2, 0], [0.5, 0.5], [0, 2]], float)
# A square and the way to a square hole in it and back.
KEYHOLE = np.array(
    [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0], [1, 1], [1, 2], [2, 2], [2, 1], [1, 1]], float
)


def star(seed: int, n: int) -> F64:
    """A polygon around the origin, its corners at any distance from it."""
    rng = np.random.default_rng(seed)
    angles = (np.arange(n) + rng.uniform(0.1, 0.9, n)) * 2 * np.pi / n
    radius = rng.uniform(0.1, 1, n)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def spiral(turns: float, n: int) -> F64:
    """A band of width 2 that winds outwards."""
    angles = np.linspace(0, turns * 2 * np.pi, n)
    ray = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    inner = (1 + angles)[:, None] * ray
    return np.concatenate([inner + 2 * ray, inner[::-1]])


def comb(teeth: int) -> F64:
    """Teeth on a bar, their lower corners all on one line."""
    corners = [(0, 0), (2 * teeth, 0)]
    for i in range(teeth, 0, -1):
        corners += [(2 * i, 5), (2 * i - 1, 5), (2 * i - 1, 1), (2 * i - 2, 1)]
    return np.array(corners, float)


SHAPES = {
    "L": L_SHAPE,
    "U": U_SHAPE,
    "dart": DART,
    "keyhole": KEYHOLE,
    "star of 5": star(0, 5),
    "star of 12": star(1, 12),
    "star of 60": star(2, 60),
    "spiral": spiral(2.5, 30),
    "comb": comb(9),
}


def in_space(flat: F64, seed: int) -> F64:
    """A polygon (N, 2) somewhere in space (N, 3), of any size."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    placed = np.c_[flat, np.zeros(len(flat))] @ turn * rng.uniform(0.01, 100)
    return np.asarray(placed + 10 * rng.normal(size=3))


def cut(vertices: F64) -> I64:
    """The triangles (T, 3) of one polygon."""
    n = len(vertices)
    polygon, corner = triangulate(np.array([n]), np.arange(n), vertices, Limits())
    assert not polygon.any()
    assert corner.shape == (n - 2, 3)
    return corner


def shoelace(flat: F64) -> float:
    x, y = flat.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def normals(vertices: F64, triangles: NDArray[np.integer]) -> F64:
    """Of triangles (T, 3), as long as twice their areas."""
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    return np.asarray(np.cross(b - a, c - a))


def is_inside(flat: F64, points: F64) -> NDArray[np.bool_]:
    """Which points (P, 2) lie in a polygon (N, 2): rays from them cross its edges an odd time."""
    crossings = np.zeros(len(points), int)
    x, y = points.T
    for (ax, ay), (bx, by) in zip(flat, np.roll(flat, -1, axis=0), strict=True):
        between = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossings += between & (x < ax + (y - ay) / (by - ay) * (bx - ax))
    return np.asarray(crossings % 2 == 1)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("clockwise", [False, True])
def test_triangulate__area_is_that_of_the_shoelace_from_every_start(
    name: str, clockwise: bool
) -> None:
    for start in range(len(SHAPES[name])):
        flat = np.roll(SHAPES[name], start, axis=0)
        flat = flat[::-1] if clockwise else flat
        vertices = in_space(flat, seed=start)
        found = normals(vertices, cut(vertices))
        unit = np.linalg.norm(vertices[0] - vertices[1]) / np.linalg.norm(flat[0] - flat[1])
        total = np.linalg.norm(found, axis=1).sum() / 2
        assert total == pytest.approx(abs(shoelace(flat)) * unit**2, rel=1e-9)
        # Wound as the polygon is: the areas do not cancel each other.
        assert np.linalg.norm(found.sum(axis=0)) / 2 == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("name", SHAPES)
def test_triangulate__covers_points_inside_once_and_none_outside(name: str) -> None:
    flat = SHAPES[name]
    points = np.random.default_rng(0).uniform(flat.min(0), flat.max(0), (2000, 2))
    triangles = cut(np.c_[flat, np.zeros(len(flat))])
    covered = sum(is_inside(flat[corners], points).astype(int) for corners in triangles)
    np.testing.assert_array_equal(covered, is_inside(flat, points))


def convex(seed: int) -> F64:
    """Corners on an ellipse, some of them twice, some on an edge, all a little off their plane."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 12)))
    flat = np.stack([np.cos(angles), 0.3 * np.sin(angles)], axis=1)
    flat = np.insert(flat, 2, (flat[1] + flat[2 % len(flat)]) / 2, axis=0)
    flat = np.insert(flat, 1, flat[1], axis=0)
    return in_space(flat, seed).astype(np.float32).astype(float)


def test_triangulate__convex_polygons_stay_fans() -> None:
    rng = np.random.default_rng(0)
    shapes = [convex(seed) for seed in range(200)]
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    shapes += [square + 0.2 * rng.normal(size=(4, 3)) * [0, 0, 1] for _ in range(200)]
    lengths = np.array([len(shape) for shape in shapes])
    found = triangulate(lengths, np.arange(lengths.sum()), np.concatenate(shapes), Limits())
    for ours, plain in zip(found, fan(lengths, Limits()), strict=True):
        np.testing.assert_array_equal(ours, plain)


def test_triangulate__concave_polygons_among_others_keep_their_places() -> None:
    shapes = [np.c_[flat, np.zeros(len(flat))] for flat in (L_SHAPE, DART, U_SHAPE)]
    lengths = np.array([3, 6, 2, 4, 0, 4, 1, 8, 5])
    vertices = np.concatenate([np.eye(3), *shapes, np.random.default_rng(0).normal(size=(99, 3))])
    l_at, dart_at, u_at = 3, 9, 13
    indices = np.arange(lengths.sum())[::-1].copy()
    begins = np.cumsum(lengths) - lengths
    indices[begins[1] :][:6] = np.arange(l_at, l_at + 6)
    indices[begins[5] :][:4] = np.arange(dart_at, dart_at + 4)
    indices[begins[7] :][:8] = np.arange(u_at, u_at + 8)
    polygon, corner = triangulate(lengths, indices, vertices, Limits())
    np.testing.assert_array_equal(polygon, fan(lengths, Limits())[0])
    for at, area in ((1, 5), (5, 1), (7, 7)):
        triangles = indices[begins[at] + corner[polygon == at]]
        assert np.linalg.norm(normals(vertices, triangles), axis=1).sum() / 2 == pytest.approx(area)


CROSSED = np.array([[0, 0], [1, 1], [1, 0], [0, 1]], float)
PENTAGRAM = np.array([[np.cos(a), np.sin(a)] for a in np.arange(5) * 0.8 * np.pi])


@pytest.mark.parametrize(
    "flat",
    [
        CROSSED,
        PENTAGRAM,
        np.zeros((50, 2)),
        np.c_[np.random.default_rng(0).normal(size=50), np.zeros(50)],
        np.full((6, 2), np.nan),
        np.where(L_SHAPE == 3, np.inf, L_SHAPE),
        L_SHAPE * 1e200,
        L_SHAPE * 1e-200,
    ],
    ids=["bow tie", "pentagram", "point", "line", "nan", "inf", "huge", "tiny"],
)
def test_triangulate__what_has_no_triangulation_stays_a_fan(flat: F64) -> None:
    plain = fan(np.array([len(flat)]), Limits())[1]
    np.testing.assert_array_equal(cut(np.c_[flat, np.zeros(len(flat))]), plain)


@pytest.mark.parametrize("index", [-1, 6, 2**40])
def test_triangulate__corners_out_of_range_are_left_alone(index: int) -> None:
    vertices = np.c_[L_SHAPE, np.zeros(6)]
    indices = np.array([0, 1, 2, 3, index, 5])
    corner = triangulate(np.array([6]), indices, vertices, Limits())[1]
    np.testing.assert_array_equal(corner, fan(np.array([6]), Limits())[1])


def test_triangulate__corners_that_coincide_or_lie_on_edges_do_not_stop_it() -> None:
    flat = np.repeat(U_SHAPE, 3, axis=0)
    flat[1::3] = flat[::3] + 0.5 * (np.roll(flat, -3, axis=0)[::3] - flat[::3])
    flat[2::3] = flat[1::3]
    for start in range(len(flat)):
        vertices = np.c_[np.roll(flat, start, axis=0), np.zeros(len(flat))]
        total = np.linalg.norm(normals(vertices, cut(vertices)), axis=1).sum() / 2
        assert total == pytest.approx(7)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["noise", "star", "spiral", "line"])
@pytest.mark.parametrize("corners", [4000, 100_000])
def test_triangulate__many_corners_take_bounded_time(name: str, corners: int) -> None:
    rng = np.random.default_rng(0)
    flat = {
        "noise": rng.normal(size=(corners, 2)),
        "star": star(0, corners),
        "spiral": spiral(20, corners // 2),
        "line": np.c_[rng.normal(size=corners), np.zeros(corners)],
    }[name]
    vertices = in_space(flat, 0)
    total = np.linalg.norm(normals(vertices, cut(vertices)), axis=1).sum()
    if corners == 4000 and name in ("star", "spiral"):
        newell = normals(vertices, fan(np.array([corners]), Limits())[1]).sum(axis=0)
        assert total == pytest.approx(np.linalg.norm(newell))


def test_triangulate__past_the_work_of_a_file_fans_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = getattr(polygons_module._unfold, "py_func", polygons_module._unfold)
    monkeypatch.setattr(polygons_module, "_unfold", plain)  # which sees what is patched
    monkeypatch.setattr(polygons_module, "_MOST_STEPS", 30)
    vertices = np.c_[np.tile(L_SHAPE, (9, 1)), np.zeros(54)]
    corner = triangulate(np.full(9, 6), np.arange(54), vertices, Limits())[1]
    fans = (corner.reshape(9, 4, 3) == fan(np.array([6]), Limits())[1]).all(axis=(1, 2)).tolist()
    assert fans == sorted(fans)
    assert 0 < sum(fans) < 9


def test_triangulate__too_many_triangles_are_refused() -> None:
    with pytest.raises(MeshError, match="faces; the limit is"):
        triangulate(np.array([10**15]), np.arange(3), np.eye(3), Limits())


# -- files ---------------------------------------------------------------------------------------


def area(mesh: Mesh) -> float:
    return float(np.linalg.norm(normals(mesh.vertices.astype(float), mesh.faces), axis=1).sum() / 2)


def test_obj__concave_polygon_keeps_its_area_uv_and_normals(tmp_path: Path) -> None:
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd a.png\n")
    (tmp_path / "a.png").write_bytes(RED)
    lines = ["mtllib a.mtl", "usemtl m", *(f"v {x} {y} 0" for x, y in L_SHAPE)]
    lines += [f"vt {x / 3} {y / 3}" for x, y in L_SHAPE[::-1]]
    lines += ["vn 0 0 1", "f " + " ".join(f"{i}/{7 - i}/1" for i in range(1, 7))]
    mesh = load_bytes(tmp_path, "a.obj", "\n".join(lines))
    assert area(mesh) == pytest.approx(5)
    assert mesh.uv is not None
    placed = mesh.vertices[:, :2] - mesh.vertices[:, :2].min(axis=0)
    np.testing.assert_allclose(mesh.uv * 3, placed, atol=1e-6)
    assert mesh.normals is not None
    assert mesh.normals.tolist() == [[0, 0, 1]] * len(mesh.normals)


PLY = "ply\nformat ascii 1.0\nelement vertex 10\n"
PLY += "".join(f"property float {axis}\n" for axis in "xyz")
PLY += "element face 2\nproperty list uchar int vertex_indices\n"
PLY += "".join(f"property uchar {color}\n" for color in ("red", "green", "blue")) + "end_header\n"


def test_ply__concave_polygons_keep_their_areas_and_colours(tmp_path: Path) -> None:
    rows = [f"{x} {y} 0" for x, y in np.concatenate([L_SHAPE, np.roll(DART, 1, axis=0) + 5])]
    rows += ["6 0 1 2 3 4 5 255 0 0", "4 6 7 8 9 0 0 255"]
    mesh = load_bytes(tmp_path, "a.ply", PLY + "\n".join(rows) + "\n")
    assert mesh.vertex_color is not None
    sizes = np.linalg.norm(normals(mesh.vertices.astype(float), mesh.faces), axis=1) / 2
    red = mesh.vertex_color[mesh.faces[:, 0], 0] == 1
    assert sizes[red].sum() == pytest.approx(5)
    assert sizes[~red].sum() == pytest.approx(1)


def test_off__concave_polygon_keeps_its_area(tmp_path: Path) -> None:
    rows = "\n".join(f"{x} {y} 0" for x, y in L_SHAPE)
    mesh = load_bytes(tmp_path, "a.off", f"OFF\n6 1 0\n{rows}\n6 0 1 2 3 4 5\n")
    assert area(mesh) == pytest.approx(5)


POLYLIST = "<vcount>4</vcount><p>0 0 1 1 2 2 3 3</p>\n</polylist>"


@pytest.mark.parametrize("kind", ["polylist", "polygons"])
@pytest.mark.parametrize("start", range(4))
def test_dae__concave_polygon_keeps_its_area(tmp_path: Path, kind: str, start: int) -> None:
    positions = " ".join(f"{x} {y} 0" for x, y in np.roll(DART, start, axis=0))
    text = quad_dae(None).replace("0 0 0 1 0 0 1 1 0 0 1 0", positions)
    if kind == "polygons":
        text = text.replace(POLYLIST, "<p>0 0 1 1 2 2 3 3</p></polygons>")
        text = text.replace("<polylist", "<polygons")
    mesh = load_bytes(tmp_path, "a.dae", text)
    assert area(mesh) == pytest.approx(1)
    assert len(mesh.faces) == 2
