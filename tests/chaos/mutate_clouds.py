"""Hostile point-cloud files: npy, npz, HDF5, text tables and PLY without faces."""

from __future__ import annotations

import io
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos.mutate import (
    Case,
    Content,
    Files,
    World,
    byte_mutations,
    fixed,
    placed,
    word_mutations,
)
from tests.pipeline.cloud_files import colors_of, ply_bytes, points_of, text_bytes, unit_of

XYZ, RGB, NORMALS = points_of(), colors_of(), unit_of()


def npy(values: Any, **options: Any) -> bytes:
    """The bytes of an npy file."""
    stream = io.BytesIO()
    np.save(stream, values, **options)
    return stream.getvalue()


def npy_saying(shape: str, dtype: str = "'<f4'", fortran: str = "False", body: int = 720) -> bytes:
    """An npy file with a header as given, and ``body`` bytes of data."""
    text = f"{{'descr': {dtype}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    head = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text))
    return head + text.encode() + b"\x3f" * body


class Runs:
    """What makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        import os

        return os.system, (f"touch {self.path}",)


_SHAPES = (
    "(60, 3)", "(60, 300000000)", "(4000000000, 3)", "(9223372036854775807, 3)", "(-60, 3)",
    "(60, -3)", "(60.0, 3)", "(True, 3)", "(0, 3)", "(60, 0)", "(180,)", "()", "(1, 60, 3)",
    "(60, 1, 3)", "(1000000000, 60, 3)", "(1,) * 10**9", "[60, 3]", "60", "(60, 3, 1, 1)",
    "(10**400, 3)", "((60, 3), 3)", "'60'", "None", "(" * 3000, "__import__('os')", "(60, 3",
)  # fmt: skip
_DTYPES = (
    "'<f8'", "'>f4'", "'<f2'", "'<c8'", "'|O'", "'|S12'", "'<U9999999'", "'|V12'", "'<i8'",
    "'|b1'", "'<M8[s]'", "'<f16'", "[('x','<f4'),('y','<f4'),('z','<f4')]", "'nonsense'", "None",
    "('<f4', (10**9,))", "[('a', '|O')]", "'<f4' * 10**8", "'|V0'", "'|S0'",
)  # fmt: skip


def _npy_cases() -> Iterator[Case]:
    for number, shape in enumerate(_SHAPES):
        for fortran in ("False", "True") if number < 6 else ("False",):
            data = npy_saying(shape, fortran=fortran)
            yield fixed(f"npy/shape {number} {fortran}", "cloud", "a.npy", data)
    for number, dtype in enumerate(_DTYPES):
        yield fixed(f"npy/dtype {number}", "cloud", "a.npy", npy_saying("(60, 3)", dtype))
    for told, data in byte_mutations(npy(XYZ), "npy", 28):
        yield fixed(f"npy/{told}", "cloud", "a.npy", data or b"\x93")
    values = {
        "nan": np.full((60, 3), np.nan),
        "inf": np.full((60, 3), np.inf),
        "1e308": XYZ.astype(np.float64) * 1e307,
        "1e-320": XYZ.astype(np.float64) * 1e-320,
        "one point": np.ones((60, 3)),
        "15 points": XYZ[:15],
        "2^63 integers": np.full((60, 3), 2**63 - 1) - np.arange(60)[:, None],
        "2^64 integers": np.uint64(2**64 - 1) - np.arange(180, dtype=np.uint64).reshape(60, 3),
        "64 columns": np.tile(XYZ, (1, 21)),
        "colours of nan": np.concatenate([XYZ, np.full((60, 3), np.nan)], 1),
        "colours of 1e30": np.concatenate([XYZ, np.full((60, 3), 1e30)], 1),
        "booleans": np.ones((60, 3), bool),
        "complex": XYZ.astype(complex),
        "text": np.array([["a", "b", "c"]] * 60),
    }  # fmt: skip
    for told, value in values.items():
        yield fixed(f"npy/values {told}", "cloud", "a.npy", npy(value))
    for version in ((1, 0), (3, 0), (9, 9)):
        other = npy(XYZ)[:6] + bytes(version) + npy(XYZ)[8:]
        yield fixed(f"npy/version {version}", "cloud", "a.npy", other)
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)
    yield fixed("npy/header of 4 GB", "cloud", "a.npy", header + b" " * 1000)
    yield fixed(
        "npy/header of 20 MB", "cloud", "a.npy",
        lambda: header[:8] + struct.pack("<I", 2 * 10**7) + b"[" * (2 * 10**7),
    )  # fmt: skip

    def pickled(world: World) -> Files:
        # np.save writes an object array as a pickle, which runs when it is loaded as one.
        return {"a.npy": npy(np.array(Runs(f"{world.outside}/ran"), object), allow_pickle=True)}

    yield Case("npy/a pickle that runs", "cloud", pickled)
    yield Case(
        "npy/a pickle under the name",
        "cloud",
        lambda w: {"a.npy": pickle.dumps(Runs(f"{w.outside}/ran"))},
    )


def npz(members: dict[str, bytes], compressed: bool = True) -> bytes:
    """The bytes of a zip archive."""
    stream = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, how)  # of a fixed date
    return stream.getvalue()


def _npz_cases() -> Iterator[Case]:
    good = {"xyz.npy": npy(XYZ), "rgb.npy": npy(RGB), "normals.npy": npy(NORMALS)}

    def big() -> bytes:
        return npy_saying("(20000000, 3)", body=0) + b"\0" * 240_000_000

    archives: dict[str, Callable[[], bytes]] = {
        "bomb of 240 MB": lambda: npz({"xyz.npy": big()}),
        "bomb beside the points": lambda: npz({**good, "junk.npy": big()}),
        "colours that are a bomb": lambda: npz({"xyz.npy": npy(XYZ), "rgb.npy": big()}),
        "member that claims 10^12": lambda: npz({"xyz.npy": npy_saying("(1000000000000, 3)")}),
        "5,000 members": lambda: npz({f"a{i}.npy": npy(XYZ[:2]) for i in range(5000)}),
        "member twice": lambda: npz(good) + b"",
        "names that lead out": lambda: npz({"../../xyz.npy": npy(XYZ), "/etc/xyz.npy": npy(XYZ)}),
        "a name of 60,000 signs": lambda: npz({"x" * 60_000 + ".npy": npy(XYZ)}),
        "no arrays": lambda: npz({"readme.txt": b"hello"}),
        "nothing": lambda: npz({}),
        "colours of another number": lambda: npz({"xyz.npy": npy(XYZ), "rgb.npy": npy(RGB[:7])}),
        "pickled colours": lambda: npz({"xyz.npy": npy(XYZ), "rgb.npy": npy_saying("()", "'|O'")}),
        "npz in npz": lambda: npz({"xyz.npz": npz(good)}),
        "encrypted": lambda: _flagged(npz(good), 1),
        "of an unknown method": lambda: _method(npz(good), 99),
        "of 2^32 claimed bytes": lambda: _claimed(npz(good), 2**32 - 2),
        "of 0 claimed bytes": lambda: _claimed(npz(good), 0),
        "before garbage": lambda: npz(good) + b"\0" * 70_000,
        "after garbage": lambda: b"\0" * 70_000 + npz(good),
    }
    for told, make in archives.items():
        yield fixed(f"npz/{told}", "cloud", "a.npz", make)
    for compressed in (False, True):
        whole = npz(good, compressed)
        for told, data in byte_mutations(whole, f"npz {compressed}", 21):
            yield fixed(f"npz/{compressed} {told}", "cloud", "a.npz", data or b"P")
        tail = len(whole) - 300  # the directory is at the end
        for told, data in byte_mutations(whole[tail:], f"npz end {compressed}", 14):
            yield fixed(f"npz/{compressed} end {told}", "cloud", "a.npz", whole[:tail] + data)


def _patched(data: bytes, local: int, central: int, form: str, value: int) -> bytes:
    out = bytearray(data)
    for magic, place in ((b"PK\3\4", local), (b"PK\1\2", central)):
        at = out.find(magic)
        while at >= 0:
            struct.pack_into(form, out, at + place, value)
            at = out.find(magic, at + 4)
    return bytes(out)


def _flagged(data: bytes, flags: int) -> bytes:
    return _patched(data, 6, 8, "<H", flags)


def _method(data: bytes, method: int) -> bytes:
    return _patched(data, 8, 10, "<H", method)


def _claimed(data: bytes, size: int) -> bytes:
    return _patched(data, 22, 24, "<I", size)


def h5(make: Callable[[Any], None], **options: Any) -> bytes:
    """The bytes of an HDF5 file that ``make`` fills."""
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        with h5py.File(path, "w", **options) as file:
            make(file)
        return path.read_bytes()


def _h5_cases() -> Iterator[Case]:
    import h5py

    def plain(file: Any) -> None:
        file["xyz"], file["rgb"] = XYZ, RGB

    def chunked(file: Any) -> None:
        file.create_dataset(
            "data", data=np.tile(XYZ, (40, 1, 1)), chunks=(8, 60, 3), compression="gzip"
        )
        file["label"] = np.arange(40)

    def outside(world: World, how: str) -> Files:
        secret = f"{world.outside}/secret.h5"

        def fill(file: Any) -> None:
            if how == "link":
                file["xyz"] = h5py.ExternalLink(secret, "/xyz")
            elif how == "storage":
                raw = [(f"{world.outside}/secret.bin", 0, h5py.h5f.UNLIMITED)]
                file.create_dataset("xyz", (60, 3), "<f4", external=raw)
            elif how == "virtual":
                layout = h5py.VirtualLayout((60, 3), "<f4")
                layout[:] = h5py.VirtualSource(secret, "xyz", (60, 3))
                file.create_virtual_dataset("xyz", layout)
            elif how == "link beside":
                file["xyz"] = XYZ
                file["rgb"] = h5py.ExternalLink(secret, "/rgb")
            else:
                file["xyz"] = h5py.SoftLink("/xyz")

        return {"a.h5": h5(fill)}

    for how in ("link", "storage", "virtual", "link beside", "soft link to itself"):
        yield placed(f"h5/{how}", "cloud", outside, how)

    def huge(file: Any) -> None:
        file.create_dataset("xyz", (10**12, 3), "<f4", chunks=(1000, 3), compression="gzip")

    def large_chunk(file: Any) -> None:
        file.create_dataset("xyz", (60, 3), "<f4", maxshape=(None, 3), chunks=(300_000_000, 3))

    def bomb(file: Any) -> None:
        data = np.zeros((3_000_000, 3), np.float32)
        file.create_dataset("xyz", data=data, chunks=(1_500_000, 3), compression="gzip")

    def objects(file: Any) -> None:
        file.create_dataset("xyz", data=["a", "b"], dtype=h5py.string_dtype())

    def ragged(file: Any) -> None:
        file.create_dataset("xyz", (60, 3), h5py.vlen_dtype(np.float32))

    def references(file: Any) -> None:
        file["a"] = XYZ
        file.create_dataset("xyz", (60, 3), h5py.ref_dtype)

    def groups(file: Any) -> None:
        group = file
        for _ in range(300):
            group = group.create_group("xyz")
        group["xyz"] = XYZ

    def many(file: Any) -> None:
        for number in range(2000):
            file[f"a{number}"] = number

    def empty(file: Any) -> None:
        file["xyz"] = h5py.Empty("f")

    def ring(file: Any) -> None:
        file["group"] = h5py.SoftLink("/")
        file.create_group("xyz")["up"] = file["/"]

    def enum(file: Any) -> None:
        kind = h5py.enum_dtype({"a": 0, "b": 1}, basetype="i1")
        file.create_dataset("xyz", (60, 3), kind)

    makers = (huge, large_chunk, bomb, objects, ragged, references, groups, many, empty, ring, enum)
    for make in makers:
        told = make.__name__.replace("_", " ")
        yield fixed(f"h5/{told}", "cloud", "a.h5", partial(h5, make))
    for make in (plain, chunked):
        whole = h5(make)
        for told, data in byte_mutations(whole, f"h5 {make.__name__}", 42):
            yield fixed(f"h5/{make.__name__} {told}", "cloud", "a.h5", data or b"\x89")
        for offset in range(96, 1500, 29):  # object headers and trees
            broken = bytearray(whole)
            broken[offset : offset + 4] = b"\xff\xff\xff\x7f"
            yield fixed(f"h5/{make.__name__} at {offset}", "cloud", "a.h5", bytes(broken))


def _text_cases() -> Iterator[Case]:
    rows = text_bytes(XYZ, RGB)
    for told, text in word_mutations(rows, "xyz", 40):
        yield fixed(f"text/{told}", "cloud", "a.xyz", text)
    named = text_bytes(XYZ, RGB, separator=",", head="x,y,z,red,green,blue\n")
    for told, text in word_mutations(named.replace(b",", b" , "), "csv", 24):
        yield fixed(f"text/csv {told}", "cloud", "a.csv", text)
    texts: dict[str, Content] = {
        "a line of 10 MB": lambda: b"1 " * 5 * 10**6 + b"\n" + rows,
        "a count of 10^12": b"1000000000000\n" + rows,
        "a count of 5,000 digits": b"9" * 5000 + b"\n" + rows,
        "million comments": b"# x\n" * 300_000 + rows,
        "65 columns": b"1 " * 65 + b"\n" + rows,
        "16,000,000 lines": lambda: b"\n" * 16_000_000,
        "names twice": b"x,y,z,x\n" + b"1,2,3,4\n" * 20,
        "names of nothing": b"x,y,z\n",
        "formula": b"x,y,z\n=cmd|' /C calc'!A0,1,2\n",
        "nul": b"1 2 3\0\n" * 20,
        "utf-16": rows.decode().encode("utf-16"),
        "ragged": b"1 2 3\n4 5\n" * 20,
        "hexadecimal": b"0x1p3 2 3\n" * 20,
        "semicolons and commas": b"1,0;2,0;3,0\n" * 20,
        "colours of -1": b"1 2 3 -1 0 0\n" * 20 + b"4 5 6 1 1 1\n",
        "gzip bomb": b"\x1f\x8b\x08" + b"\0" * 1000,
    }
    for told, content in texts.items():
        yield fixed(f"text/{told}", "cloud", "a.pts" if "count" in told else "a.txt", content)
    for form in ("ascii", "binary_little_endian"):
        whole = ply_bytes(XYZ, RGB, form=form)
        for told, data in byte_mutations(whole, f"cloud ply {form}", 21):
            yield fixed(f"cloud ply/{form} {told}", "cloud", "a.ply", data or b"p")
    for claim in (0, 59, 61, 15_000_000, 15_000_001, 2**40):
        data = ply_bytes(XYZ, RGB, claim=claim)
        yield fixed(f"cloud ply/claims {claim}", "cloud", "a.ply", data)


def cloud_cases() -> Iterator[Case]:
    """All of them; about 450."""
    yield from _npy_cases()
    yield from _npz_cases()
    yield from _h5_cases()
    yield from _text_cases()
