"""Damaged, foreign and half-written files: told by name, never read as wrong data."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalog import clean_temporaries
from pipeline.common import InputError
from pipeline.shards import (
    CONTRACT_VERSION,
    Failure,
    ImageSet,
    Manifest,
    ShardSet,
    create_or_open,
    write_failures,
    write_part,
)
from pipeline.shards.schema import CONFIG_KEY, VERSION_KEY, encode_rows, row_schema
from pipeline.shards.storage import Storage
from tests.pipeline.set_tools import sound_manifest, sound_row, write_set
from tests.pipeline.shard_tools import make_manifest, make_row, make_set

Snapshot = list[list[Any]]


def snapshot(root: Path) -> Snapshot:
    """Everything that reading the set gives, comparable with ``==``."""
    return [
        [value.tobytes() if isinstance(value, np.ndarray) else value for value in vars(b).values()]
        for b in ShardSet.open(root).batches()
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Snapshot]:
    """One part of 100 rows of 500 points (460 kB) in two row groups, and what reading it gives."""
    root = tmp_path_factory.mktemp("damage")
    manifest = make_manifest(n_points=500, n_views=2, width=16)
    rows = [make_row(manifest, f"toy/{i}", n_texts=i % 4 % 3) for i in range(100)]
    (name,) = make_set(root, manifest, [rows])
    return root / name, snapshot(root)


def outcome(part: Path, data: bytes, good: Snapshot) -> str:
    """Read the set with ``data`` in place of the part: "same", "other rows" or the error."""
    before = part.read_bytes()
    part.write_bytes(data)
    try:
        return "same" if snapshot(part.parent) == good else "other rows"
    except InputError as error:
        message = str(error)
        assert message.startswith(f"{part}: ")
        assert "\n" not in message
        assert any(f"; {verb} " in message for verb in ("delete", "upgrade", "move", "remove"))
        return "error"
    finally:
        part.write_bytes(before)


def test_truncated__at_any_length_is_an_error(written: tuple[Path, Snapshot]) -> None:
    part, good = written
    data = part.read_bytes()
    lengths = [*range(16), *range(16, len(data), len(data) // 250), len(data) - 1]
    assert len(lengths) > 250
    for length in lengths:
        assert outcome(part, data[:length], good) == "error", length


def test_flipped__any_bit_is_an_error_or_harmless(written: tuple[Path, Snapshot]) -> None:
    part, good = written
    data = part.read_bytes()
    rng = np.random.default_rng(0)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    offsets = [
        *rng.integers(0, footer, 250).tolist(),
        *rng.integers(footer, len(data), 150).tolist(),
    ]
    found = []
    for offset in offsets:
        changed = bytearray(data)
        changed[offset] ^= 1 << int(rng.integers(8))
        found.append(outcome(part, bytes(changed), good))
    assert found.count("other rows") == 0
    # A few bytes are nobody's: statistics of page headers, the first magic number.
    assert found.count("error") > 0.95 * len(found)


def test_overwritten__a_run_of_zeros_is_an_error(written: tuple[Path, Snapshot]) -> None:
    part, good = written
    data = part.read_bytes()
    for offset in range(0, len(data), len(data) // 40):
        changed = data[:offset] + bytes(min(4096, len(data) - offset)) + data[offset + 4096 :]
        assert outcome(part, changed, good) == "error", offset


def test_extended__bytes_after_the_end_are_an_error(written: tuple[Path, Snapshot]) -> None:
    part, good = written
    assert outcome(part, part.read_bytes() + b"\x00" * 10, good) == "error"


def test_flipped__without_verification_the_caller_asked_for_speed(
    written: tuple[Path, Snapshot],
) -> None:
    part, _ = written
    before = part.read_bytes()
    column = (
        pq.read_metadata(part).row_group(0).column(row_schema(make_manifest()).names.index("rgb"))
    )
    changed = bytearray(before)
    changed[column.data_page_offset + column.total_compressed_size - 1000] ^= 1
    part.write_bytes(changed)
    try:
        fast = ShardSet.open(part.parent, verify=False)
        assert len(fast.read(fast.row_groups[0], ["rgb"])) == 64
        checked = ShardSet.open(part.parent)
        assert len(checked.read(checked.row_groups[0], ["xyz"])) == 64  # sound column
        with pytest.raises(InputError, match="damaged"):
            checked.read(checked.row_groups[0], ["xyz", "rgb"])
    finally:
        part.write_bytes(before)


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def altered(change: Callable[[pa.Table], pa.Table]) -> Callable[[Manifest], bytes]:
    def make(manifest: Manifest) -> bytes:
        table = encode_rows([make_row(manifest, "toy/1")], manifest)
        return parquet(change(table))

    return make


def with_metadata(**changes: bytes) -> Callable[[pa.Table], pa.Table]:
    keys = {"version": VERSION_KEY, "config": CONFIG_KEY}

    def change(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata(
            {**table.schema.metadata, **{keys[name]: value for name, value in changes.items()}}
        )

    return change


def with_column(name: str, values: list[Any], kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        field = pa.field(name, kind, nullable=False)
        return table.set_column(index, field, pa.array(values, kind))

    return change


def renamed(table: pa.Table, old: str, new: str) -> pa.Table:
    index = table.schema.get_field_index(old)
    return table.set_column(index, table.schema.field(old).with_name(new), table.column(old))


ALIEN: dict[str, tuple[str, bytes | Callable[[Manifest], bytes]]] = {
    "empty": ("truncated, damaged or not Parquet", b""),
    "text": ("truncated, damaged or not Parquet", b"uid,category\n1,mug\n" * 50),
    "magic only": ("truncated, damaged or not Parquet", b"PAR1PAR1"),
    "huge footer": ("damaged", b"PAR1" + b"\xff" * 20 + b"\xff\xff\xff\x7fPAR1"),
    "zeros": ("truncated, damaged or not Parquet", bytes(5000)),
    "png": ("truncated, damaged or not Parquet", b"\x89PNG\r\n\x1a\n" + bytes(500)),
    "foreign": ("not a part of a shard set", parquet(pa.table({"a": [1, 2]}))),
    "other set": (
        "another shard set",
        lambda m: parquet(encode_rows([make_row(m, "toy/1")], make_manifest(sampling_seed=8))),
    ),
    "newer": ("upgrade mrd3d", altered(with_metadata(version=str(CONTRACT_VERSION + 1).encode()))),
    "version word": ("upgrade mrd3d", altered(with_metadata(version=b"\xffnew"))),
    "wrong config": ("another shard set", altered(with_metadata(config=b"0" * 16))),
    "column dropped": ("column rgb", altered(lambda t: t.drop_columns(["rgb"]))),
    "column added": ("columns are not", altered(lambda t: t.append_column("z", pa.array([1])))),
    "column renamed": (
        "column xyz",
        altered(lambda t: renamed(t, "xyz", "zyx")),
    ),
    "columns reordered": (
        "columns are not",
        altered(lambda t: t.select(list(reversed(t.schema.names)))),
    ),
    "n_faces float": ("column n_faces", altered(with_column("n_faces", [1.5], pa.float64()))),
    "xyz short": ("column xyz", altered(with_column("xyz", [b"x" * 6], pa.binary(6)))),
    "xyz binary": ("column xyz", altered(with_column("xyz", [b"x" * 48], pa.binary()))),
    "uid large": ("column uid", altered(with_column("uid", ["a"], pa.large_string()))),
    "text_embeds ragged": (
        "not a multiple of 4 float16",
        altered(with_column("text_embeds", [b"x" * 13], pa.binary())),
    ),
}


@pytest.mark.parametrize("case", ALIEN)
def test_alien_part__one_line_with_file_reason_and_remedy(case: str, tmp_path: Path) -> None:
    reason, make = ALIEN[case]
    manifest = make_manifest()
    make_set(tmp_path, manifest, [[make_row(manifest, "toy/good")]])
    path = tmp_path / "part-zzz.parquet"
    path.write_bytes(make if isinstance(make, bytes) else make(manifest))
    with pytest.raises(InputError) as caught:
        snapshot(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message
    assert any(f"; {verb} " in message for verb in ("delete", "upgrade", "move", "remove"))


def test_alien_part__text_that_is_not_utf8_is_damage(tmp_path: Path) -> None:
    manifest = make_manifest()
    create_or_open(tmp_path, manifest)
    table = encode_rows([make_row(manifest, "toy/1")], manifest)
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], "<i4")), pa.py_buffer(b"\xff\xfe")]
    )
    index = table.schema.get_field_index("sha256")
    uid = table.schema.get_field_index("uid")
    for name, at in (("sha256", index), ("uid", uid)):
        changed = table.set_column(at, table.schema.field(at), bad)
        (tmp_path / f"part-{name}.parquet").write_bytes(parquet(changed))
    with pytest.raises(InputError, match=r"part-uid\.parquet: truncated, damaged"):
        list(ShardSet.open(tmp_path).batches(["uid"]))


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EMFILE, "Too many open files); raise the limit of open files"),
        (errno.EACCES, "Permission denied); check the permissions"),
        (errno.EIO, "Input/output error); check the disk or the network"),
    ],
)
@pytest.mark.parametrize("images", [False, True])
def test_read__what_the_machine_fails_at_is_no_damage_of_the_file(
    number: int, told: str, images: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = sound_manifest(kept_images="webp-90")
    write_set(tmp_path, manifest, [[sound_row(manifest, "toy/1")]])
    shards = ShardSet.open(tmp_path)
    if images:
        _ = shards.row_groups

    def fails(self: Storage, name: str) -> pa.NativeFile:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Storage, "open", fails)
    with pytest.raises(InputError, match=r"(part|images)-toy-1.*: cannot be read") as caught:
        ImageSet(shards).read(shards.row_groups[0]) if images else shards.uids()
    assert told in str(caught.value)
    assert "delete" not in str(caught.value)


def test_alien_part__a_folder_of_that_name_is_not_a_part(tmp_path: Path) -> None:
    manifest = make_manifest()
    make_set(tmp_path, manifest, [[make_row(manifest, "toy/1")]])
    (tmp_path / "part-folder.parquet").mkdir()
    assert ShardSet.open(tmp_path).uids() == ["toy/1"]


@pytest.mark.parametrize("kind", ["empty", "text", "part", "foreign", "truncated", "flipped"])
def test_failures__damaged_or_foreign_file_is_told(kind: str, tmp_path: Path) -> None:
    manifest = make_manifest()
    (part,) = make_set(tmp_path, manifest, [[make_row(manifest, "toy/1")]])
    name = write_failures(tmp_path, [Failure(f"toy/{i}", "a", "b", "c", "d", "e") for i in "xyz"])
    path = tmp_path / name
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[pq.read_metadata(path).row_group(0).column(0).data_page_offset + 40] ^= 4
    path.write_bytes(
        {
            "empty": b"",
            "text": b"nothing",
            "part": (tmp_path / part).read_bytes(),
            "foreign": parquet(pa.table({"uid": ["a"]})),
            "truncated": good[: len(good) // 2],
            "flipped": bytes(flipped),
        }[kind]
    )
    with pytest.raises(InputError) as caught:
        ShardSet.open(tmp_path).failures()
    assert str(caught.value).startswith(f"{path}: ")
    assert "delete this file" in str(caught.value)


@pytest.mark.parametrize("stage", ["write_bytes", "fsync", "replace"])
def test_write__a_failure_at_any_stage_leaves_nothing(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest()
    create_or_open(tmp_path, manifest)

    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        return full()

    with monkeypatch.context() as patch:
        if stage == "write_bytes":
            patch.setattr(Path, "write_bytes", half)
        elif stage == "fsync":
            patch.setattr("pipeline.common.os.fsync", full)
        else:
            patch.setattr(Path, "replace", full)
        with pytest.raises(
            InputError, match=r"cannot be written \(No space left on device\); make"
        ):
            write_part(tmp_path, manifest, [make_row(manifest, "toy/1")])
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert len(ShardSet.open(tmp_path)) == 0


WRITER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from pipeline.shards import write_part
from tests.pipeline.shard_tools import make_manifest, make_row

def hang(*arguments):
    print("ready", flush=True)
    time.sleep(60)

def half(path, data):
    with path.open("wb") as stream:
        stream.write(data[: len(data) // 2])
    hang()

root, stage = sys.argv[1:]
if stage == "half":
    Path.write_bytes = half
elif stage == "replace":
    Path.replace = hang
manifest = make_manifest(n_points=2000, n_views=4, width=64)
rows = [make_row(manifest, f"toy/{i}") for i in range(40)]
for copy in range(1_000_000):
    write_part(root, manifest, [replace(row, uid=f"{row.uid}/{copy}") for row in rows])
    print("ready", flush=True)
"""


def kill_writer(root: Path, stage: str, delay_s: float) -> None:
    """Start a process that writes parts, and SIGKILL it ``delay_s`` after its first sign."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root), stage],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay_s)
        finally:
            process.kill()


@pytest.mark.parametrize("stage", ["half", "replace"])
def test_write__sigkill_before_the_rename_leaves_a_temporary_file_alone(
    stage: str, tmp_path: Path
) -> None:
    create_or_open(tmp_path, make_manifest(n_points=2000, n_views=4, width=64))
    kill_writer(tmp_path, stage, 0.0)
    (left,) = {path.name for path in tmp_path.iterdir()} - {"manifest.json"}
    assert left.startswith(".tmp-")
    assert len(ShardSet.open(tmp_path)) == 0
    assert clean_temporaries(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_write__sigkill_in_a_write_loop_leaves_only_whole_files(tmp_path: Path) -> None:
    manifest = make_manifest(n_points=2000, n_views=4, width=64)
    create_or_open(tmp_path, manifest)
    shards = ShardSet.open(tmp_path)
    for delay_s in (0.05, 0.113, 0.171, 1.0, 4.0, 16.0):
        if delay_s >= 1 and len(shards.parts) > 1:
            break  # the longer ones are for a machine with much other work
        kill_writer(tmp_path, "none", delay_s)
        shards = ShardSet.open(tmp_path)
        for batch in shards.batches(["rgb"]):
            assert batch.rgb is not None
            for at, uid in enumerate(batch.uid):
                twin = make_row(manifest, uid.rsplit("/", 1)[0])
                np.testing.assert_array_equal(batch.rgb[at], twin.rgb)
        names = {path.name for path in tmp_path.iterdir()} - {"manifest.json", *shards.parts}
        assert all(name.startswith(".tmp-") for name in names)
        assert clean_temporaries(tmp_path) == len(names)
    # Every round began with the same rows: they have the same names and are there once.
    assert len(shards.parts) > 1
    assert len(set(shards.uids())) == len(shards)
