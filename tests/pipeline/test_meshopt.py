"""The meshopt decoder against an encoder written apart from it and against reference streams."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.meshes.meshopt import decode_view
from pipeline.scene import MeshError
from tests.pipeline.gltf_encoders import meshopt_attributes, meshopt_indices, meshopt_triangles

# Made from the arrays of ``grid`` with meshoptimizer's own encoders.
REFERENCE: dict[int | str, str] = {
    0: (
        "a007002f2f2f2fc02f2f2f2fc02f2f2f2fc0ffffc0002f2f2f2fc02f2f2f2f0a06888f6888f6888f"
        "1d1d1d6888f688800000001d0500300c032f2f2f00c000002f0500300c0306080800c00000080700"
        "c8581787b8c8581787d7c858178767ffffc000c858178708c85817870a00246d2244d0426f0f0444"
        "f2246000000011000000000000000000000000000000000000000000000000000000000000000000"
        "00"
    ),
    1: (
        "a157a7002f2f2f2fc02f2f2f2fc02f2f2f2fc02f2f2f2fc02f2f2f2f0a06888f6888f6888f1d1d1d"
        "6888f688800000001d0020842f2f2f10002f00208406080810000800c8581787b8c8581787d7c858"
        "178767c858178708c85817870a00246d2244d0426f0f0444f2246000000011000000000000000000"
        "000000000000000000000000000000"
    ),
    "TRIANGLES": (
        "e1fe1e100e100e100ece1e160e150e140ece1e140e140e140ece1e140e140e140e0f0a0076875667"
        "78a9866589689801690000"
    ),
    "INDICES": (
        "d10004100e14020e04100e14020e04100e14020e04100e14020a04100e14020e04100e14020e0410"
        "0e14020e04100e14020a04100e14020e04100e14020e04100e14020e04100e14020a04100e14020e"
        "04100e14020e04100e14020e04100e140200000000"
    ),
}


def grid() -> tuple[NDArray[np.int16], NDArray[np.uint32]]:
    """Positions (25, 4) int16 and faces (32, 3) of a sheet of 4 x 4 squares, row by row."""
    i = np.arange(25).reshape(5, 5)
    upper = np.stack([i[:-1, :-1], i[:-1, 1:], i[1:, :-1]], -1)
    lower = np.stack([i[:-1, 1:], i[1:, 1:], i[1:, :-1]], -1)
    faces = np.stack([upper, lower], 2).reshape(-1, 3).astype(np.uint32)
    y, x = np.mgrid[:5, :5]
    points = np.stack([x * 1000, y * 1000, (x * x - y * y) * 100, 0 * x], -1).reshape(-1, 4)
    return points.astype("<i2"), faces


@pytest.mark.parametrize("version", [0, 1])
def test_reference__attributes(version: int) -> None:
    points, _ = grid()
    data = bytes.fromhex(REFERENCE[version])
    assert decode_view(data, "ATTRIBUTES", "NONE", 25, 8) == points.tobytes()


def test_reference__indices() -> None:
    _, faces = grid()
    data = bytes.fromhex(REFERENCE["INDICES"])
    assert decode_view(data, "INDICES", "NONE", 96, 4) == faces.tobytes()


def test_reference__triangles() -> None:
    _, faces = grid()
    data = bytes.fromhex(REFERENCE["TRIANGLES"])
    seen = np.frombuffer(decode_view(data, "TRIANGLES", "NONE", 96, 2), "<u2").reshape(-1, 3)
    first = seen.argmin(1)[:, None]  # the encoder may turn the corners of a face
    turned = np.take_along_axis(seen, (first + np.arange(3)) % 3, 1)
    assert (turned == faces).all()


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("kind", ["noise", "smooth", "zero"])
def test_attributes__every_freedom_of_the_format(version: int, kind: str) -> None:
    rng = np.random.default_rng(len(kind) + version)
    for count, stride in [
        (0, 4),
        (1, 4),
        (16, 8),
        (17, 12),
        (255, 4),
        (257, 4),
        (70, 256),
        (9, 64),
    ]:
        rows = {
            "noise": rng.integers(0, 256, (count, stride)),
            "smooth": np.cumsum(rng.integers(-2, 3, (count, stride)), 0),
            "zero": np.zeros((count, stride)),
        }[kind].astype(np.uint8)
        data = meshopt_attributes(rows, version, rng)
        assert decode_view(data, "ATTRIBUTES", "NONE", count, stride) == rows.tobytes()


@pytest.mark.parametrize("trial", range(12))
def test_faces__every_code(trial: int) -> None:
    rng = np.random.default_rng(trial)
    i = np.arange(120).reshape(8, 15)
    upper = np.stack([i[:-1, :-1], i[:-1, 1:], i[1:, :-1]], -1).reshape(-1, 3)
    lower = np.stack([i[:-1, 1:], i[1:, 1:], i[1:, :-1]], -1).reshape(-1, 3)
    faces = np.concatenate([upper, lower])
    if trial % 3 == 0:
        faces = faces[np.argsort(faces.min(1), kind="stable")]
    elif trial % 3 == 1:
        faces = faces[np.argsort(np.arange(len(faces)) + rng.normal(0, 5, len(faces)))]
    else:
        faces = rng.integers(0, 70_000, (60, 3))
    data, expected = meshopt_triangles(faces)
    assert decode_view(data, "TRIANGLES", "NONE", faces.size, 4) == expected.tobytes()
    sequence = meshopt_indices(faces, rng)
    expected = faces.astype("<u4")
    assert decode_view(sequence, "INDICES", "NONE", faces.size, 4) == expected.tobytes()
    wrapped = faces.astype("<u2")  # 16 bits are cut off, as the format has it
    assert decode_view(sequence, "INDICES", "NONE", faces.size, 2) == wrapped.tobytes()


def test_faces__zero_mark_starts_the_count_of_new_vertices_again() -> None:
    # 0xf0: 0 1 2; 0xfe with mark 0: once more 0 1 2.
    data = b"\xe1" + b"\xf0\xfe" + b"\x00" + b"\0" * 16
    seen = np.frombuffer(decode_view(data, "TRIANGLES", "NONE", 6, 4), "<u4")
    assert seen.tolist() == [0, 1, 2, 0, 1, 2]


def filtered(values: NDArray[np.generic], name: str) -> bytes:
    rows = values.reshape(len(values), -1)
    stride = rows.shape[1] * rows.itemsize
    data = meshopt_attributes(rows, 0, np.random.default_rng(1))
    return decode_view(data, "ATTRIBUTES", name, len(rows), stride)


@pytest.mark.parametrize(("dtype", "bits"), [("<i1", 8), ("<i2", 16), ("<i2", 10), ("<i1", 5)])
def test_filter__octahedral_gives_back_the_directions(dtype: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    directions = rng.normal(size=(300, 3))
    directions[:6] = [*np.eye(3), *-np.eye(3)]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    # Encoding after Meyer et al. 2010: project onto the octahedron, fold the lower half out.
    flat = directions / np.abs(directions).sum(1, keepdims=True)
    fold = flat[:, 2] < 0
    sign = np.where(flat[:, :2] < 0, -1, 1)
    folded = np.where(fold[:, None], (1 - np.abs(flat[:, 1::-1])) * sign, flat[:, :2])
    one = (1 << (bits - 1)) - 1
    codes = np.zeros((300, 4), dtype)
    codes[:, :2], codes[:, 2] = np.rint(folded * one), one
    codes[:, 3] = np.arange(300) % 100
    out = np.frombuffer(filtered(codes, "OCTAHEDRAL"), dtype).reshape(-1, 4)
    assert (out[:, 3] == codes[:, 3]).all()
    seen = out[:, :3] / np.iinfo(dtype).max
    worst = np.arccos(np.clip((seen * directions).sum(1) / np.linalg.norm(seen, axis=1), -1, 1))
    assert worst.max() < 3 / one + 2 / np.iinfo(dtype).max
    assert np.abs(np.linalg.norm(seen, axis=1) - 1).max() < 2 / np.iinfo(dtype).max


def test_filter__quaternion_gives_back_the_rotations() -> None:
    rng = np.random.default_rng(5)
    rotations = rng.normal(size=(200, 4))
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    largest = np.abs(rotations).argmax(1)
    rows = np.arange(200)
    rotations *= np.sign(rotations[rows, largest])[:, None]
    one = (1 << 11) - 1
    codes = np.zeros((200, 4), "<i2")
    for k in range(3):
        codes[:, k] = np.rint(rotations[rows, (largest + 1 + k) % 4] * np.sqrt(2) * one)
    codes[:, 3] = (one & ~3) | largest
    out = np.frombuffer(filtered(codes, "QUATERNION"), "<i2").reshape(-1, 4) / 32767
    assert np.abs(out - rotations).max() < 2e-3


def test_filter__exponential_is_exact() -> None:
    mantissas = np.array([[1, -1, 3], [0, 8388607, -8388608]])
    exponents = np.array([[0, 4, -2], [9, -100, 100]])
    codes = (exponents.astype("<i4") << 24) | (mantissas.astype("<i4") & 0xFFFFFF)
    out = np.frombuffer(filtered(codes.astype("<i4"), "EXPONENTIAL"), "<f4").reshape(2, 3)
    assert (out == (mantissas * 2.0**exponents).astype(np.float32)).all()


@pytest.mark.parametrize(("dtype", "bits"), [("<u1", 8), ("<u1", 6), ("<u2", 16), ("<u2", 12)])
def test_filter__color_gives_back_the_colours(dtype: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    top = (1 << bits) - 1
    half = top // 2  # of luma: differences then fit without overflow
    rgba = rng.integers(half // 2, half, (100, 4))
    red, green, blue, _ = rgba.T
    # R = Y + Co - Cg, G = Y + Cg, B = Y - Co - Cg: made even, so that it can be inverted exactly.
    red = red + (red + blue) % 2
    middle = (red + blue) // 2
    green = green + (green + middle) % 2
    luma, orange, tint = (middle + green) // 2, (red - blue) // 2, (green - middle) // 2
    alpha = rng.integers(0, 1 << (bits - 1), 100)
    codes = np.stack([luma, orange, tint, alpha | 1 << (bits - 1)], 1).astype("<i4")
    out = np.frombuffer(filtered(codes.astype(dtype), "COLOR"), dtype).reshape(-1, 4)
    full = np.iinfo(dtype).max
    expected = np.stack([red, green, blue, alpha * 2 | alpha & 1], 1) * (full / top)
    assert np.abs(out - expected).max() <= 1


@pytest.mark.parametrize(
    ("mode", "filter_name", "count", "stride"),
    [
        ("ATTRIBUTES", "NONE", 4, 6),
        ("ATTRIBUTES", "NONE", 4, 260),
        ("ATTRIBUTES", "NONE", 4, 0),
        ("ATTRIBUTES", "OCTAHEDRAL", 4, 12),
        ("ATTRIBUTES", "QUATERNION", 4, 4),
        ("ATTRIBUTES", "SEPIA", 4, 4),
        ("ATTRIBUTES", None, 4, 4),
        ("TRIANGLES", "NONE", 4, 4),
        ("TRIANGLES", "NONE", 3, 8),
        ("TRIANGLES", "COLOR", 3, 4),
        ("INDICES", "NONE", 3, 1),
        ("STRIPS", "NONE", 3, 4),
        (None, "NONE", 3, 4),
        ([], "NONE", 3, 4),
    ],
)
def test_settings__what_the_extension_forbids_is_a_bad_header(
    mode: object, filter_name: object, count: int, stride: int
) -> None:
    with pytest.raises(MeshError) as error:
        decode_view(b"\xa0" + b"\0" * 300, mode, filter_name, count, stride)
    assert error.value.kind == "bad_header"


def test_damage__cut_lengthened_or_changed_streams_never_crash_or_hang() -> None:
    rng = np.random.default_rng(11)
    points, faces = grid()
    streams = [
        ("ATTRIBUTES", 25, 8, meshopt_attributes(points, 0, rng)),
        ("ATTRIBUTES", 25, 8, meshopt_attributes(points, 1, rng)),
        ("TRIANGLES", 96, 4, meshopt_triangles(faces)[0]),
        ("INDICES", 96, 2, meshopt_indices(faces, rng)),
    ]
    for mode, count, stride, data in streams:
        for cut in range(len(data)):
            with pytest.raises(MeshError) as error:
                decode_view(data[:cut], mode, "NONE", count, stride)
            assert error.value.kind == "undecoded"
        with pytest.raises(MeshError):
            decode_view(data + b"\0", mode, "NONE", count, stride)
        outcomes = set()
        for _ in range(300):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 1 + int(rng.integers(4))):
                broken[place] = int(rng.integers(256))
            try:
                out = decode_view(bytes(broken), mode, "NONE", count, stride)
                assert len(out) == count * stride
                outcomes.add("decoded")
            except MeshError as failure:
                outcomes.add(failure.kind)
        assert outcomes <= {"decoded", "undecoded"}


@pytest.mark.parametrize("name", ["OCTAHEDRAL", "QUATERNION", "EXPONENTIAL", "COLOR"])
def test_damage__filters_of_noise_give_numbers_without_a_warning(name: str) -> None:
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 256, (500, 8)).astype(np.uint8)
    noise[:50] = 0
    assert len(filtered(noise, name)) == 4000


def test_faces__reading_what_was_never_written_is_damage() -> None:
    for codes in (b"\x00", b"\x50", b"\xf1"):  # an edge, an old edge, a vertex of an empty list
        table = bytes([0, 0x22, *[0] * 14])
        with pytest.raises(MeshError):
            decode_view(b"\xe1" + codes + table, "TRIANGLES", "NONE", 3, 4)
    endless = b"\xd1" + b"\xff" * 40 + struct.pack("<I", 0)
    with pytest.raises(MeshError):
        decode_view(endless, "INDICES", "NONE", 3, 4)
