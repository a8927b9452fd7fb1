"""PLY files whose header and values do not agree, and columns of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.meshes import Limits
from pipeline.meshes.ply import Lists, read_elements, read_header
from pipeline.scene import MeshError
from tests.pipeline.ply_files import (
    CODES,
    CORNERS,
    FORMS,
    GREEN,
    HOUSE,
    RED,
    SQUARE,
    TRIANGLE,
    XYZ,
    Table,
    kind_of,
    painted,
    ply,
)
from tests.pipeline.test_meshes import load_bytes

UV = "list uchar float texcoord"
MIDDLE = (0.5, 0.5)


def edited(form: str, *swaps: tuple[str, str]) -> bytes:
    data = ply(form, ("vertex", XYZ, HOUSE), ("face", CORNERS, [[SQUARE], [TRIANGLE]]))
    for old, new in swaps:
        assert old.encode() in data
        data = data.replace(old.encode(), new.encode(), 1)
    return data


NOTE = f"element note {10**12}\nproperty int a\nelement face"
HEADERS = {
    "vertices": (("vertex 5", "vertex 1000000000000"), "too_large"),
    "strips": (("element face 2", "element tristrips 1000000000000"), "too_large"),
    "other rows": (("element face", NOTE), "bad_header"),
    "a count past all numbers": (("vertex 5", "vertex " + "9" * 5000), "bad_header"),
    "a property of nothing": (("element vertex 5\n", ""), "bad_header"),
    "two elements of a name": (("element face", "element vertex"), "bad_header"),
    "two properties of a name": (("float y", "float x"), "bad_header"),
    "no x": (("float x", "float w"), "bad_header"),
    "no format": (("format", "comment"), "bad_header"),
    "an unknown format": (("format ", "format x"), "bad_header"),
    "lists of a length that is not whole": (("list uchar", "list double"), "bad_header"),
    "faces without a list": (("list uchar int", "int"), "bad_header"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", HEADERS)
def test_ply_header__a_false_claim_is_refused(tmp_path: Path, form: str, case: str) -> None:
    swap, kind = HEADERS[case]
    seen = kind_of(tmp_path, edited(form, swap))
    # A binary file without one of its columns has values left over.
    assert seen in {kind, "parse_error"} if case == "faces without a list" else seen == kind


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("0 1 0\n2", "0 1 0 9\n2", "parse_error"),  # too many numbers
        ("0 1 0\n2", "0 1\n2", "parse_error"),
        ("4 0 1 2 3", "5 0 1 2 3", "parse_error"),
        ("4 0 1 2 3", "3 0 1 2 3", "parse_error"),
        ("4 0 1 2 3", "-4 0 1 2 3", "parse_error"),
        ("4 0 1 2 3", "nan 0 1 2 3", "parse_error"),
        ("4 0 1 2 3", "4 0 1 2 three", "parse_error"),
        ("4 0 1 2 3", "4 0-1 2 3", "parse_error"),
        ("4 0 1 2 3", "4 0 1 2 2.5", "bad_index"),
        ("4 0 1 2 3", "4 0 1 2 1e300", "bad_index"),
        ("4 0 1 2 3", "4 0 1 2 -1", "bad_index"),
        ("3 1 4 2\n", "3 1 4 2\n3 1 4 2\n", "parse_error"),
        ("3 1 4 2\n", "", "bad_header"),
        ("vertex 5", "vertex 4", "parse_error"),
    ],
)
def test_ply_text__lines_that_do_not_fit_are_refused(
    tmp_path: Path, old: str, new: str, kind: str
) -> None:
    assert kind_of(tmp_path, edited("ascii", (old, new))) == kind


def test_ply_text__blank_lines_and_carriage_returns(tmp_path: Path) -> None:
    data = edited("ascii").replace(b"\n4 0", b"\n\n \n4 0").replace(b"\n", b"\r\n")
    data = data.replace(b"1.0\r\n", b"1.0\r\ncomment x\r\n")
    assert len(load_bytes(tmp_path, "a.ply", data.rstrip()).faces) == 3


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("rows", [[SQUARE, TRIANGLE], [TRIANGLE, TRIANGLE]])
def test_ply_binary__more_or_less_than_the_header_says(
    tmp_path: Path, form: str, rows: list[tuple[int, ...]]
) -> None:
    data = ply(form, ("vertex", XYZ, HOUSE), ("face", CORNERS, [[row] for row in rows]))
    assert kind_of(tmp_path, data[:-1]) == "parse_error"
    assert kind_of(tmp_path, data + b"\1") == "parse_error"
    load_bytes(tmp_path, "a.ply", data + b"\r\n\0")


@pytest.mark.parametrize("form", FORMS[1:])
def test_ply_binary__rows_that_lists_before_them_leave_no_room_for(
    tmp_path: Path, form: str
) -> None:
    faces: list[list[Any]] = [[SQUARE], [(0,) * 19]]
    data = ply(form, ("face", CORNERS, faces), ("vertex", XYZ, HOUSE))
    assert len(load_bytes(tmp_path, "a.ply", data).faces) == 2 + 17
    assert kind_of(tmp_path, data[:-13]) == "parse_error"


def test_ply_binary__more_lists_than_a_mesh_has_are_not_walked(tmp_path: Path) -> None:
    note = ("note", "list uchar int a, list uchar int b", [((), (1,))] * 30)
    data = ply(FORMS[1], note, ("vertex", XYZ, HOUSE), ("face", CORNERS, [[TRIANGLE]]))
    assert kind_of(tmp_path, data, Limits(vertices=59)) == "too_large"
    load_bytes(tmp_path, "a.ply", data, limits=Limits(vertices=60))


def test_ply_binary__a_length_below_zero(tmp_path: Path) -> None:
    for number in (0, 1):
        data = ply(
            FORMS[1],
            ("vertex", XYZ, HOUSE),
            ("face", CORNERS.replace("uchar", "char"), [[TRIANGLE]] * 2),
        )
        body = bytearray(data)
        body[-13 * (2 - number)] = 255
        assert kind_of(tmp_path, bytes(body)) == "parse_error"


@pytest.mark.parametrize("form", FORMS)
def test_ply__polygons_count_as_their_triangles(tmp_path: Path, form: str) -> None:
    polygon = tuple(range(5)) * 40
    data = ply(form, ("vertex", XYZ, HOUSE), ("face", CORNERS, [[polygon], [TRIANGLE]]))
    assert kind_of(tmp_path, data, Limits(faces=198)) == "too_large"
    load_bytes(tmp_path, "a.ply", data, limits=Limits(faces=199))
    strip = ply(form, ("vertex", XYZ, HOUSE), ("tristrips", CORNERS, [[polygon]]))
    assert kind_of(tmp_path, strip, Limits(faces=100)) == "too_large"


@pytest.mark.parametrize("form", FORMS)
def test_ply__any_cut_and_any_changed_byte_is_a_mesh_or_a_mesh_error(
    tmp_path: Path, form: str
) -> None:
    rng = np.random.default_rng(5)
    painted(tmp_path, one=RED, two=GREEN)
    faces = [(SQUARE, MIDDLE * 4, 1), (TRIANGLE, MIDDLE * 3, 0)]
    whole = ply(
        form,
        ("vertex", XYZ, HOUSE),
        ("face", f"{CORNERS}, {UV}, int texnumber", faces),
        ("tristrips", "list int int vertex_indices", [[(0, 1, 2, 3)], [(0, 1, 2, -1, 2, 1, 0)]]),
        comments=["TextureFile one.png"],
    )
    variants = [whole[:cut] for cut in rng.integers(1, len(whole), 40)]
    for _ in range(160):
        broken = bytearray(whole)
        for place in rng.integers(len(whole) // 3, len(whole), 1 + int(rng.integers(3))):
            broken[place] = int(rng.integers(256))
        variants.append(bytes(broken))
    outcomes = set()
    for data in variants:
        try:
            mesh = load_bytes(tmp_path, "a.ply", data)
        except MeshError as error:
            outcomes.add(error.kind)
        else:
            assert np.isfinite(mesh.vertices).all()
            outcomes.add("mesh")
    assert {"mesh", "bad_header", "parse_error"} <= outcomes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(6))
def test_ply_elements__any_columns_are_read_as_they_were_written(form: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables: list[Table] = []
    for number in range(3):
        kinds = [str(kind) for kind in rng.choice(list(CODES), rng.integers(1, 6))]
        lists = rng.random(len(kinds)) < 0.5
        equal = rng.random() < 0.4
        lengths = rng.integers(0, 5, len(kinds))
        properties = ", ".join(
            f"list {rng.choice(list(CODES)[:6])} {kind} p{i}" if lists[i] else f"{kind} p{i}"
            for i, kind in enumerate(kinds)
        )
        rows: list[list[Any]] = [
            [
                rng.integers(0, 100, lengths[i] if equal else rng.integers(0, 5)).tolist()
                if lists[i]
                else int(rng.integers(0, 100))
                for i in range(len(kinds))
            ]
            for _ in range(int(rng.integers(1, 30)))
        ]
        tables.append((f"e{number}", properties, rows))
    data = ply(form, *tables)
    names = frozenset(f"p{i}" for i in range(5))
    found = read_elements(data, read_header(data, Limits()), {"e0": names, "e2": names})
    assert set(found) == {"e0", "e2"}
    for name, properties, written in tables:
        for i, _ in enumerate(properties.split(", ") if name in found else []):
            column, expected = found[name][f"p{i}"], [row[i] for row in written]
            if isinstance(column, Lists):
                assert column.lengths.tolist() == [len(each) for each in expected]
                expected = [value for each in expected for value in each]
                assert column.values.reshape(-1).tolist() == expected
            else:
                assert column.tolist() == expected
