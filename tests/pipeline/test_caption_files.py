"""Caption files of every kind that is read, and what is said of those that cannot be."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.captions import CaptionFile, json_stream, parse_caption_file
from pipeline.captions.json_stream import json_items
from pipeline.common import InputError, file_hash

UID = "8476c4170df24cf5bbe6967222d1a42d"
OTHER = "b3f1e4a2c5d64a0e9f1b2c3d4e5f6071"
Found = list[tuple[str, str, str]]


def entries(path: Path, source: str | None = None) -> Found:
    return list(CaptionFile(path, source).entries())


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# -- tables --------------------------------------------------------------------------------------


def test_entries__cap3d_without_a_header(tmp_path: Path) -> None:
    # As released: uid and caption, quoted where it holds a comma.
    path = write(
        tmp_path / "Cap3D_automated_Objaverse_full.csv",
        f'{UID},"A red chair, with ""arms""."\n{OTHER},A table.\n\n',
    )
    assert entries(path) == [
        (UID, "caption", 'A red chair, with "arms".'),
        (OTHER, "caption", "A table."),
    ]
    assert entries(path, "cap3d")[1] == (OTHER, "cap3d", "A table.")


def test_entries__cap3d_of_abo_has_the_kind_between(tmp_path: Path) -> None:
    path = write(
        tmp_path / "abo.csv", "B07B4DBBVP,general,a chair\nB07B4DBBVP,compositional,legs\n"
    )
    assert entries(path) == [
        ("B07B4DBBVP", "caption", "a chair"),
        ("B07B4DBBVP", "caption", "legs"),
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "parquet"])
def test_entries__columns_by_name_whatever_the_container(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"UID": "a", "caption": "a chair", "name": "Chair_02", "tags": '["oak", "old"]', "n": "1"},
        {"UID": "b", "caption": '["one", "two"]', "name": "", "tags": "", "n": "2"},
    ]
    path = tmp_path / f"captions.{suffix}"
    if suffix == "parquet":
        table = pa.Table.from_pylist(rows)
        lists = pa.array([["a chair"], ["one", "two"]])
        pq.write_table(table.set_column(1, "caption", lists), path)
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if suffix == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode("utf-8-sig")
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert entries(path, "Cap3D") == [
        ("a", "Cap3D", "a chair"),
        ("a", "name", "Chair_02"),
        ("a", "tags", "oak, old"),
        ("b", "Cap3D", "one"),
        ("b", "Cap3D", "two"),
    ]


def test_entries__lists_as_python_writes_them(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", 'uid,caption\na,"[\'a chair\', ""the seat\'s red""]"\n')
    assert entries(path) == [("a", "caption", "a chair"), ("a", "caption", "the seat's red")]


# -- JSON ----------------------------------------------------------------------------------------

AZURE = {
    "description": {"tags": ["red", "seat"], "captions": [{"text": "a chair", "confidence": 0.9}]},
    "requestId": "1",
}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({UID: "a chair"}, [(UID, "caption", "a chair")]),
        ({UID: ["one", "two", ""]}, [(UID, "caption", "one"), (UID, "caption", "two")]),
        ({UID: {"caption": "one", "x": 1}}, [(UID, "caption", "one")]),
        ({UID: [{"generated_text": "one"}]}, [(UID, "caption", "one")]),
        ({UID: AZURE}, [(UID, "caption", "a chair"), (UID, "tags", "red, seat")]),
        (
            {UID: {"captionResult": {"text": "a chair", "confidence": 0.9}}},
            [(UID, "caption", "a chair")],
        ),
        ([{"uid": "a", "caption": "one"}, {"no": 1}], [("a", "caption", "one")]),
        ([{"image": "renders/a.png", "text": "one"}], [("renders/a.png", "caption", "one")]),
        ([["a", "one"], ["b", ["two", "three"]]],
         [("a", "caption", "one"), ("b", "caption", "two"), ("b", "caption", "three")]),
        (
            # the fields of one of OpenShape's objects
            [{"id": UID, "dataset": "Objaverse", "text": ["Old_Chair"], "blip_caption": "a chair",
              "msft_caption": "a red chair", "retrieval_text": ["buy chair", "seat"]}],
            [(UID, "caption", "Old_Chair"), (UID, "blip", "a chair"), (UID, "azure", "a red chair"),
             (UID, "retrieved", "buy chair"), (UID, "retrieved", "seat")],
        ),
        ({UID: None, OTHER: 3, "c": True, "d": "x"}, [("d", "caption", "x")]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 1])
def test_entries__json_of_every_form(
    tmp_path: Path, value: Any, found: Found, indent: int | None
) -> None:
    path = write(tmp_path / "c.json", json.dumps(value, indent=indent))
    assert entries(path) == found


def test_entries__the_captions_of_3dtopia(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", '[{"obj_id": "ed51", "3dtopia": "two swords"}]')
    assert entries(path) == [("ed51", "3dtopia", "two swords")]


def test_entries__a_source_that_was_given_is_that_of_all_captions(tmp_path: Path) -> None:
    record = {"uid": "a", "blip_caption": "x y", "caption": "z", "tags": ["t"], "title": "n"}
    path = write(tmp_path / "c.json", json.dumps([record]))
    assert sorted(entries(path, "mine")) == [
        ("a", "mine", "x y"),
        ("a", "mine", "z"),
        ("a", "name", "n"),
        ("a", "tags", "t"),
    ]


@pytest.mark.parametrize("name", ["c.jsonl", "c.ndjson", "c.json", "c.jsonl.gz"])
def test_entries__one_record_per_line(tmp_path: Path, name: str) -> None:
    lines = [{"uid": "a", "caption": "one"}, {"uid": "b", "captions": ["two", "three"]}]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert entries(tmp_path / name) == [
        ("a", "caption", "one"),
        ("b", "caption", "two"),
        ("b", "caption", "three"),
    ]


def test_entries__lines_of_a_uid_and_its_text(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", '{"a": "one"}\n\n["b", "two"]\n')
    assert entries(path) == [("a", "caption", "one"), ("b", "caption", "two")]


# -- what cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("c.csv", b"just one column\nx\n", "one column only"),
        ("c.csv", b"\xff\xfe,caption\n", "not UTF-8"),
        ("c.csv", b"", "holds no captions"),
        ("c.json", b"", "neither a JSON object nor a list"),
        ("c.json", b'"text"', "neither a JSON object nor a list"),
        ("c.json", b'{"a": "one", "b": "tw', "ends too early"),
        ("c.json", b'{"a": "one" "b": "two"}', "not JSON at sign 13"),
        ("c.json", b"{1: 2}", "not JSON"),
        ("c.json", b"[" * 100_000, "nested too deeply"),
        ("c.json", b"{}", "holds no captions"),
        ("c.json", b'{"a": 1}', "holds no captions"),
        ("c.jsonl", b'{"uid": "a", "caption": "x"}\n{"uid": \n', "line 2: not JSON"),
        (
            "c.jsonl.gz",
            gzip.compress(b'{"uid": "a", "caption": "x"}\n' * 99, mtime=0)[:-9],
            "damaged",
        ),
        ("c.csv.gz", b"uid,caption\n", "cannot be read"),
        ("c.parquet", b"PAR1 nothing", "cannot be read as Parquet"),
    ],
)
def test_entries__a_bad_file_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        entries(path)
    message = str(caught.value)
    assert str(path) in message
    assert reason in message
    assert "\n" not in message


def test_entries__parquet_without_a_text_column_says_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uid": ["a"], "n_faces": [3]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"columns uid, n_faces: name one 'uid'.*one 'caption'"):
        entries(tmp_path / "c.parquet")


# -- the option ----------------------------------------------------------------------------------


def test_parse_caption_file__source_is_optional(tmp_path: Path) -> None:
    path = write(tmp_path / "a=b.csv", "u,t\n")
    assert parse_caption_file(str(path)) == CaptionFile(path, None)
    assert parse_caption_file(f"Cap3D={path}") == CaptionFile(path, "cap3d")


def test_parse_caption_file__equals_sign_in_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "cap=3d.csv", "u,t\n")
    monkeypatch.chdir(tmp_path)
    assert parse_caption_file("cap=3d.csv").source is None
    assert parse_caption_file("x=cap=3d.csv") == CaptionFile(Path("cap=3d.csv"), "x")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [("none.csv", "not a file"), ("blip=none.json", "none.json is not a file"), ("c.xlsx", ".csv")],
)
def test_parse_caption_file__what_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, reason: str
) -> None:
    write(tmp_path / "c.xlsx", "x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=reason) as caught:
        parse_caption_file(spec)
    assert str(caught.value).startswith(f"--captions {spec}: ")


def test_caption_file__the_manifest_knows_it_by_its_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "u,t\n")
    assert CaptionFile(path, "x").to_json() == {
        "file": "c.csv",
        "source": "x",
        "sha256": file_hash(path),
    }
    with pytest.raises(InputError, match="cannot be read"):
        CaptionFile(tmp_path / "gone.csv").to_json()


# -- the JSON stream against the library ---------------------------------------------------------

_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.text(max_size=4), _JSON) | st.lists(_JSON),
    st.integers(1, 9),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_json_items__whatever_the_size_of_the_buffer(
    value: Any, chunk: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        found = list(json_items(io.StringIO(text), "file"))
    expected = list(value.items()) if isinstance(value, dict) else [(None, v) for v in value]
    assert found == expected


def test_json_items__holds_one_value_and_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", 1000)
    read = 0

    class Counting(io.StringIO):
        def read(self, size: int | None = -1) -> str:
            nonlocal read
            found = super().read(size)
            read += len(found)
            return found

    text = json.dumps({f"uid{i}": "a chair " * 5 for i in range(5000)})
    items = json_items(Counting(text), "file")
    for _ in range(100):
        next(items)
    assert read < 10_000 < len(text)
