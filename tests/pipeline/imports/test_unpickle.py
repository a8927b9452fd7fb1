"""Pickles of plain values are read as numpy reads them; anything else is refused by name."""

from __future__ import annotations

import collections
import contextlib
import datetime
import io
import os
import pickle
import struct
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.imports.unpickle import BadPickleError, UnsafePickleError, load_npy, unpickle
from tests.pipeline.imports.release import make_object, npy

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | (st.text(max_size=8) | st.binary(max_size=8))
)
KEYS = st.text(max_size=5) | st.integers(-5, 5) | st.binary(max_size=3)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(st.integers(0, 9), max_size=3)
    ),
    max_leaves=12,
)
ARRAYS = hnp.arrays(
    st.sampled_from(["f2", "<f4", ">f4", "f8", "i1", ">i4", "u8", "b1", "c8", "S3", "<U2"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.sampled_from([2, 3, 4, 5]))
def test_unpickle__plain_values_are_equal_at_every_protocol(value: Any, protocol: int) -> None:
    assert unpickle(pickle.dumps(value, protocol)) == value


@settings(max_examples=100, deadline=None)
@given(ARRAYS, st.sampled_from([2, 3, 4, 5]), st.booleans())
def test_unpickle__arrays_are_equal_with_dtype_shape_and_order(
    array: np.ndarray[Any, Any], protocol: int, fortran: bool
) -> None:
    array = np.asfortranarray(array) if fortran else array
    got = unpickle(pickle.dumps([array, array], protocol))
    assert got[0] is got[1]
    assert got[0].dtype == array.dtype
    assert got[0].shape == array.shape
    assert got[0].tobytes() == array.tobytes()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_unpickle__numpy_scalars_object_arrays_and_shared_dtypes(protocol: int) -> None:
    value = {
        "s": np.float32(1.5),
        "o": np.array([{"a": 1}, "x", None, np.arange(3)], object),
        "zero": np.array({"b": np.float64(2)}, object),
        "twice": [np.ones(2, "f4"), np.zeros(3, "f4")],
        "od": collections.OrderedDict(a=1),
    }
    got = unpickle(pickle.dumps(value, protocol))
    assert got["s"] == np.float32(1.5)
    assert got["s"].dtype == np.float32
    assert got["o"].shape == (4,)
    assert got["o"][0] == {"a": 1}
    np.testing.assert_array_equal(got["o"][3], [0, 1, 2])
    assert got["zero"].item() == {"b": 2.0}
    assert [a.tolist() for a in got["twice"]] == [[1, 1], [0, 0, 0]]
    assert got["od"] == {"a": 1}


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_unpickle__names_of_numpy_1_and_2(core: bytes) -> None:
    data = pickle.dumps(np.arange(4, dtype="<i2"), 2)
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        data = data.replace(b"c" + name + b"\n", b"c" + core + b"\n")
    assert unpickle(data).tolist() == [0, 1, 2, 3]


def test_load_npy__as_numpy_reads_it() -> None:
    value = make_object("Objaverse/000-000/1")
    oracle = np.load(io.BytesIO(npy(value)), allow_pickle=True).item()
    got = load_npy(npy(value))
    assert got.keys() == oracle.keys()
    np.testing.assert_array_equal(got["xyz"], oracle["xyz"])
    np.testing.assert_array_equal(
        got["text_feat"][0]["prompt_avg"], oracle["text_feat"][0]["prompt_avg"]
    )
    assert got["retrieval_text"] == oracle["retrieval_text"]
    plain = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(load_npy(npy(plain)), plain)
    np.testing.assert_array_equal(load_npy(npy(np.asfortranarray(plain))), plain)


def test_load_npy__arrays_are_views_of_the_data() -> None:
    big = np.zeros(1 << 20)
    data = npy({"a": big, "b": [big, big]})
    tracemalloc.start()
    value = load_npy(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert not value["a"].flags.writeable


class Calls:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], tuple(self.call[1:])


UNSAFE: dict[str, tuple[Any, str]] = {
    "os": (Calls(os.system, "true"), f"{os.name}.system"),
    "eval": (Calls(eval, "1"), "builtins.eval"),
    "subprocess": (Calls(subprocess.run, ["true"]), "subprocess.run"),
    "datetime": (datetime.date(2020, 1, 1), "datetime.date"),
    "path": (Path("x"), "pathlib.PosixPath"),
    "complex": (1 + 2j, "builtins.complex"),
    "counter": (collections.Counter("ab"), "collections.Counter"),
    "nested": ([{"a": (1, Calls(os.remove, "/x"))}], f"{os.name}.remove"),
    "in object array": (np.array([Calls(os.system, "true")], object), f"{os.name}.system"),
    "numpy function": (Calls(np.zeros, 10), "numpy.zeros"),
    "numpy load": (Calls(np.load, "/etc/x.npy"), "numpy.load"),
    "dates": (np.zeros(2, "M8[s]"), "dtype M8"),
    "records": (np.zeros(2, [("a", "f4")]), "dtype V4"),
}


@pytest.mark.parametrize("case", UNSAFE)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_unpickle__anything_else_is_refused_by_name(case: str, protocol: int) -> None:
    value, name = UNSAFE[case]
    data = pickle.dumps(value, protocol)
    if protocol < 3:  # names of Python 2
        name = name.replace("builtins.", "__builtin__.").replace("subprocess.", "commands.")
    if case == "path":
        name = unpickle_error(data)  # the module's name differs between versions of Python
        assert name.endswith("PosixPath")
    assert unpickle_error(data) == name


def test_unpickle__calls_of_the_first_protocol_are_named_too() -> None:
    # numpy.save never wrote it, but the textbook attack is written in it.
    assert unpickle_error(b"cos\nsystem\n(S'true'\ntR.") == "os.system"
    assert unpickle_error(pickle.dumps([Calls(os.system, "true")], 0)) == f"{os.name}.system"
    assert unpickle_error(pickle.dumps("text", 0)) == "opcode UNICODE"


def unpickle_error(data: bytes) -> str:
    with pytest.raises(UnsafePickleError) as caught:
        unpickle(data)
    return caught.value.name


def test_load_npy__hostile_file_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    with pytest.raises(UnsafePickleError, match=r"\.system"):
        load_npy(npy({"xyz": Calls(os.system, f"touch {target}")}))
    assert not target.exists()


def test_load_npy__structured_and_foreign_dtypes_are_refused() -> None:
    with pytest.raises(UnsafePickleError, match="dtype"):
        load_npy(npy(np.zeros(2, [("a", object)])))
    with pytest.raises(UnsafePickleError, match="dtype datetime64"):
        load_npy(npy(np.zeros(2, "M8[s]")))


GLOBAL = {
    "reconstruct": b"cnumpy._core.multiarray\n_reconstruct\n",
    "ndarray": b"cnumpy\nndarray\n",
    "dtype": b"cnumpy\ndtype\n",
    "encode": b"c_codecs\nencode\n",
}
HUGE = struct.pack("<Q", 1 << 40)
F4 = (
    GLOBAL["dtype"]
    + b"X\x02\0\0\0f4\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
)
# Each says it is far larger than it is, or would grow far beyond what it holds.
BOMBS: dict[str, bytes] = {
    "claimed bytes": b"\x80\x04\x8e" + HUGE + b"abc.",
    "claimed text": b"\x80\x04\x8d" + HUGE + b"abc.",
    "claimed bytearray": b"\x80\x05\x96" + HUGE + b"abc.",
    "claimed int": b"\x8b\xff\xff\xff\x7f1.",
    "negative int": b"\x8b\xff\xff\xff\xff1.",
    "memo index": b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
    "ndarray called": GLOBAL["ndarray"] + b"\x8a\x06\0\0\0\0\0\x01\x85R.",
    "reconstruct with a shape": GLOBAL["reconstruct"]
    + GLOBAL["ndarray"]
    + b"\x8a\x06\0\0\0\0\0\x01\x85C\x01b\x87R.",
    "shape larger than data": GLOBAL["reconstruct"]
    + GLOBAL["ndarray"]
    + b"K\0\x85C\x01b\x87R(K\x01\x8a\x06\0\0\0\0\0\x01\x85"
    + F4
    + b"\x89C\x04abcdtb.",
    "shape of nothing": GLOBAL["reconstruct"]
    + GLOBAL["ndarray"]
    + b"K\0\x85C\x01b\x87R(K\x01K\0\x8a\x09\0\0\0\0\0\0\0\0\x01\x86"
    + F4
    + b"\x89C\0tb.",
    "text copied again and again": b"X\x00\x00\x08\x00"
    + b"a" * (8 << 16)
    + b"q\0"
    + (GLOBAL["encode"] + b"h\0X\x06\0\0\0latin1\x86R") * 300
    + b".",
    "hash of doubled tuples": b")" + b"2\x86" * 100 + b"}0N.",
    "tuple as key": b"})K\x01s.",
    "set of tuples": b"\x8f()\x90.",
    "steps": b"N0" * 200_001 + b"N.",
    "no stop": b"N",
    "empty": b"",
    "beyond a mark": b"N(0.",
    "append to none": b"NNa.",
    "state of none": b"NNb.",
    "odd items": b"}(Nu.",
    "call of none": b"N)R.",
    "name without end": b"cos" + b"x" * 300,
    "memo never made": b"h\x07.",
    "stack empty": b".",
}


@pytest.mark.parametrize("case", BOMBS)
def test_unpickle__bombs_and_broken_ones_end_soon_in_little_memory(case: str) -> None:
    data = BOMBS[case]
    tracemalloc.start()
    try:
        with pytest.raises((BadPickleError, UnsafePickleError)):
            unpickle(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (4 << 20) + 20 * len(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_load_npy__damaged_files_raise_nothing_else(data: st.DataObject) -> None:
    good = bytearray(npy(make_object("Objaverse/000-000/1")))
    if data.draw(st.booleans()):
        good = good[: data.draw(st.integers(0, len(good) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        if good:
            good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadPickleError, UnsafePickleError):
        load_npy(bytes(good))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_unpickle__random_bytes_raise_nothing_else(data: bytes) -> None:
    with contextlib.suppress(BadPickleError, UnsafePickleError):
        unpickle(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an .npy file"),
        (b"\x93NUMPY\x01\x00", "not an .npy file"),
        (b"\x93NUMPY\x03\x00" + npy(np.zeros(1))[8:], "version"),
        (pickle.dumps({}), "not an .npy file"),
        (npy(np.zeros(10))[:-1], "truncated: 79 of 80 bytes"),
        (npy({"a": 1})[:-3], "truncated"),
        (npy(np.array([1, 2], object))[:128] + pickle.dumps([1, 2]), "not the array"),
    ],
)
def test_load_npy__what_is_wrong_is_told(data: bytes, message: str) -> None:
    with pytest.raises(BadPickleError, match=message):
        load_npy(data)
