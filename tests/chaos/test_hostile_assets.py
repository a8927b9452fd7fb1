"""Hostile assets through the path of the job: a row, or a failure that says why, and nothing else.

The slow test runs every case of ``tests.chaos.mutations``; its figures are those of
``docs/reliability.md``, written to the file that ``CHAOS_FIGURES`` names:

    CHAOS_FIGURES=figures.json python -m pytest -m slow -s tests/chaos/test_hostile_assets.py
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.captions.files import CaptionFile
from pipeline.clouds import make_cloud
from pipeline.common import InputError
from pipeline.datasets.tables import cell_texts, read_table
from pipeline.meshes import Limits, load_mesh
from pipeline.meshes.parts import fan
from pipeline.meshes.wavefront import _map_name
from pipeline.scene import MeshError
from tests.chaos.mutate import Case, World
from tests.chaos.mutate_meshes import OBJ, off_text
from tests.chaos.mutate_tables import parquet
from tests.chaos.mutations import all_cases, sample
from tests.chaos.spies import run_spies
from tests.chaos.watch import Report, digest, scratch, watched_run
from tests.pipeline.test_mesh_materials import quad_dae

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches by inotify and /proc")

MEMORY = 4 << 30  # half of what a worker may take (``pipeline.isolated``)
PLAIN = World("/nowhere", 9)


def checked(report: Report) -> Report:
    """Assert what must hold of any run."""
    told = "\n".join(report.findings[:40])
    assert not report.findings, f"{len(report.findings)} findings:\n{told}"
    assert report.tried == report.failed + report.succeeded
    assert report.largest[0] < MEMORY, report.largest
    return report


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """All of them, their files not made yet."""
    return list(all_cases())


@pytest.mark.timeout(300)
def test_hostile__a_sample_is_rows_or_failures_and_touches_nothing_else(
    cases: list[Case],
) -> None:
    chosen = sample(cases, 150)
    with scratch() as folder:
        report = checked(watched_run(chosen, folder, timeout_s=60, memory_bytes=MEMORY))
    assert report.tried == 150
    assert report.succeeded > 10
    assert report.failed > 60
    assert len(report.kinds) > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hostile__all_are_rows_or_failures_and_touch_nothing_else(cases: list[Case]) -> None:
    distinct = {digest(case, PLAIN): case for case in cases}
    assert len(distinct) >= 2000
    with scratch() as folder:
        report = watched_run(list(distinct.values()), folder, timeout_s=60, memory_bytes=MEMORY)
    figures = json.dumps(report.figures(), indent=1)
    print(figures)  # noqa: T201 (with -s, beside the file)
    place = os.environ.get("CHAOS_FIGURES")
    if place:
        Path(place).write_text(figures + "\n")
    checked(report)
    assert report.succeeded > 300
    assert len(report.kinds) > 20


@pytest.mark.slow
def test_watch__sees_what_a_loader_must_not_do() -> None:
    """The harness itself: what reaches out is told of, whoever does it."""
    with scratch() as folder:
        told = "\n".join(run_spies(folder))
    for what in (
        *("spy/python: open", "spy/python: os.listdir", "spy/write: open", "to write"),
        *(": secret.png was opened", "spy/connect: socket.connect", "left.txt was made"),
        *("a connection was made", "spy/process: subprocess.Popen"),
        *("spy/exception: load, ZeroDivision", "spy/hang: process, timeout"),
        *("spy/crash: process, crash", "spy/hunger: load, out_of_memory"),
    ):
        assert what in told, f"{what!r} not in:\n{told}"


def test_cases__are_the_same_in_every_run(cases: list[Case]) -> None:
    first, second = cases, list(all_cases())
    assert [case.name for case in first] == [case.name for case in second]
    assert len({case.name for case in first}) == len(first) >= 2000
    some = first[:: len(first) // 40]
    again = {case.name: case for case in second}
    assert [digest(c, PLAIN) for c in some] == [digest(again[c.name], PLAIN) for c in some]


# --- what the cases have found, each by itself ------------------------------------------------


def failed(folder: Path, name: str, data: bytes, **beside: bytes) -> MeshError:
    (folder / name).write_bytes(data)
    for other, content in beside.items():
        (folder / other.replace("_", ".")).write_bytes(content)
    with pytest.raises(MeshError) as error:
        load_mesh(folder / name)
    return error.value


@pytest.mark.timeout(20)
@pytest.mark.parametrize("count", [5, 10**6, 10**12])
def test_off__a_face_that_claims_more_corners_than_follow(count: int, tmp_path: Path) -> None:
    text = b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n%d 0 1 2\n" % count
    error = failed(tmp_path, "a.off", text)
    assert error.kind == "bad_header"
    assert "corners" in error.message


def test_off__colours_that_are_no_numbers(tmp_path: Path) -> None:
    text = off_text(True).replace(b" 10 20 30 255", b" nan 20 30 255", 1)
    assert failed(tmp_path, "a.off", text).kind == "not_finite"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("vcount", ["100000000", "2147483647", "-4", "5"])
def test_dae__polygons_that_claim_more_corners_than_there_are(vcount: str, tmp_path: Path) -> None:
    text = quad_dae(None).replace("<vcount>4", f"<vcount>{vcount}")
    error = failed(tmp_path, "a.dae", text.encode())
    assert error.kind == "bad_header"
    assert "claim" in error.message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_dae__document_type_is_refused_before_it_is_read(encoding: str, tmp_path: Path) -> None:
    text = quad_dae(None).replace("<COLLADA", '<!DOCTYPE x [<!ENTITY a "b">]>\n<COLLADA', 1)
    text = text.replace('version="1.0"?', f'version="1.0" encoding="{encoding}"?')
    error = failed(tmp_path, "a.dae", text.encode(encoding))
    assert error.kind == "bad_header"
    assert "document type" in error.message


@pytest.mark.timeout(20)
def test_obj__a_library_that_is_named_again_and_again_is_read_once(tmp_path: Path) -> None:
    statement = b"mtllib " + b"a.mtl " * 30_000 + b"\n"
    text = OBJ.replace(b"mtllib a.mtl\n", statement * 2)
    (tmp_path / "a.mtl").write_bytes(b"newmtl red\nKd 1 0 0\nnewmtl blue\nKd 0 0 1\n")
    (tmp_path / "a.obj").write_bytes(text)
    assert len(load_mesh(tmp_path / "a.obj").materials) == 2


@pytest.mark.timeout(20)
def test_mtl__options_without_end_are_read_in_one_pass() -> None:
    assert _map_name("-s 1 " * 300_000 + "a b.png") == "a b.png"
    assert _map_name("-o 1 2 -clamp on  my  wood.png") == "my wood.png"
    assert _map_name("  my  wood.png ") == "my  wood.png"
    assert _map_name("-s 1 1 1") == ""
    assert _map_name("-s 2 wood.png") == _map_name("-s 2 2 wood.png") == "wood.png"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name", ["x" * 300, "a/" * 500_000, "x" * 5000], ids=["name", "path", "long"]
)
def test_reference__too_long_for_a_file_is_missing(name: str, tmp_path: Path) -> None:
    mtl = b"newmtl red\nmap_Kd %s\n" % name.encode()
    assert failed(tmp_path, "a.obj", OBJ, a_mtl=mtl).kind == "missing_texture"


def test_fan__is_the_plain_one() -> None:
    lengths = np.array([3, 1, 4, 0, 7, 2, 3])
    plain = [(at, [0, i, i + 1]) for at, n in enumerate(lengths) for i in range(1, n - 1)]
    polygon, corner = fan(lengths, Limits())
    np.testing.assert_array_equal(polygon, [at for at, _ in plain])
    np.testing.assert_array_equal(corner, [corners for _, corners in plain])
    with pytest.raises(MeshError, match="faces; the limit is"):
        fan(np.array([10**15]), Limits())


@pytest.mark.timeout(20)
def test_cloud__points_that_coincide_are_counted_without_sorting_them() -> None:
    points = np.zeros((1_000_000, 3), np.float32)
    points[-14:] = np.arange(14)[:, None] + 1
    with pytest.raises(MeshError, match="15 distinct"):
        make_cloud(points)
    points[0] = 99
    assert len(make_cloud(points).xyz) == len(points)


def test_table__cells_nested_deeply_are_texts(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert cell_texts(deep) == [deep]
    (tmp_path / "metadata.csv").write_text(f'file,caption\na.glb,"{deep}"\n')
    table = read_table(tmp_path / "metadata.csv", tmp_path, {})
    assert table.by_path["a.glb"].captions == [deep]


@pytest.mark.parametrize("damage", ["pages", "text", "date", "names"])
def test_table__parquet_that_cannot_be_read_says_so(damage: str, tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / "metadata.parquet"
    data = parquet({"uid": ["a.glb"] * 99, "caption": [f"@@@@@@@@{i}" for i in range(99)]})
    if damage == "date":
        data = parquet({"uid": ["a.glb"], "caption": pa.array([2**62], pa.timestamp("us"))})
    at = data.index(b"@@@@@@@@") if damage != "date" else 0
    if damage == "text":
        data = data.replace(b"@@@@@@@@", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8")
    elif damage == "pages":
        data = data[: at - 60] + b"\xff" * 80 + data[at + 20 :]
    elif damage == "names":
        data = data.replace(b"caption", b"capt\xfffn")
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged|cannot be read as Parquet"):
        read_table(path, tmp_path, {})
    with pytest.raises(InputError, match=r"--captions .*(damaged|cannot be read as Parquet)"):
        list(CaptionFile(path).entries())


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_captions__a_line_without_end_is_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.captions.files._LONGEST", 1000)
    path = tmp_path / f"captions.{suffix}"
    path.write_bytes(b'{"uid": "a", "caption": "x"}\n' * 3 + b"x" * 1001)
    with pytest.raises(InputError, match="a line of over"):
        list(CaptionFile(path).entries())
