"""Hostile shards, manifests, embeddings, indexes and JSON: one line that says so, and no more.

Every refusal is an ``InputError`` of one line; nothing in a file is run, and nothing is handed to a
native reader that trusts what it reads before its hash was compared.
"""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from evaluation.benchmarks.labels import from_file as read_labels
from evaluation.embeddings import parse_record, read_embeddings, write_embeddings
from evaluation.index import build_index, load_index
from evaluation.report import read_curves
from evaluation.results import read_result
from evaluation.shapes import load_cloud
from pipeline.common import InputError, file_hash
from pipeline.datasets.downloads import DamagedError, read_gzip_json
from pipeline.imports.exported import read_manifest as read_exported
from pipeline.imports.layout import read_filtered, read_list
from pipeline.lock import _is_dead
from pipeline.shards import Manifest, ShardSet
from pipeline.shards.schema import encode_rows
from pipeline.shards.storage import Storage
from pipeline.teacher import load_teacher
from tests.chaos.mutate import byte_mutations, json_mutations
from tests.chaos.mutate_clouds import Runs, npy, npz
from tests.chaos.refusals import refusal, survived
from tests.evaluation.test_embeddings import META, rewrite, rows
from tests.evaluation.test_index import embeddings
from tests.pipeline.shard_tools import make_manifest, make_set
from tests.pipeline.shard_tools import make_row as make_shard_row
from trainer import checkpoint
from trainer.checkpoint import load_model, load_state
from trainer.recorder import read_metrics

# --- shards -----------------------------------------------------------------------------------


def read_all(root: Path) -> int:
    """Touch everything of a set that is read anywhere; the number of rows."""
    shards = ShardSet.open(root)
    count = 0
    for group in shards.row_groups:
        count += len(shards.read(group))
        shards.table(group)
    shards.failures()
    return count


def renamed(part: Path, data: bytes) -> Path:
    """Write a part under a name that agrees with its footer, as an attacker would."""
    from pipeline.common import content_hash

    length = int.from_bytes(data[-8:-4], "little") + 8 if len(data) >= 8 else 0
    stem = part.name.removesuffix(".parquet").rsplit("-", 1)[0]
    told = content_hash(data[-length:] if 0 < length <= len(data) else data)[:8]
    part.unlink()
    place = part.with_name(f"{stem}-{told}.parquet")
    place.write_bytes(data)
    return place


@pytest.fixture
def shard_set(tmp_path: Path) -> tuple[Path, Manifest, Path]:
    """A set of one part: its folder, its manifest, the part."""
    manifest = make_manifest()
    rows = [make_shard_row(manifest, f"toy/{i}") for i in range(70)]
    (name,) = make_set(tmp_path / "set", manifest, [rows])
    return tmp_path / "set", manifest, tmp_path / "set" / name


def test_shards__any_changed_byte_with_a_name_that_agrees(
    shard_set: tuple[Path, Manifest, Path],
) -> None:
    root, _, part = shard_set
    whole = part.read_bytes()
    assert read_all(root) == 70
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    good = 0
    for _, data in byte_mutations(whole[footer:-8], "footer", 240):
        # The length is told truly, so that the Thrift reader has the changed bytes.
        tail = data + struct.pack("<I", len(data)) + b"PAR1"
        part = renamed(part, whole[:footer] + tail)
        good += survived(lambda: read_all(root))
    for _, data in byte_mutations(whole[:footer], "pages", 120):
        part = renamed(part, data + whole[footer:])
        good += survived(lambda: read_all(root))
    assert good < 120


def test_shards__rows_that_repeat_one_value_without_end(
    shard_set: tuple[Path, Manifest, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, manifest, part = shard_set
    table = encode_rows([make_shard_row(manifest, "toy/1")], manifest)
    many = pa.concat_tables([table] * 2000).combine_chunks()
    sink = pa.BufferOutputStream()
    pq.write_table(many, sink, row_group_size=2000)
    part = renamed(part, bytes(sink.getvalue()))
    assert read_all(root) == 2000  # 2,000 small rows in a group are none the worse
    # A page holds one value once, and says how often it comes.
    monkeypatch.setattr("pipeline.shards.reader._MAX_GROUP_BYTES", 1 << 24)
    texts = pa.array([["x" * 20_000]] * 2000, pa.list_(pa.string()))
    index = many.schema.get_field_index("texts")
    many = many.set_column(index, many.schema.field("texts"), texts)
    sink = pa.BufferOutputStream()
    pq.write_table(many, sink, row_group_size=2000)
    data = bytes(sink.getvalue())
    assert len(data) < 200_000  # of 40 MB of text
    renamed(part, data)
    assert "claims" in refusal(lambda: read_all(root))


def test_shards__overlong_and_odd_binary(shard_set: tuple[Path, Manifest, Path]) -> None:
    root, manifest, part = shard_set
    table = encode_rows([make_shard_row(manifest, "toy/1")], manifest)
    index = table.schema.get_field_index("text_embeds")
    for value in (b"x" * 7, b"x" * 40_000_001):
        column = pa.array([value], pa.binary())
        sink = pa.BufferOutputStream()
        pq.write_table(table.set_column(index, table.schema.field(index), column), sink)
        part = renamed(part, bytes(sink.getvalue()))
        assert "not a multiple" in refusal(lambda: read_all(root))


def test_manifest__any_value_of_it_is_read_or_refused(
    shard_set: tuple[Path, Manifest, Path],
) -> None:
    root, manifest, _ = shard_set
    value = json.loads(manifest.to_json())
    good = 0
    for _, changed in json_mutations(value, "manifest", 250):
        (root / "manifest.json").write_text(json.dumps(changed))
        good += survived(lambda: read_all(root))
    assert good < 60


@pytest.mark.parametrize("depth", [50, 200, 400, 900, 100_000])
def test_manifest__nested_deeply(shard_set: tuple[Path, Manifest, Path], depth: int) -> None:
    root, manifest, _ = shard_set
    text = manifest.to_json()
    deep = '{"a":' * depth + "0" + "}" * depth
    assert '"count": 3' in text
    (root / "manifest.json").write_text(text.replace('"count": 3', f'"count": {deep}'))
    refusal(lambda: read_all(root))


def test_manifest__text_that_is_no_unicode(shard_set: tuple[Path, Manifest, Path]) -> None:
    root, manifest, _ = shard_set
    text = manifest.to_json().replace('"toy"', '"\\ud800"')
    (root / "manifest.json").write_text(text)
    assert "damaged" in refusal(lambda: read_all(root))


def test_manifest__names_no_files(shard_set: tuple[Path, Manifest, Path]) -> None:
    """Parts are what lies in the folder: a manifest cannot lead to others."""
    root, manifest, _ = shard_set
    value = json.loads(manifest.to_json())
    for key, item in (("parts", ["../../secret.parquet"]), ("root", "/"), ("images", "/etc")):
        (root / "manifest.json").write_text(json.dumps({**value, key: item}))
        assert f"unknown field {key}" in refusal(lambda: read_all(root))


# --- embeddings and indexes -------------------------------------------------------------------


def test_embeddings__any_value_of_their_record_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    write_embeddings(path, META, [rows(4)])
    whole = path.read_bytes()
    record: dict[str, Any] = {}
    rewrite(path, record.update)
    good = 0
    for _, changed in json_mutations(record, "embeddings", 200):

        def replaced(told: dict[str, Any], changed: Any = changed) -> None:
            told.clear()
            told.update(changed)

        path.write_bytes(whole)
        rewrite(path, replaced)
        good += survived(lambda: read_embeddings(path))
    assert 0 < good < 190
    with pytest.raises(InputError, match="not JSON"):
        parse_record(b"[" * 100_000, "it", "x", 1, "make it again")


def not_utf8(table: pa.Table, column: str) -> pa.Table:
    """The table with bytes in a column of text that are none."""
    values = pa.array([b"\xff\xfe"] * table.num_rows, pa.binary()).view(pa.string())
    return table.set_column(table.schema.get_field_index(column), column, values)


def test_embeddings__text_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    write_embeddings(path, META, [rows(4)])
    with pq.ParquetFile(path) as file:
        metadata = file.metadata.metadata
        table = file.read().replace_schema_metadata(metadata)
    pq.write_table(table, path)
    assert len(read_embeddings(path).rows) == 4
    pq.write_table(not_utf8(table, "source"), path)
    refusal(lambda: read_embeddings(path))
    pq.write_table(table, path)
    path.write_bytes(path.read_bytes().replace(b"category", b"cate\xff\xfery"))
    refusal(lambda: read_embeddings(path))


@pytest.fixture(scope="module")
def whole_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "idx"
    build_index(embeddings(40), out)
    return out


@pytest.fixture
def index(whole_index: Path, tmp_path: Path) -> Path:
    """A whole index, to be broken."""
    return Path(shutil.copytree(whole_index, tmp_path / "idx"))


@pytest.mark.parametrize("name", ["index.faiss", "ids.parquet"])
def test_index__no_changed_byte_comes_to_its_reader(
    name: str, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: object) -> None:
        pytest.fail("a file was parsed before its hash was compared")

    monkeypatch.setattr(faiss, "read_index", reached)
    monkeypatch.setattr("evaluation.index.pq.read_table", reached)
    whole = (index / name).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 200)):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        (index / name).write_bytes(changed)
        assert "damaged or exchanged" in refusal(lambda: load_index(index))
    for told, data in byte_mutations(whole, f"index {name}", 70):
        if data != whole:
            (index / name).write_bytes(data)
            assert "damaged or exchanged" in refusal(lambda: load_index(index)), told


def forged(index: Path) -> None:
    """Make the manifest agree with the files again."""
    record = json.loads((index / "manifest.json").read_text())
    record["sha256"] = {name: file_hash(index / name) for name in record["sha256"]}
    (index / "manifest.json").write_text(json.dumps(record))


def test_index__ids_that_do_not_fit_with_a_hash_that_does(index: Path) -> None:
    ids = pq.read_table(index / "ids.parquet")
    count = ids.num_rows
    wrong: dict[str, pa.Table] = {
        "fewer": ids.slice(1),
        "more": pa.concat_tables([ids, ids]),
        "none": ids.slice(0, 0),
        "without uid": ids.drop_columns(["uid"]),
        "of numbers": ids.set_column(0, "uid", pa.array(range(count))),
        "removed is text": ids.set_column(4, "removed", pa.array(["no"] * count)),
        "texts are text": ids.set_column(3, "texts", pa.array(["x"] * count)),
        "a column more": ids.append_column("z", pa.array(range(count))),
        "a column twice": ids.append_column("uid", pa.array(["x"] * count)),
    }
    for told, table in wrong.items():
        pq.write_table(table, index / "ids.parquet")
        forged(index)
        assert refusal(lambda: load_index(index)), told
    pq.write_table(not_utf8(ids, "uid"), index / "ids.parquet")
    broken = (index / "ids.parquet").read_bytes()
    pq.write_table(ids, index / "ids.parquet")
    named = (index / "ids.parquet").read_bytes().replace(b"category", b"cate\xff\xfery")
    for data in (b"", b"PAR1PAR1", b"text" * 100, broken, named):
        (index / "ids.parquet").write_bytes(data)
        forged(index)
        assert "damaged" in refusal(lambda: load_index(index))


def test_index__any_value_of_its_manifest_is_read_or_refused(index: Path) -> None:
    record = json.loads((index / "manifest.json").read_text())
    good = 0
    for _, changed in json_mutations(record, "index manifest", 200):
        (index / "manifest.json").write_text(json.dumps(changed))
        good += survived(lambda: load_index(index))
    assert 0 < good < 190
    (index / "manifest.json").write_text("[" * 100_000)
    assert "not JSON" in refusal(lambda: load_index(index))


@pytest.mark.parametrize(
    "values",
    [
        {"xyz": npy(np.full((60, 3), 1e308))},
        {"xyz": npy(np.array([[1e308] * 3, [-1e308] * 3] * 9))},
        {"xyz": npy(np.ones((60, 3)))},
        {"xyz": npy(np.zeros((0, 3)))},
        {"xyz": npy(np.zeros((60, 4)))},
        {"xyz": npy(np.full((60, 3), np.nan))},
        {"rgb": npy(np.zeros((60, 3)))},
        {"xyz": b"\x93NUMPY\x01\x00\xff\xff"},
        {"xyz.npy": b"", "xyz": npy(np.array(["a"] * 9))},
        {},
    ],
)
def test_query__cloud_that_is_none(values: dict[str, bytes], tmp_path: Path) -> None:
    named = {k if k.endswith(".npy") else f"{k}.npy": v for k, v in values.items()}
    (tmp_path / "a.npz").write_bytes(npz(named))
    refusal(lambda: load_cloud(tmp_path / "a.npz", 8))


def test_query__cloud_that_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.shapes._MAX_ARRAY_BYTES", 1 << 20)
    claim = npy(np.zeros((60, 3)))
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("xyz.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(claim)
        for _ in range(3):
            stream.write(bytes(1 << 20))
    assert "an array of" in refusal(lambda: load_cloud(tmp_path / "a.npz", 8))


# --- JSON of every kind -----------------------------------------------------------------------


def _lock(path: Path) -> None:
    assert not _is_dead(Storage.at(path.parent), path.name)


JSON_FILES: dict[str, tuple[str, Callable[[Path], object], type[Exception] | None]] = {
    "result": ("r.json", read_result, InputError),
    "labels": ("l.json", read_labels, InputError),
    "curves": ("metrics.jsonl", lambda path: read_curves(path.parent), None),
    "metrics": ("metrics.jsonl", lambda path: read_metrics(path.parent), None),
    "list": ("train_all.json", read_list, InputError),
    "filter": ("f.json", read_filtered, InputError),
    "exported": ("mrd3d.json", read_exported, InputError),
    "gzip": ("a.json.gz", read_gzip_json, DamagedError),
    "lock": ("lock", _lock, None),
    "teacher": (
        "open_clip_config.json", lambda path: load_teacher(f"local-dir:{path.parent}"), InputError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", JSON_FILES)
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * 100_000 + "]" * 100_000, "null", "[]", "{}", "9" * 5000, "1e400", '"x"'],
    ids=["open", "deep", "null", "list", "object", "digits", "infinity", "text"],
)
def test_json__that_is_nothing_of_the_kind(kind: str, text: str, tmp_path: Path) -> None:
    name, read, error = JSON_FILES[kind]
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    if error is None:
        read(path)
        return
    try:
        read(path)
    except error as caught:
        told = str(caught)
    else:
        told = "read"
    assert told
    assert "\n" not in told
    if len(text) > 1000:
        assert told != "read"


def test_json__gzip_that_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.datasets.downloads._MAX_JSON_BYTES", 1000)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"a": 1}' + b" " * 1000))
    with pytest.raises(DamagedError, match="unfolds"):
        read_gzip_json(tmp_path / "a.json.gz")


# --- command lines ----------------------------------------------------------------------------


def test_command__ends_with_2_and_one_line(
    shard_set: tuple[Path, Manifest, Path],
    step: Path,
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    canary: Path,
) -> None:
    root, _, part = shard_set
    part.write_bytes(part.read_bytes()[:-40])
    (step / checkpoint.CONFIG).write_text("[" * 100_000)
    (index / "index.faiss").write_bytes(b"IxFI" + b"\xff" * 100)
    weights = tmp_path / "model.pt"
    torch.save({"state_dict": Runs(str(canary))}, weights)
    commands = {
        "pipeline": [["inspect", root]],
        "trainer": [
            ["import", "openshape", weights, "--out", tmp_path / "out"],
            ["export", step, "--out", tmp_path / "out"],
        ],
        "evaluation": [
            ["retrieve", "--index", index, "--text", "a mug"],
            ["encode", "--shards", root, "--checkpoint", step, "--out", tmp_path / "e.parquet"],
        ],
    }
    from importlib import import_module

    for package, lines in commands.items():
        main = import_module(f"{package}.cli").main
        for line in lines:
            monkeypatch.setattr("sys.argv", [package, *map(str, line)])
            with pytest.raises(SystemExit) as stop:
                main()
            printed = capsys.readouterr()
            assert stop.value.code == 2, (line, printed.err)
            assert "Traceback" not in printed.err
            assert printed.err.strip(), line


def test_world__these_files_are_good_before_they_are_broken(
    shard_set: tuple[Path, Manifest, Path], step: Path, index: Path
) -> None:
    assert read_all(shard_set[0]) == 70
    assert load_model(step).step == 5
    assert load_state(step) == {"step": 5}
    assert len(load_index(index)) == 40
    assert asdict(load_model(step).teacher)
