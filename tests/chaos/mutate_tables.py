"""Hostile tables of metadata and caption files: CSV, Parquet, JSON, JSON lines, gzip."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.chaos.mutate import (
    Case,
    Content,
    byte_mutations,
    fixed,
    json_mutations,
    word_mutations,
)
from tests.pipeline.gltf_files import cube_glb

CSV = b'file,caption,category\na.glb,a red chair,chair\nb.glb,"a table, round",table\n'
RECORDS: dict[str, Any] = {
    "uid1": "a red chair",
    "uid2": ["a table", "a round one"],
    "uid3": {"blip_caption": "a lamp", "msft_caption": {"text": "it", "confidence": 0.9}},
    "uid4": {"description": {"captions": [{"text": "a cup", "confidence": 0.5}], "tags": ["cup"]}},
    "uid5": [{"generated_text": "a car"}, {"generated_text": "a bus"}],
}
TABLE = {"uid": ["a.glb", "b.glb"] * 50, "caption": ["a red chair", "a table"] * 50}


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    """The bytes of a Parquet file."""
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


def _nested(depth: int) -> pa.DataType:
    kind = pa.string()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def _list_of(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


_TABLES: dict[str, Callable[[], bytes]] = {
    "no rows": lambda: parquet(
        {"uid": pa.array([], pa.string()), "caption": pa.array([], pa.string())}
    ),
    "no columns": lambda: parquet({}),
    "other columns": lambda: parquet({"x": [1], "y": [2]}),
    "numbers as captions": lambda: parquet({"uid": ["a.glb"], "caption": [1.5]}),
    "numbers as uids": lambda: parquet({"uid": [2**63 - 1], "caption": ["x"]}),
    "null columns": lambda: parquet({"uid": pa.nulls(5), "caption": pa.nulls(5)}),
    "bytes": lambda: parquet({"uid": [b"a.glb"], "caption": [b"\xff\xfe"]}),
    "structs": lambda: parquet({"uid": ["a.glb"], "caption": [{"a": {"b": ["c"]}}]}),
    "lists 50 deep": lambda: parquet(
        {"uid": ["a.glb"], "caption": pa.array([_list_of(50)], _nested(50))}
    ),
    "maps": lambda: parquet(
        {"uid": ["a.glb"], "caption": pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))}
    ),
    "dates beyond python": lambda: parquet(
        {"uid": ["a.glb"], "caption": pa.array([2**62], pa.timestamp("us"))}
    ),
    "durations": lambda: parquet(
        {"uid": ["a.glb"], "caption": pa.array([2**62], pa.duration("s"))}
    ),
    "a caption of 30 MB": lambda: parquet({"uid": ["a.glb"], "caption": ["x" * 30_000_000]}),
    "one caption a million times": lambda: parquet(
        {"uid": ["a.glb"] * 300_000, "caption": ["x" * 100] * 300_000}
    ),
    "text that is not utf-8": lambda: parquet({"uid": ["a.glb"], "caption": ["@@@@@@@@"]}).replace(
        b"@@@@@@@@", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8"
    ),
    "a column twice": lambda: _doubled(),
    "5,000 columns": lambda: parquet(
        {"uid": ["a.glb"], "caption": ["x"], **{f"c{i}": [i] for i in range(5000)}}
    ),
    "encrypted magic": lambda: b"PARE" + parquet(TABLE)[4:-4] + b"PARE",
}  # fmt: skip


def _doubled() -> bytes:
    stream = io.BytesIO()
    table = pa.Table.from_arrays(
        [pa.array(["a.glb"]), pa.array(["x"]), pa.array(["y"])], names=["uid", "caption", "caption"]
    )
    pq.write_table(table, stream)
    return stream.getvalue()


_TEXTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "deep list in a cell": ("csv", lambda: b'file,caption\na.glb,"' + b"[" * 100_000 + b'"\n'),
    "deep closed list in a cell": (
        "csv",
        lambda: b'file,caption\na.glb,"' + b"[" * 100_000 + b"]" * 100_000 + b'"\n',
    ),
    "deep python list in a cell": (
        "csv",
        lambda: b'file,caption\na.glb,"[\'"\n' + b'b.glb,"' + b"['a'," + b"[" * 20_000 + b'"\n',
    ),
    "a field of 20 MB": ("csv", lambda: b"file,caption\na.glb," + b"x" * 20_000_000 + b"\n"),
    "a header of 1 MB": ("csv", lambda: b"file,caption," + b"x" * 1_000_000 + b"\na.glb,a,b\n"),
    "quote without end": ("csv", lambda: b'file,caption\na.glb,"' + b"x\n" * 100_000),
    "100,000 columns": ("csv", lambda: b"file,caption" + b",c" * 100_000 + b"\na.glb,x\n"),
    "nul": ("csv", lambda: b"file,caption\na.glb,\0\n"),
    "latin-1": ("csv", lambda: b"file,caption\na.glb,caf\xe9\n"),
    "utf-16": ("csv", lambda: CSV.decode().encode("utf-16")),
    "paths that lead out": (
        "csv",
        lambda: b"file,caption\n../../etc/passwd,x\n/etc/passwd,y\n\0,z\na.glb,w\n",
    ),
    "nothing": ("csv", lambda: b""),
    "formulas": ("csv", lambda: b"file,caption\na.glb,=cmd|' /C calc'!A0\n"),
    "an array 200,000 deep": ("json", lambda: b"[" * 200_000 + b"]" * 200_000),
    "an object 100,000 deep": ("json", lambda: b'{"a":' * 100_000 + b"0" + b"}" * 100_000),
    "a value 100,000 deep": ("json", lambda: b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a value 900 deep": ("json", lambda: b'{"a": ' + b"[" * 900 + b'"x"' + b"]" * 900 + b"}"),
    "a text without end": ("json", lambda: b'{"a": "' + b"x" * 20_000_000),
    "a number without end": ("json", lambda: b'{"a": ' + b"9" * 200_000 + b"}"),
    "keys twice": ("json", lambda: b'{"a": "x", "a": "y", "a": {"caption": "z", "caption": 1}}'),
    "lone surrogates": ("json", lambda: b'{"a\\ud800": "\\udfff"}'),
    "blanks": ("json", lambda: b" " * 20_000_000),
    "nan and infinity": ("json", lambda: b'{"a": NaN, "b": Infinity, "c": -Infinity}'),
    "a million keys": (
        "json",
        lambda: b"{" + b",".join(b'"k%d":"x"' % i for i in range(200_000)) + b"}",
    ),
    "lines 200,000 deep": ("jsonl", lambda: b"[" * 200_000 + b"\n"),
    "a line of 20 MB": ("jsonl", lambda: b'{"a": "' + b"x" * 20_000_000 + b'"}\n'),
    "lines of nothing": ("jsonl", lambda: b"\n" * 1_000_000),
    "lines of numbers": ("jsonl", lambda: b"1\n" * 100_000),
}


_WHOLE = gzip.compress(json.dumps(RECORDS).encode(), mtime=0)
_X = 200_000_000  # signs that a gzip file of 1 MB unfolds to


def _unfolding(head: bytes, piece: bytes = b"x", size: int = _X) -> Callable[[], bytes]:
    """A gzip file of much text: what unfolds is read in pieces, a value without end is refused."""

    def make() -> bytes:
        stream = io.BytesIO()
        with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1, mtime=0) as file:
            file.write(head)
            block = piece * (1_000_000 // len(piece))
            for _ in range(size // len(block)):
                file.write(block)
        return stream.getvalue()

    return make


_ZIPPED: tuple[tuple[str, Callable[[], bytes]], ...] = (
    ("csv.gz", lambda: gzip.compress(CSV, mtime=0)[:-8]),
    ("json.gz", lambda: _WHOLE[:-12]),
    ("json.gz", lambda: _WHOLE[:10] + b"\xff" * 20 + _WHOLE[30:]),
    ("json.gz", lambda: _WHOLE + b"\0" * 1000 + b"garbage"),
    ("json.gz", lambda: _WHOLE * 1000),
    ("json.gz", lambda: b"\x1f\x8b"),
    ("json.gz", _unfolding(b'{"a": "')),
    ("json.gz", _unfolding(b"", b" ")),
    ("csv.gz", _unfolding(b"uid,caption\na,")),
    ("csv.gz", _unfolding(b'uid,caption\na,"', b"x\n")),
    ("jsonl.gz", _unfolding(b'{"a": "')),
    ("jsonl.gz", _unfolding(b"")),
    ("jsonl.gz", _unfolding(b"", b"\n", _X // 10)),
)


def _both(name: str, suffix: str, data: Content, beside: bytes) -> Iterator[Case]:
    """A file as the captions of --captions, and where it is of such a kind, as --metadata."""
    yield fixed(f"captions/{name}", "captions", f"captions.{suffix}", data)
    if suffix in ("csv", "parquet"):
        yield Case(
            f"table/{name}",
            "table",
            lambda w: {
                **fixed("", "table", f"metadata.{suffix}", data).build(w),
                "a.glb": beside,
                "b.glb": beside,
            },
        )


def table_cases() -> Iterator[Case]:
    """All of them; about 350."""
    beside = cube_glb()
    for told, make in _TABLES.items():
        yield from _both(f"parquet {told}", "parquet", make, beside)
    for told, (suffix, make) in _TEXTS.items():
        yield from _both(told, suffix, make, beside)
    for told, text in word_mutations(CSV.replace(b",", b" , "), "table", 32):
        yield from _both(f"csv {told}", "csv", text, beside)
    whole = parquet(TABLE)
    for told, data in byte_mutations(whole, "parquet", 21):
        yield from _both(f"parquet {told}", "parquet", data or b"P", beside)
    footer = len(whole) - 700
    for told, data in byte_mutations(whole[footer:], "footer", 42):
        yield from _both(f"parquet footer {told}", "parquet", whole[:footer] + data, beside)
    for told, value in json_mutations(RECORDS, "captions", 40):
        yield fixed(f"captions/{told}", "captions", "captions.json", json.dumps(value))
    for told, data in byte_mutations(json.dumps(RECORDS).encode(), "captions", 28):
        yield fixed(f"captions/{told}", "captions", "captions.json", data or b"{")
    for number, (suffix, make) in enumerate(_ZIPPED):
        yield fixed(f"captions/{suffix} {number}", "captions", f"captions.{suffix}", make)
