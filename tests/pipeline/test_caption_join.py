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
    with CaptionJoin(files, lambda: records) as join:
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
        ("folder/oak/object0003", "object0003", True),
        ("folder/oak/object0003", "ash/object0003", False),
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
            "captions_ambiguous": 0,
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

    file = captions(tmp_path, {"a": "x", "c": "y"})
    with CaptionJoin([file], records) as join:
        join.probe()
        assert read == ["b", "a"]
        assert (join.records, join.counts["captions_added"]) == (0, 0)
    with (
        CaptionJoin([file], lambda: [record("d/q")]) as join,
        pytest.raises(InputError, match="names none of the 1 objects"),
    ):
        join.probe()
    with CaptionJoin([file]) as join:
        join.probe()


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


UUID = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0"


@pytest.mark.parametrize(
    "name",
    [UID, UID.upper(), UUID, "1514f187930072575629709336826443",
     "1a04e3eab45ca15dd86060f189eb133", "B07B4DBFJY", "B07HSMVRNK",
     "4kX9vTqLm2Pz", "x12y34z56", "a94a8fe5"],
)  # fmt: skip
def test_join__a_part_that_is_an_identifier_names_its_object(tmp_path: Path, name: str) -> None:
    file = captions(tmp_path, {f"renders/{name}/view_003.png": "a chair"})
    records = [record(f"folder/home/{name}"), record("folder/home/other")]
    assert [r.texts for r in joined([file], records)] == [("a chair",), ()]


@pytest.mark.parametrize(
    "name",
    ["object0003", "building12", "chair_0012", "scene01obj03", "lod0box12", "2020chair", "12345678",
     "LivingRoomChair01Blue2Large", "100x200x300", "deadbeef12", "2x4x8x16"],
)  # fmt: skip
def test_join__a_part_that_is_a_word_with_a_counter_names_none(tmp_path: Path, name: str) -> None:
    file = captions(tmp_path, {f"scene01/{name}.glb": "a red chair", "x": "y"})
    records = [record("d/x"), record(f"folder/kitchen/{name}"), record(f"folder/attic/{name}")]
    assert [r.texts for r in joined([file], records)] == [("y",), (), ()]
    there = [record(f"folder/scene01/{name}"), *records]
    assert [r.texts for r in joined([file], there)] == [("a red chair",), ("y",), (), ()]


def test_join__what_an_object_has_whole_is_not_that_of_another_by_a_part(tmp_path: Path) -> None:
    file = captions(tmp_path, {f"a/{UID}.glb": "one", "chair": "two"})
    whole = [record(f"folder/a/{UID}"), record("folder/chair")]
    others = [record(f"folder/b/{UID}"), record("folder/oak/chair")]
    for records in (whole + others, others + whole):  # whichever comes first
        found = {r.uid: r.texts for r in joined([file], records) if r.texts}
        assert found == {whole[0].uid: ("one",), whole[1].uid: ("two",)}
    assert [r.texts for r in joined([file], others)] == [("one",), ("two",)]


def test_join__a_part_that_fits_several_objects_is_told_and_used_for_none(tmp_path: Path) -> None:
    file = captions(tmp_path, {f"views/{UID}/1.png": "one", "chair": "two", "oak/lamp": "three"})
    several = [f"folder/{room}/{name}" for room in ("oak", "ash") for name in (UID, "chair")]
    records = [record("folder/oak/lamp"), *map(record, several)]
    with CaptionJoin([file], lambda: records) as join:
        join.probe()
        assert [r.texts for r in join.join(records)] == [("three",), (), (), (), ()]
        assert join.lines() == [
            "c.json: captions for 1 of 5 objects; 0 of its 3 texts are for others; 2 name several "
            f"objects and went to none ('views/{UID}/1', for example): give their uids or paths"
        ]
        assert join.counts == {
            "captions_added": 1,
            "captions_unused": 2,
            "captions_ambiguous": 2,
            "captions_over_limit": 0,
        }
    # A run that goes on with the last of them finds the same.
    with CaptionJoin([file], lambda: records) as join:
        assert next(join.join(records[-1:])).texts == ()


def test_probe__a_file_that_names_several_objects_each_time_is_an_error(tmp_path: Path) -> None:
    records = [record("folder/oak/chair_01"), record("folder/ash/chair_01")]
    with (
        CaptionJoin([captions(tmp_path, {"chair_01": "x"})], lambda: records) as join,
        pytest.raises(InputError, match=r"c\.json: names none of the 2 .*'chair_01'.*give uids"),
    ):
        join.probe()


def test_join__a_model_of_shapenet_in_two_synsets(tmp_path: Path) -> None:
    file = captions(tmp_path, {f"03001627_{UID}": "a chair", f"04256520_{UID}": "a sofa"})
    records = [
        record(f"shapenet/{synset}/{UID}", f"{synset}/{UID}/models/model_normalized.obj")
        for synset in ("04256520", "03001627", "02828884")
    ]
    assert [r.texts for r in joined([file], records)] == [("a sofa",), ("a chair",), ()]


def test_join__all_records_are_listed_once_more_and_only_where_parts_matter(
    tmp_path: Path,
) -> None:
    listings = 0

    def listing() -> list[Record]:
        nonlocal listings
        listings += 1
        return [record(f"objaverse/{UID}"), record("objaverse/other")]

    for key, expected in ((UID, 0), (f"renders/{UID}.png", 1)):
        listings = 0
        with CaptionJoin([captions(tmp_path, {key: "x"})], listing) as join:
            assert [r.texts for r in join.join([*listing(), *listing()])][::2] == [("x",)] * 2
        assert listings == 2 + expected


def test_join__agrees_with_looking_through_all_entries(tmp_path: Path) -> None:
    # The oracle: of the first of a record's candidates that stands in the file, the texts that no
    # other record claims as well or better.
    rng = random.Random(0)
    identifier = "x12y34z56"
    keys = [f"{a}/{b}" for a in ("oak", "ash") for b in ("chair", "table", identifier, "model")]
    keys += ["chair", "table", identifier, "d/oak/chair", "model"]

    def claims(one: Record, content: dict[str, list[str]]) -> dict[str, int]:
        """The keys of the file that a record claims, and how: 0 is best."""
        whole = {one.uid, one.uid.partition("/")[2]}
        for key in candidates(one):
            part = {own for own in content if key == identifier and own.endswith("/" + key)}
            if key in content or part:
                found = dict.fromkeys(part, 1 if key in whole else 2)
                return found | ({key: 0 if key in whole else 2} if key in content else {})
        return {}

    for _ in range(60):
        content = {
            key: [f"{key} {i}" for i in range(rng.randint(1, 2))]
            for key in rng.sample(keys, rng.randint(1, len(keys)))
        }
        records = [record(f"d/{key}") for key in rng.sample([*keys[:11], "model"], 9)]
        all_claims = [claims(one, content) for one in records]
        after = joined([captions(tmp_path, {**content})], records)
        for own, found in zip(all_claims, after, strict=True):
            wanted: list[str] = []
            for key, texts in content.items():
                ways = sorted(other[key] for other in all_claims if key in other)
                alone = ways[1:2] != ways[:1]
                if key in own and (own[key] == 0 or (own[key] == ways[0] and alone)):
                    wanted += texts
            assert found.texts == tuple(wanted)


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
