"""Point files: every format read back, colours by their rules, hostile files refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.common import content_hash, file_hash
from pipeline.datasets.point_files import (
    RawPoints,
    cloud_asset,
    count_clouds,
    is_point_file,
    read_points,
    rgb_of,
)
from pipeline.meshes import UP_AXES, Limits
from pipeline.scene import MeshError
from tests.pipeline.cloud_files import (
    colors_of,
    normalised,
    ply_bytes,
    points_of,
    text_bytes,
    unit_of,
    write_h5,
)

XYZ, RGB, NORMALS = points_of(), colors_of(), unit_of()


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def npz(folder: Path, *, packed: bool = False, **arrays: Any) -> Path:
    path = folder / "cloud.npz"
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def npy(folder: Path, array: NDArray[Any]) -> Path:
    path = folder / "cloud.npy"
    np.save(path, array)
    return path


def kind_of(path: Path, index: int | None = None, limits: Limits | None = None) -> str:
    with pytest.raises(MeshError) as error:
        read_points(path, index, limits)
    assert error.value.stage == "load"
    assert "\n" not in error.value.message
    return error.value.kind


def check(raw: RawPoints, *, rgb: bool = False, normals: bool = False) -> None:
    np.testing.assert_allclose(np.asarray(raw.xyz, np.float64), XYZ, rtol=1e-6)
    assert (raw.rgb is not None) == rgb
    if raw.rgb is not None:
        assert raw.rgb.dtype == np.uint8
        np.testing.assert_array_equal(raw.rgb, RGB)
    assert (raw.normals is not None) == normals
    if raw.normals is not None:
        np.testing.assert_allclose(np.asarray(raw.normals, np.float64), NORMALS, rtol=1e-5)


# -- ply -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("colored", [False, True])
def test_ply__points_colours_and_normals(tmp_path: Path, form: str, colored: bool) -> None:
    data = ply_bytes(XYZ, RGB if colored else None, NORMALS, form=form)
    raw = read_points(put(tmp_path, "a.ply", data))
    check(raw, rgb=colored, normals=True)
    assert (raw.sha256, raw.n_bytes) == (content_hash(data), len(data))


def test_ply__colours_as_floats_and_by_other_names(tmp_path: Path) -> None:
    floats = RGB.astype(np.float32) / 255
    check(read_points(put(tmp_path, "a.ply", ply_bytes(XYZ, floats))), rgb=True)
    short = ply_bytes(XYZ, RGB, rgb_names=("r", "g", "b"))
    check(read_points(put(tmp_path, "b.ply", short)), rgb=True)


def test_ply__count_that_lies_is_refused_before_it_is_believed(tmp_path: Path) -> None:
    assert kind_of(put(tmp_path, "a.ply", ply_bytes(XYZ, claim=10_000_000))) == "bad_header"
    assert kind_of(put(tmp_path, "b.ply", ply_bytes(XYZ, claim=10**12))) == "too_large"
    cut = ply_bytes(XYZ, RGB)[:-40]
    assert kind_of(put(tmp_path, "c.ply", cut)) == "bad_header"


def test_ply__a_mesh_is_sent_to_the_folder_source(tmp_path: Path) -> None:
    faces = "element face 1\nproperty list uchar int vertex_indices\n"
    data = ply_bytes(XYZ, form="ascii", extra=faces) + b"3 0 1 2\n"
    with pytest.raises(MeshError, match="--dataset folder") as error:
        read_points(put(tmp_path, "a.ply", data))
    assert error.value.kind == "has_faces"


# -- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.xyz", "a.txt", "a.pts", "a.csv", "a.asc"])
@pytest.mark.parametrize("separator", [" ", "\t", ", ", ";"])
def test_text__plain_numbers(tmp_path: Path, name: str, separator: str) -> None:
    data = text_bytes(XYZ, separator=separator)
    check(read_points(put(tmp_path, name, data)))


def test_text__unnamed_columns_are_told_by_their_values(tmp_path: Path) -> None:
    check(read_points(put(tmp_path, "a.xyz", text_bytes(XYZ, RGB))), rgb=True)
    check(read_points(put(tmp_path, "b.xyz", text_bytes(XYZ, RGB / np.float64(255)))), rgb=True)
    check(read_points(put(tmp_path, "c.xyz", text_bytes(XYZ, NORMALS))), normals=True)
    both = text_bytes(XYZ, NORMALS, RGB)
    check(read_points(put(tmp_path, "d.xyz", both)), rgb=True, normals=True)
    turned = text_bytes(XYZ, RGB, NORMALS)
    check(read_points(put(tmp_path, "e.xyz", turned)), rgb=True, normals=True)
    label = np.full((len(XYZ), 1), 7)
    check(read_points(put(tmp_path, "f.txt", text_bytes(XYZ, NORMALS, label))), normals=True)
    check(read_points(put(tmp_path, "g.txt", text_bytes(XYZ, label))))
    octant = read_points(put(tmp_path, "i.xyz", text_bytes(XYZ, np.abs(NORMALS))))
    assert octant.rgb is None
    np.testing.assert_allclose(np.asarray(octant.normals), np.abs(NORMALS), rtol=1e-5)
    red = read_points(put(tmp_path, "j.xyz", text_bytes(XYZ, np.tile([1, 0, 0], (len(XYZ), 1)))))
    assert red.normals is None
    np.testing.assert_array_equal(red.rgb, np.tile([255, 0, 0], (len(XYZ), 1)))
    neither = text_bytes(XYZ, NORMALS * 7)
    check(read_points(put(tmp_path, "h.txt", neither)))


def test_text__pts_with_count_intensity_and_colour(tmp_path: Path) -> None:
    intensity = np.arange(len(XYZ))[:, None] - 2000
    data = text_bytes(XYZ, intensity, RGB, head=f"{len(XYZ)}\n")
    check(read_points(put(tmp_path, "a.pts", data)), rgb=True)
    cut = b"\n".join(data.split(b"\n")[:-9]) + b"\n"
    assert kind_of(put(tmp_path, "b.pts", cut)) == "bad_header"


@pytest.mark.parametrize(
    ("head", "separator"),
    [
        ("x,y,z,r,g,b\n", ","),
        ('"X","Y","Z","Red","Green","Blue"\n', ","),
        ("//X Y Z R G B\n", " "),
        ("# x y z red green blue\n# another\n\n", " "),
        ("\ufeffx;y;z;r;g;b\n", ";"),
    ],
)
def test_text__header_names_columns(tmp_path: Path, head: str, separator: str) -> None:
    data = text_bytes(XYZ, RGB, separator=separator, head=head)
    check(read_points(put(tmp_path, "a.csv", data)), rgb=True)


def test_text__named_columns_in_any_order_beside_others(tmp_path: Path) -> None:
    lines = ["label,b,g,r,z,y,x"]
    for (x, y, z), (r, g, b) in zip(XYZ.tolist(), RGB.tolist(), strict=True):
        lines.append(f"chair,{b},{g},{r},{z!r},{y!r},{x!r}")
    check(read_points(put(tmp_path, "a.csv", "\n".join(lines).encode())), rgb=True)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty_file"),
        (b"\n \n", "no_points"),
        (b"# only a comment\n", "no_points"),
        (b"hello world\n1 2 3\n", "bad_header"),
        (b"1 2 3\n4 5\n6 7 8\n", "parse_error"),
        (b"1 2 3\n4 five 6\n", "parse_error"),
        (b"1 2\n3 4\n", "bad_shape"),
        (b"1 2 3\n\0\0\0\0", "bad_header"),
        (b"x y z\n1 2 3 4\n", "bad_header"),
        (b"x,y,z,r,g,b\n1,2,3,300,0,0\n", "bad_color"),
    ],
)
def test_text__what_is_no_table_is_refused(tmp_path: Path, data: bytes, kind: str) -> None:
    assert kind_of(put(tmp_path, "a.txt", data)) == kind


def test_text__too_many_lines_are_refused_before_parsing(tmp_path: Path) -> None:
    path = put(tmp_path, "a.xyz", text_bytes(XYZ))
    assert kind_of(path, limits=Limits(vertices=50)) == "too_large"
    assert kind_of(path, limits=Limits(file_bytes=100)) == "too_large"


def test_is_point_file__tells_tables_of_numbers_from_prose(tmp_path: Path) -> None:
    assert is_point_file(put(tmp_path, "a.txt", text_bytes(XYZ)))
    assert is_point_file(put(tmp_path, "b.csv", b"x,y,z\n1,2,3\n"))
    assert is_point_file(put(tmp_path, "c.txt", b""))
    assert is_point_file(put(tmp_path, "d.xyz", b"no points"))
    assert not is_point_file(put(tmp_path, "e.txt", b"airplane\nbathtub\n"))
    assert not is_point_file(put(tmp_path, "f.csv", b"path,caption\na.ply,a chair\n"))


# -- npy and npz ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy__one_cloud(tmp_path: Path, dtype: str, order: Any) -> None:
    path = npy(tmp_path, np.asarray(XYZ, dtype, order=order))
    assert count_clouds(path) is None
    raw = read_points(path)
    np.testing.assert_allclose(np.asarray(raw.xyz, np.float64), XYZ, rtol=2e-3)
    assert (raw.sha256, raw.n_bytes) == (file_hash(path), path.stat().st_size)


def test_npy__integers_are_points_too(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(-(2**62), 2**62, (50, 3))
    cloud = cloud_asset(read_points(npy(tmp_path, whole)), "+y").cloud
    assert cloud is not None
    np.testing.assert_allclose(cloud.xyz, normalised(whole), atol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy__many_clouds(tmp_path: Path, order: Any) -> None:
    clouds = np.stack([points_of(seed=seed) for seed in range(4)])
    rgb = np.stack([colors_of(seed=seed) for seed in range(4)]) / np.float32(255)
    path = npy(tmp_path, np.asarray(np.concatenate([clouds, rgb], -1), order=order))
    assert count_clouds(path) == 4
    hashes = set()
    for seed in range(4):
        raw = read_points(path, seed)
        np.testing.assert_array_equal(raw.xyz, points_of(seed=seed))
        np.testing.assert_array_equal(raw.rgb, colors_of(seed=seed))
        hashes.add(raw.sha256)
        assert raw.n_bytes == 60 * 6 * 4
    assert len(hashes) == 4
    for index in (4, -1, None):
        assert kind_of(path, index) == "bad_index"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", [("xyz", "rgb"), ("points", "colors"), ("pc", "features")])
def test_npz__arrays_by_name(tmp_path: Path, names: tuple[str, str], packed: bool) -> None:
    arrays = {"label": np.array(3), names[1]: RGB, names[0]: XYZ, "normals": NORMALS}
    check(read_points(npz(tmp_path, packed=packed, **arrays)), rgb=True, normals=True)


def test_npz__features_that_are_no_colours_are_left_alone(tmp_path: Path) -> None:
    check(read_points(npz(tmp_path, pos=XYZ, features=NORMALS * 400)))
    check(read_points(npz(tmp_path, pos=XYZ, features=np.zeros((60, 128), np.float32))))


def test_npz__many_clouds_packed(tmp_path: Path) -> None:
    clouds = np.stack([points_of(seed=seed) for seed in range(3)])
    rgb = np.stack([colors_of(seed=seed) for seed in range(3)])
    path = npz(tmp_path, packed=True, data=clouds, rgb=rgb)
    assert count_clouds(path) == 3
    np.testing.assert_array_equal(read_points(path, 2).xyz, clouds[2])
    np.testing.assert_array_equal(read_points(path, 2).rgb, rgb[2])


def test_npz__message_names_what_was_found(tmp_path: Path) -> None:
    check(read_points(npz(tmp_path, other=XYZ, depth=np.zeros((50, 40)))))  # the only one
    path = npz(tmp_path, image=np.zeros((8, 8, 4)), depth=np.zeros((5, 4)), label=np.array([1]))
    with pytest.raises(MeshError) as error:  # one of two
        read_points(path)
    assert error.value.kind == "no_points"
    for part in ("image (8, 8, 4)", "depth (5, 4)", "label (1,)", "expected"):
        assert part in error.value.message


def test_npz__shapes_that_disagree_are_refused(tmp_path: Path) -> None:
    assert kind_of(npz(tmp_path, xyz=XYZ, rgb=RGB[:-1])) == "bad_shape"
    assert kind_of(npz(tmp_path, xyz=XYZ.T)) == "no_points"
    assert kind_of(npz(tmp_path, xyz=np.zeros((100, 100)))) == "no_points"


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_pickled__objects_are_refused_by_name(tmp_path: Path, form: str) -> None:
    holder = np.empty((20, 3), object)
    holder[:] = "surprise"
    path = npy(tmp_path, holder) if form == "npy" else npz(tmp_path, xyz=holder)
    with pytest.raises(MeshError, match="pickled Python objects") as error:
        read_points(path)
    assert error.value.kind == "pickled"
    single = np.empty((), object)  # as np.save writes a dictionary
    single[()] = {"xyz": XYZ}
    path = npy(tmp_path, single) if form == "npy" else npz(tmp_path, xyz=single)
    assert kind_of(path) == "pickled"


def lying_npy(shape: str, data: bytes = b"\0" * 64) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    ("shape", "kinds"),
    [
        ("(1000000, 3)", {"bad_header"}),
        ("(1000000000000, 3)", {"bad_header", "too_large"}),
        ("(4611686018427387904, 16)", {"bad_header", "too_large"}),  # overflows 64 bits
        ("(-5, 3)", {"bad_header"}),
        ("__import__('os')", {"bad_header"}),
    ],
)
def test_npy__header_that_lies_is_refused_before_allocation(
    tmp_path: Path, shape: str, kinds: set[str]
) -> None:
    assert kind_of(put(tmp_path, "a.npy", lying_npy(shape))) in kinds
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("xyz.npy", lying_npy(shape))
    assert kind_of(tmp_path / "a.npz") in kinds


def test_npz__bomb_is_refused_by_its_claim(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xyz.npy", lying_npy("(2000000, 3)", b"\0" * 24_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    assert kind_of(tmp_path / "a.npz", limits=Limits(file_bytes=10**6)) == "too_large"
    assert kind_of(tmp_path / "a.npz", limits=Limits(vertices=10**6)) == "too_large"


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.ply"])
def test_damage__other_bytes_under_the_name_are_refused(tmp_path: Path, name: str) -> None:
    assert kind_of(put(tmp_path, name, b"")) == "empty_file"
    assert kind_of(put(tmp_path, name, b"not what it is called" * 9)) == "bad_header"
    assert kind_of(tmp_path / ("no" + name)) == "missing_file"
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert kind_of(tmp_path / name) in {"not_a_file", "unreadable"}


def test_damage__files_cut_anywhere_raise_nothing_but_mesh_errors(tmp_path: Path) -> None:
    path = npz(tmp_path, packed=True, xyz=XYZ, rgb=RGB)
    h5 = write_h5(tmp_path / "a.h5", data=XYZ, rgb=RGB)
    for source in (path, npy(tmp_path, XYZ), h5):
        whole = source.read_bytes()
        for cut in np.linspace(1, len(whole) - 1, 12).astype(int):
            source.write_bytes(whole[:cut])
            for read in (read_points, count_clouds):
                try:
                    read(source)
                except MeshError as error:
                    assert error.kind  # noqa: PT017 (a small cut at the end may do no harm)


# -- h5 ------------------------------------------------------------------------------------------


def test_h5__one_cloud_and_many(tmp_path: Path) -> None:
    check(read_points(write_h5(tmp_path / "a.h5", xyz=XYZ, color=RGB)), rgb=True)
    clouds = np.stack([points_of(seed=seed) for seed in range(5)])
    path = write_h5(tmp_path / "b.h5", data=clouds, label=np.arange(5), normal=clouds)
    assert count_clouds(path) == 5
    raw = read_points(path, 3)
    np.testing.assert_array_equal(raw.xyz, points_of(seed=3))
    assert raw.normals is not None


def test_h5__packed_in_chunks(tmp_path: Path) -> None:
    clouds = np.stack([points_of(seed=seed) for seed in range(5)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=clouds, chunks=(2, 60, 3), compression="gzip")
    np.testing.assert_array_equal(read_points(tmp_path / "a.h5", 4).xyz, clouds[4])


def test_h5__bombs_are_refused_by_their_claims(tmp_path: Path) -> None:
    limits = Limits(file_bytes=10**6)
    with h5py.File(tmp_path / "a.h5", "w") as file:  # nothing of it is written
        file.create_dataset("xyz", shape=(10**9, 3), dtype="f4", chunks=(1000, 3))
        file.create_dataset("data", shape=(4, 60, 3), dtype="f8", maxshape=(None, None, None),
                            chunks=(4000, 60, 3), compression="gzip")  # fmt: skip
    assert kind_of(tmp_path / "a.h5", limits=limits) == "too_large"
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("data", shape=(4, 60, 3), dtype="f8", maxshape=(None, None, None),
                            chunks=(4000, 60, 3), compression="gzip")  # fmt: skip
    assert kind_of(tmp_path / "b.h5", 0, limits) == "too_large"


def test_h5__data_in_other_files_are_not_read(tmp_path: Path) -> None:
    write_h5(tmp_path / "other.h5", xyz=XYZ)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["xyz"] = h5py.ExternalLink("other.h5", "xyz")
    assert kind_of(tmp_path / "a.h5") == "outside_reference"
    (tmp_path / "raw").write_bytes(XYZ.tobytes())
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset(
            "xyz", shape=XYZ.shape, dtype="f4", external=[(str(tmp_path / "raw"), 0, XYZ.nbytes)]
        )
    assert kind_of(tmp_path / "b.h5") == "outside_reference"
    layout = h5py.VirtualLayout(shape=XYZ.shape, dtype="f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "xyz", shape=XYZ.shape)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_virtual_dataset("xyz", layout)
    assert kind_of(tmp_path / "c.h5") == "outside_reference"


def test_h5__message_names_what_was_found(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5", image=np.zeros((2, 2)), label=np.arange(9))
    with pytest.raises(MeshError, match=r"image \(2, 2\) float64, label \(9,\) int64") as error:
        read_points(path)
    assert error.value.kind == "no_points"


# -- colours -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 128, 255]], np.uint8), [0, 128, 255]),
        (np.array([[0, 1, 1]], np.uint8), [0, 1, 1]),  # integers are never 0-1
        (np.array([[0, 128, 255]], np.int64), [0, 128, 255]),
        (np.array([[0, 32896, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 128.0, 255.0]], np.float32), [0, 128, 255]),
        (np.array([[0.2, 1.0000001, 0.4]], np.float64), [51, 255, 102]),
        (np.array([[0.0, 128.4, 255.2, 9.0]], np.float64), [0, 128, 255]),  # alpha goes
    ],
)
def test_rgb_of__by_type_and_range(values: NDArray[Any], expected: list[int]) -> None:
    assert rgb_of(values).tolist() == [expected]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1, 5, 5]], np.int16),
        np.array([[256, 5, 5]], np.int64),
        np.array([[-0.5, 0.2, 1.0]]),
        np.array([[0.0, 300.0, 1.0]]),
        np.array([[np.nan, 0.3, 1.0]]),
        np.array([[np.inf, 0.3, 1.0]]),
    ],
)
def test_rgb_of__what_is_no_colour_is_refused(values: NDArray[Any]) -> None:
    with pytest.raises(MeshError, match="0-1 or 0-255") as error:
        rgb_of(values)
    assert error.value.kind == "bad_color"


def test_bad_colours_of_a_named_array_are_a_failure(tmp_path: Path) -> None:
    assert kind_of(npz(tmp_path, xyz=XYZ, rgb=XYZ * 1000)) == "bad_color"


# -- frame ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", sorted(UP_AXES))
def test_cloud_asset__up_axis_turns_as_a_mesh_is_turned(axis: str) -> None:
    turn = np.array(UP_AXES[axis])
    asset = cloud_asset(RawPoints(XYZ, RGB, NORMALS, "0" * 64, 9), axis)
    assert asset.cloud is not None
    np.testing.assert_allclose(asset.cloud.xyz, normalised(XYZ @ turn.T), atol=1e-6)
    assert asset.cloud.rgb is not None
    np.testing.assert_array_equal(asset.cloud.rgb, RGB)
    assert asset.mesh.normals is not None
    normals = asset.mesh.normals.reshape(len(XYZ), -1, 3)[:, 0]
    np.testing.assert_allclose(normals, NORMALS @ turn.T, atol=1e-6)


def test_cloud_asset__a_point_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    broken = XYZ.copy()
    broken[3, 1] = np.nan
    np.save(path, broken)
    with pytest.raises(MeshError) as error:
        cloud_asset(read_points(path), "+z")
    assert error.value.kind == "not_finite"
