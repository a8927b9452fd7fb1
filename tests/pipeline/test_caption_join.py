"""Joining caption files to records: which text goes to which object, and what is counted."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.captions import CaptionFile, CaptionJoin, texts_for
from pipeline.captions import join as join_module
from pipeline.captions.join import candidates
from pipeline.common import InputError
from pipeline.datasets.base import Record

UID = "8476c4170df24cf5bbe6967222d1a42d"


def record(uid: str, source: str = "", texts: tuple[str, ...] = ()) -> Record:
    return Record(
        uid=uid,
        dataset=uid.partition("/")[0],
        source=source or uid.partition("/")[2] + ".glb",
        key="k",
        texts=texts,
        text_sources=("name",) * len(texts),
    )


def captions(tmp_path: Path, content: dict[str, str | list[str]], name: str = "c") -> CaptionFile:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(content))
    return CaptionFile(path)


def joined(files: list[CaptionFile], records: list[Record]) -> list[Record]:
    with CaptionJoin(files) as join:
        return list(join.join(records))


@pytest.mark.parametrize(
    "key",
    [
        f"objaverse/{UID}",
        UID,
        f"{UID}.glb",
        f"glbs/000-001/{UID}.glb",
        f"renders/{UID}/003.png",
        f"{UID}_003.jpg",
        f".\\views\\{UID}_r_12.png",
        f"03001627_{UID}",
    ],
)
def test_join__finds_an_identifier_in_every_way_of_writing_it(tmp_path: Path, key: str) -> None:
    file = captions(tmp_path, {key: "a chair"})
    found = joined([file], [record(f"objaverse/{UID}", f"000-001/{UID}.glb")])[0]
    assert (found.texts, found.text_sources) == (("a chair",), ("caption",))


@pytest.mark.parametrize(
    ("uid", "key", "found"),
    [
        ("folder/oak/chair", "oak/chair", True),
        ("folder/oak/chair", "oak/chair.obj", True),
        ("folder/oak/chair", "chair", True),
        ("folder/oak/chair", "chair.png", True),
        ("folder/oak/chair", "ash/chair", False),  # another folder's
        ("folder/oak/model", "model", False),  # a name that tells nothing apart
        ("folder/oak/001", "001", False),
        ("folder/001", "001", True),  # here it is the whole identifier
        ("folder/oak/chair_01", "ash/chair_01", False),
        ("folder/a", "b", False),
    ],
)
def test_join__file_names_where_they_tell_objects_apart(
    tmp_path: Path, uid: str, key: str, found: bool
) -> None:
    texts = joined([captions(tmp_path, {key: "a text"})], [record(uid)])[0].texts
    assert texts == (("a text",) if found else ())


def test_join__the_best_key_of_a_file_alone_counts(tmp_path: Path) -> None:
    file = captions(tmp_path, {"chair": "any chair", "oak/chair": ["this chair", "of oak"]})
    found = joined([file], [record("folder/oak/chair"), record("folder/ash/chair")])
    assert [r.texts for r in found] == [("this chair", "of oak"), ("any chair",)]


def test_join__own_texts_first_then_files_in_order_with_their_sources(tmp_path: Path) -> None:
    first = CaptionFile(captions(tmp_path, {"a": ["x one", "x two"]}, "x").path, "cap3d")
    second = CaptionFile(captions(tmp_path, {"a": "A chair!", "b": "z"}, "y").path, "blip")
    found, bare = joined([first, second], [record("d/a", texts=("Chair_01",)), record("d/c")])
    assert found.texts == ("Chair_01", "x one", "x two", "A chair!")
    assert found.text_sources == ("name", "cap3d", "cap3d", "blip")
    assert bare == record("d/c")
    assert texts_for(found) == [
        ("chair", "name"),
        ("x one", "cap3d"),
        ("x two", "cap3d"),
        ("A chair!", "blip"),
    ]


def test_join__counts_what_was_used_and_what_not(tmp_path: Path) -> None:
    file = captions(tmp_path, {"a": ["one", "two"], "b": "three", "z": ["four", "five", "six"]})
    with CaptionJoin([file]) as join:
        list(join.join([record("d/a"), record("d/b"), record("d/c")]))
        join.check()
        assert join.counts == {
            "captions_added": 3,
            "captions_unused": 3,
            "captions_over_limit": 0,
        }
        assert join.lines() == [
            "c.json: captions for 2 of 3 objects; 3 of its 6 texts are for others"
        ]


def test_join__a_key_with_very_many_texts_gives_the_first_ones(tmp_path: Path) -> None:
    file = captions(tmp_path, {"a": [f"text {i}" for i in range(100)]})
    with CaptionJoin([file]) as join:
        (found,) = join.join([record("d/a")])
        assert found.texts == tuple(f"text {i}" for i in range(64))
        assert join.counts["captions_over_limit"] == 36


def test_check__a_file_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    good, bad = captions(tmp_path, {"a": "x"}, "good"), captions(tmp_path, {"q7": "x"}, "bad")
    with CaptionJoin([good, bad]) as join:
        join.check()  # nothing joined: nothing to say
        list(join.join([record("d/a"), record("d/b")]))
        with pytest.raises(InputError, match=r"bad\.json: names none of the 2 objects .*'q7'"):
            join.check()


def test_probe__stops_at_the_first_match_and_forgets(tmp_path: Path) -> None:
    read = []

    def records() -> Iterator[Record]:
        for name in "bacd":
            read.append(name)
            yield record(f"d/{name}")

    with CaptionJoin([captions(tmp_path, {"a": "x", "c": "y"})]) as join:
        join.probe(records())
        assert read == ["b", "a"]
        assert (join.records, join.counts["captions_added"]) == (0, 0)
        with pytest.raises(InputError, match="names none of the 1 objects"):
            join.probe([record("d/q")])
        join.probe([])


def test_join__without_files_records_pass_through() -> None:
    records = [record("d/a"), record("d/b", texts=("x",))]
    with CaptionJoin([]) as join:
        assert list(join.join(records)) == records
        join.check()
        assert join.lines() == []
        assert join.counts["captions_added"] == 0


def test_join__lone_surrogates_and_empty_keys_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"a": "one \\ud800 two", "": "x", "\\udfff": "y", "   ": "z"}')
    found = joined([CaptionFile(path)], [record("d/a"), record("d/b")])
    assert [r.texts for r in found] == [("one  two",), ()]


def test_join__the_table_goes_also_when_a_file_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    good = captions(tmp_path, {"a": "x"})
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError):
        CaptionJoin([good, CaptionFile(tmp_path / "bad.json")])
    with CaptionJoin([good]):
        assert len(list((tmp_path / "t").iterdir())) == 1
    assert list((tmp_path / "t").iterdir()) == []


def test_candidates__the_hash_in_a_key_of_objaverse_xl() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    key = json.dumps(["github", "glb", digest, ""])
    one = Record("objaverse-xl/github/1a", "objaverse-xl", "https://github.com/a/b.glb", key)
    assert digest in candidates(one)
    assert digest not in candidates(replace(one, key=digest + "0"))


def test_candidates__best_first_and_each_once() -> None:
    assert candidates(record("folder/oak/Chair", "oak/Chair.glb")) == [
        "folder/oak/Chair",
        "oak/Chair",
        "Chair",
    ]
    assert candidates(record("x/", "model.obj")) == ["x", "model"]


def test_join__agrees_with_looking_through_all_entries(tmp_path: Path) -> None:
    # The oracle: for every record, the first of its candidates that stands in the file.
    rng = random.Random(0)
    keys = [f"{a}/{b}" for a in ("oak", "ash") for b in ("chair", "table", "x12y34z56", "model")]
    keys += ["chair", "table", "x12y34z56", "d/oak/chair", "model"]
    for _ in range(30):
        content: dict[str, str | list[str]] = {
            key: [f"{key} {i}" for i in range(rng.randint(1, 2))]
            for key in rng.sample(keys, rng.randint(1, len(keys)))
        }
        records = [record(f"d/{key}") for key in keys[:8]]
        for before, after in zip(
            records, joined([captions(tmp_path, content)], records), strict=True
        ):
            wanted: tuple[str, ...] = ()
            for key in candidates(before):
                same = [
                    text
                    for own, texts in content.items()
                    if own == key or (key == "x12y34z56" and own.endswith(key))
                    for text in texts
                ]
                if same:
                    wanted = tuple(same)
                    break
            assert after.texts == wanted


@pytest.mark.slow
def test_join__memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.csv"
    with path.open("w") as stream:
        for i in range(300_000):
            stream.write(f"{i:032x},a caption of some length about object number {i}\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with CaptionJoin([CaptionFile(path)]) as join:
        records = (record(f"objaverse/{i:032x}") for i in range(0, 300_000, 30))
        assert sum(bool(r.texts) for r in join.join(records)) == 10_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < (join_module._CACHE_MB + 60) * 1024
