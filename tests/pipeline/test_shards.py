"""The contract: what is written is read back; what breaks it is refused by name."""

from __future__ import annotations

import pickle
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pipeline.shards import (
    POINT_SCALE,
    Batch,
    Failure,
    Manifest,
    Row,
    ShardSet,
    create_or_open,
    decode_xyz,
    write_failures,
    write_part,
)
from pipeline.shards.schema import encode_rows, quantised, row_schema
from pipeline.shards.writer import ROW_GROUP_ROWS, encode_part
from tests.pipeline.shard_tools import make_manifest, make_row, make_set, unit

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COUNT = st.integers(0, 2**63 - 1)
COLUMN_OF = {
    "text_offsets": "text_embeds",
    "thumbnail_embeds": "thumbnail_embed",
    "has_thumbnail": "thumbnail_embed",
}


@st.composite
def embeddings(draw: st.DrawFn, count: int, width: int) -> NDArray[np.float32]:
    """(count, width) unit vectors with exact zeros, ties of float16 rounding and tiny values."""
    values = draw(
        hnp.arrays(np.float32, (count, width), elements=st.floats(-1, 1, width=32, allow_nan=False))
    )
    norms = np.linalg.norm(values, axis=-1)
    values[norms < 1e-3] = np.eye(width, dtype=np.float32)[0]
    return unit(values)


@st.composite
def rows_of(draw: st.DrawFn, manifest: Manifest, uid: str) -> Row:
    """One arbitrary row that keeps the contract."""
    n, v, d = manifest.n_points, manifest.n_views, manifest.teacher.width
    k = draw(st.integers(0, 4))
    return Row(
        uid=uid,
        dataset=draw(TEXT),
        source=draw(TEXT),
        category=draw(st.none() | TEXT),
        split=draw(st.none() | st.sampled_from(["train", "val", "test"])),
        xyz=draw(hnp.arrays(np.float32, (n, 3), elements=st.floats(-1, 1, width=32))),
        rgb=draw(hnp.arrays(np.uint8, (n, 3))),
        has_color=draw(st.booleans()),
        image_embeds=draw(embeddings(v, d)),
        texts=[draw(TEXT) for _ in range(k)],
        text_sources=[draw(TEXT) for _ in range(k)],
        text_embeds=draw(embeddings(k, d)),
        sha256=draw(TEXT),
        n_faces=draw(COUNT),
        n_vertices=draw(COUNT),
        n_bytes=draw(COUNT),
        thumbnail_embed=draw(embeddings(1, d))[0]
        if manifest.thumbnails and draw(st.booleans())
        else None,
    )


@st.composite
def sets(draw: st.DrawFn) -> tuple[Manifest, list[list[Row]]]:
    """A manifest and 1..3 parts of 1..150 rows: a few drawn rows, repeated under other uids."""
    manifest = make_manifest(
        n_points=draw(st.integers(1, 5)),
        n_views=draw(st.integers(0, 3)),
        width=draw(st.integers(1, 5)),
        thumbnails=draw(st.booleans()),
    )
    sizes = draw(
        st.lists(st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129, 150]), min_size=1, max_size=3)
    )
    samples = draw(st.lists(rows_of(manifest, "?"), min_size=1, max_size=5))
    prefix = draw(TEXT)
    rows = [
        replace(samples[index % len(samples)], uid=f"{prefix}/{index}")
        for index in range(sum(sizes))
    ]
    cuts = np.cumsum([0, *sizes]).tolist()
    return manifest, [rows[a:b] for a, b in pairwise(cuts)]


def assert_row_equals(batch: Batch, at: int, row: Row) -> None:
    """Every column of one read row against what was written, within the stated quantisation."""
    assert batch.xyz is not None
    assert batch.rgb is not None
    assert batch.has_color is not None
    assert batch.image_embeds is not None
    assert batch.texts is not None
    assert batch.text_sources is not None
    assert batch.category is not None
    assert batch.split is not None
    assert batch.uid[at] == row.uid
    assert batch.category[at] == row.category
    assert batch.split[at] == row.split
    assert batch.has_color[at] == row.has_color
    assert batch.texts[at] == list(row.texts)
    assert batch.text_sources[at] == list(row.text_sources)
    np.testing.assert_array_equal(batch.rgb[at], row.rgb)
    error = np.abs(batch.xyz[at].astype(np.float64) / POINT_SCALE - row.xyz.astype(np.float64))
    assert error.max(initial=0) <= 0.5 / POINT_SCALE + 1e-12
    np.testing.assert_allclose(batch.xyz_float()[at], batch.xyz[at] / POINT_SCALE, atol=1e-7)
    np.testing.assert_array_equal(batch.image_embeds[at], row.image_embeds.astype(np.float16))
    np.testing.assert_array_equal(batch.texts_of(at), row.text_embeds.astype(np.float16))
    assert batch.thumbnail_embeds is not None
    assert batch.has_thumbnail is not None
    assert batch.has_thumbnail[at] == (row.thumbnail_embed is not None)
    none = np.zeros(row.text_embeds.shape[1])
    thumbnail = none if row.thumbnail_embed is None else row.thumbnail_embed
    np.testing.assert_array_equal(batch.thumbnail_embeds[at], thumbnail.astype(np.float16))


@settings(max_examples=40, deadline=None)
@given(sets())
def test_round_trip__any_rows_are_read_back_within_quantisation(
    made: tuple[Manifest, list[list[Row]]],
) -> None:
    manifest, parts = made
    with tempfile.TemporaryDirectory() as root:
        names = make_set(root, manifest, parts)
        shards = ShardSet.open(root)
        assert shards.manifest == manifest
        assert len(shards) == sum(len(rows) for rows in parts)
        assert all(group.n_rows <= ROW_GROUP_ROWS for group in shards.row_groups)
        batches = list(shards.batches())
        assert [len(batch) for batch in batches] == [g.n_rows for g in shards.row_groups]
        # Parts are read in the order of their names, rows in the order of writing.
        expected = [row for name in sorted(names) for row in parts[names.index(name)]]
        at = 0
        for batch in batches:
            for index in range(len(batch)):
                assert_row_equals(batch, index, expected[at])
                at += 1
        assert shards.uids() == [row.uid for row in expected]
        for uid, (group, index) in shards.places.items():
            assert shards.read(group, ["uid"]).uid[index] == uid
        assert list(shards.places) == shards.uids()


@settings(max_examples=25, deadline=None)
@given(
    columns=st.sets(
        st.sampled_from(
            [
                "category",
                "split",
                "xyz",
                "rgb",
                "has_color",
                "image_embeds",
                "thumbnail_embed",
                "texts",
                "text_sources",
                "text_embeds",
            ]
        )
    ),
    n_views=st.sampled_from([0, 2]),
    thumbnails=st.booleans(),
)
def test_columns__asked_ones_are_equal_and_the_others_are_none(
    columns: set[str], n_views: int, thumbnails: bool
) -> None:
    manifest = make_manifest(n_views=n_views, thumbnails=thumbnails)
    rows = [make_row(manifest, f"toy/{i}", n_texts=i % 4 % 3) for i in range(70)]
    if thumbnails:
        rows[65] = replace(rows[65], thumbnail_embed=np.eye(4, dtype=np.float32)[1])
    with tempfile.TemporaryDirectory() as root:
        make_set(root, manifest, [rows])
        shards = ShardSet.open(root)
        group = shards.row_groups[1]
        whole, some = shards.read(group), shards.read(group, columns)
        assert some.uid == whole.uid == [row.uid for row in rows[64:]]
        for name in vars(whole):
            got, want = getattr(some, name), getattr(whole, name)
            asked = name == "uid" or COLUMN_OF.get(name, name) in columns
            if not asked:
                assert got is None
            elif isinstance(want, np.ndarray):
                np.testing.assert_array_equal(got, want)
            else:
                assert got == want


def test_columns__unknown_name_is_a_programming_error(tmp_path: Any) -> None:
    manifest = make_manifest()
    make_set(tmp_path, manifest, [[make_row(manifest, "toy/1")]])
    shards = ShardSet.open(tmp_path)
    with pytest.raises(ValueError, match="no such column: colour"):
        shards.read(shards.row_groups[0], ["colour"])


def test_batch__helpers_of_columns_that_were_not_read_say_so(tmp_path: Any) -> None:
    manifest = make_manifest()
    make_set(tmp_path, manifest, [[make_row(manifest, "toy/1")]])
    batch = next(ShardSet.open(tmp_path).batches(["rgb"]))
    with pytest.raises(ValueError, match="xyz was not read"):
        batch.xyz_float()
    with pytest.raises(ValueError, match="text_embeds was not read"):
        batch.texts_of(0)


def test_batches__groups_in_the_given_order_and_any_number_of_times(tmp_path: Any) -> None:
    manifest = make_manifest()
    rows = [make_row(manifest, f"toy/{i:03d}") for i in range(150)]
    make_set(tmp_path, manifest, [rows])
    shards = ShardSet.open(tmp_path)
    first, second, third = shards.row_groups
    got = [batch.uid for batch in shards.batches(["category"], [third, first, third, second])]
    uids = [row.uid for row in rows]
    assert got == [uids[128:], uids[:64], uids[128:], uids[64:128]]


def test_decode_xyz__writes_into_a_given_buffer_and_reaches_one() -> None:
    stored = np.array([[-32767, 0, 32767]], np.int16)
    out = np.empty((1, 3), np.float32)
    assert decode_xyz(stored, out) is out
    np.testing.assert_array_equal(out, [[-1, 0, 1]])


def test_open__a_pickled_set_opens_its_files_again(tmp_path: Any) -> None:
    manifest = make_manifest()
    make_set(tmp_path, manifest, [[make_row(manifest, "toy/1")]])
    shards = ShardSet.open(tmp_path)
    assert shards.uids() == ["toy/1"]
    assert pickle.loads(pickle.dumps(shards)).uids() == ["toy/1"]


def test_open__more_parts_than_open_files_are_all_read(tmp_path: Any) -> None:
    manifest = make_manifest()
    make_set(tmp_path, manifest, [[make_row(manifest, f"toy/{i}")] for i in range(10)])
    shards = ShardSet.open(tmp_path, open_files=3)
    expected = sorted(f"toy/{i}" for i in range(10))
    assert sorted(shards.uids()) == expected
    assert sorted(u for b in shards.batches() for u in b.uid) == expected


def test_open__empty_set_has_no_rows(tmp_path: Any) -> None:
    create_or_open(tmp_path, make_manifest())
    shards = ShardSet.open(tmp_path)
    assert (len(shards), shards.uids(), shards.failures()) == (0, [], [])
    assert list(shards.batches()) == []


def test_remote__a_set_in_an_fsspec_store_works() -> None:
    root = f"memory://{uuid.uuid4().hex}/set"
    manifest = make_manifest()
    rows = [make_row(manifest, f"toy/{i}", n_texts=i % 3) for i in range(70)]
    make_set(root, manifest, [rows])
    write_failures(root, [Failure("toy/x", "toy", "x.glb", "load", "Empty", "no faces")])
    assert create_or_open(root, manifest) == manifest
    shards = ShardSet.open(root)
    batches = list(shards.batches())
    for index, row in enumerate(rows):
        assert_row_equals(batches[index // 64], index % 64, row)
    assert [failure.uid for failure in shards.failures()] == ["toy/x"]


def test_rows__are_those_that_were_written_and_can_be_written_again(tmp_path: Any) -> None:
    manifest = make_manifest(thumbnails=True)
    rows = [
        make_row(
            manifest,
            f"toy/{i:02d}",
            n_texts=i % 3,
            thumbnail_embed=np.eye(4, dtype=np.float32)[i % 4] if i % 2 else None,
        )
        for i in range(70)
    ]
    (name,) = make_set(tmp_path / "a", manifest, [rows])
    shards = ShardSet.open(tmp_path / "a")
    back = [row for group in shards.row_groups for row in shards.rows(group)]
    assert [row.sha256 for row in back] == [row.sha256 for row in rows]
    assert make_set(tmp_path / "b", manifest, [back]) == [name]


def test_thumbnails__sets_without_them_have_the_schema_of_version_1() -> None:
    manifest = make_manifest()
    assert manifest.contract_version == 1
    assert "thumbnail_embed" not in row_schema(manifest).names
    with_them = make_manifest(thumbnails=True)
    assert with_them.contract_version == 2
    assert "thumbnail_embed" in row_schema(with_them).names


def test_thumbnails__one_in_a_set_without_is_a_programming_error(tmp_path: Any) -> None:
    manifest = make_manifest()
    row = make_row(manifest, "toy/1", thumbnail_embed=np.eye(4, dtype=np.float32)[0])
    with pytest.raises(ValueError, match="toy/1: thumbnail_embed is there"):
        write_part(tmp_path, manifest, [row])
    manifest = make_manifest(thumbnails=True)
    cases: list[Any] = [np.zeros(4, np.float32), np.ones(3, np.float32), np.ones(4, np.uint8)]
    for bad in cases:
        with pytest.raises(ValueError, match="toy/1: thumbnail_embed"):
            write_part(tmp_path, manifest, [replace(row, thumbnail_embed=bad)])


def test_failures__round_trip_in_the_order_of_files(tmp_path: Any) -> None:
    create_or_open(tmp_path, make_manifest())
    made = [Failure(f"toy/{i}", "toy", "ü.glb", "load", "Kind", "a\nb") for i in range(100)]
    write_failures(tmp_path, made[:60])
    write_failures(tmp_path, made[60:])
    assert sorted(ShardSet.open(tmp_path).failures(), key=made.index) == made


def test_failures__text_that_is_not_unicode_is_escaped_not_lost(tmp_path: Any) -> None:
    create_or_open(tmp_path, make_manifest())
    name = b"caf\xe9.glb".decode("utf-8", "surrogateescape")
    write_failures(tmp_path, [Failure("toy/1", "toy", name, "load", "Kind", f"{name}: bad")])
    (failure,) = ShardSet.open(tmp_path).failures()
    assert failure.source == "caf\\udce9.glb"
    assert failure.message == "caf\\udce9.glb: bad"


N = 8  # points of make_manifest
BAD_ROWS: dict[str, tuple[str, Any]] = {
    "uid not unicode": ("uid", "toy/\ud800"),
    "dataset none": ("dataset", None),
    "source number": ("source", 3),
    "category number": ("category", 3),
    "split bool": ("split", True),
    "sha256 none": ("sha256", None),
    "xyz too few": ("xyz", np.zeros((N - 1, 3), np.float32)),
    "xyz flat": ("xyz", np.zeros(3 * N, np.float32)),
    "xyz integer": ("xyz", np.zeros((N, 3), np.int32)),
    "xyz millimetres": ("xyz", np.full((N, 3), 500, np.float32)),
    "xyz nan": ("xyz", np.full((N, 3), np.nan, np.float32)),
    "rgb float": ("rgb", np.zeros((N, 3), np.float32)),
    "rgb wide": ("rgb", np.zeros((N, 3), np.uint16)),
    "rgb alpha": ("rgb", np.zeros((N, 4), np.uint8)),
    "has_color number": ("has_color", 1),
    "image too few": ("image_embeds", np.ones((1, 4), np.float32)),
    "image long": ("image_embeds", np.full((2, 4), 3, np.float32)),
    "image zero": ("image_embeds", np.zeros((2, 4), np.float32)),
    "image nan": ("image_embeds", np.full((2, 4), np.nan)),
    "image integer": ("image_embeds", np.eye(4, dtype=int)[:2]),
    "texts none": ("texts", [None, "a"]),
    "texts not unicode": ("texts", ["a", "\udcff"]),
    "sources few": ("text_sources", ["name"]),
    "sources none": ("text_sources", ["name", None]),
    "text embeds many": ("text_embeds", np.eye(4, dtype=np.float32)),
    "text embeds long": ("text_embeds", np.full((2, 4), 2.0)),
    "n_faces float": ("n_faces", 1.5),
    "n_vertices negative": ("n_vertices", -1),
    "n_bytes huge": ("n_bytes", 2**63),
    "n_bytes bool": ("n_bytes", True),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_write_part__broken_contract_names_uid_and_column(case: str, tmp_path: Any) -> None:
    column, value = BAD_ROWS[case]
    manifest = make_manifest()
    good = make_row(manifest, "toy/good")
    bad = make_row(manifest, "toy/bad")
    bad = replace(bad, **{column: value})
    with pytest.raises(ValueError) as caught:
        write_part(tmp_path, manifest, [good, bad])
    message = str(caught.value)
    assert message.startswith("toy/" if column == "uid" else "toy/bad: ")
    assert column in message.split(": ", 1)[1].split(" ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.float32(1), 1.0 + 5e-5, -1.0 - 5e-5])
def test_write_part__xyz_within_rounding_of_the_sphere_is_clipped(
    value: float, tmp_path: Any
) -> None:
    manifest = make_manifest()
    row = make_row(manifest, "toy/1", xyz=np.full((manifest.n_points, 3), value, np.float32))
    make_set(tmp_path, manifest, [[row]])
    batch = next(ShardSet.open(tmp_path).batches(["xyz"]))
    np.testing.assert_array_equal(batch.xyz_float(), np.sign(value))


def test_write_part__same_uid_twice_or_empty_or_no_rows(tmp_path: Any) -> None:
    manifest = make_manifest()
    row = make_row(manifest, "toy/1")
    with pytest.raises(ValueError, match="toy/1: this uid comes twice"):
        write_part(tmp_path, manifest, [row, row])
    with pytest.raises(ValueError, match="empty uid"):
        write_part(tmp_path, manifest, [replace(row, uid="")])
    with pytest.raises(ValueError, match="no rows"):
        write_part(tmp_path, manifest, [])
    with pytest.raises(ValueError, match="no failures"):
        write_failures(tmp_path, [])
    with pytest.raises(ValueError, match="toy/1: message is None"):
        write_failures(tmp_path, [Failure("toy/1", "a", "b", "c", "d", None)])  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_write_part__numpy_scalars_and_float64_are_taken(tmp_path: Any) -> None:
    manifest = make_manifest()
    row = make_row(manifest, "toy/1")
    changes: dict[str, Any] = {
        "xyz": row.xyz.astype(np.float64),
        "image_embeds": row.image_embeds.astype(np.float64),
        "has_color": np.bool_(True),
        "n_faces": np.int32(5),
    }
    wide = replace(row, **changes)
    make_set(tmp_path, manifest, [[wide]])
    assert_row_equals(next(ShardSet.open(tmp_path).batches()), 0, wide)


def test_write_part__same_rows_same_name_and_bytes(tmp_path: Any) -> None:
    manifest = make_manifest()
    rows = [make_row(manifest, f"toy/{i}") for i in range(100)]
    (name,) = make_set(tmp_path / "a", manifest, [rows])
    before = (tmp_path / "a" / name).read_bytes()
    assert write_part(tmp_path / "a", manifest, rows) == name
    assert write_part(tmp_path / "b", manifest, rows) == name
    assert (tmp_path / "a" / name).read_bytes() == before
    assert (tmp_path / "b" / name).read_bytes() == before
    assert len(list((tmp_path / "a").iterdir())) == 2


@settings(max_examples=20, deadline=None)
@given(column=st.sampled_from(["xyz", "rgb", "texts", "category", "n_faces"]))
def test_write_part__any_other_content_has_another_name(column: str) -> None:
    manifest = make_manifest()
    row = make_row(manifest, "toy/1")
    changed: dict[str, Any] = {
        "xyz": -row.xyz,
        "rgb": 255 - row.rgb,
        "texts": ["other", "words"],
        "category": None,
        "n_faces": row.n_faces + 1,
    }
    with tempfile.TemporaryDirectory() as root:
        names = make_set(root, manifest, [[row], [replace(row, **{column: changed[column]})]])
        assert names[0] != names[1]


@pytest.mark.parametrize("uid", ["a/../../b", "стул/№1", "x" * 300, "a b\nc", ".", "-"])
def test_write_part__any_uid_gives_a_plain_file_name(uid: str, tmp_path: Any) -> None:
    manifest = make_manifest()
    (name,) = make_set(tmp_path, manifest, [[make_row(manifest, uid)]])
    assert "/" not in name
    assert name.isascii()
    assert len(name) < 120
    assert (tmp_path / name).is_file()
    assert ShardSet.open(tmp_path).uids() == [uid]


def test_quantised__rows_give_the_same_part_and_what_leaves_the_range_is_refused() -> None:
    manifest = make_manifest()
    rows = [make_row(manifest, f"toy/{n}") for n in range(3)]
    assert encode_part(manifest, [quantised(row) for row in rows]) == encode_part(manifest, rows)
    twice = [quantised(quantised(row)) for row in rows]
    assert encode_part(manifest, twice) == encode_part(manifest, rows)
    with pytest.raises(ValueError, match="xyz leaves"):
        quantised(replace(rows[0], xyz=rows[0].xyz * 3))


def test_read__from_several_threads_gives_the_rows_of_one(tmp_path: Path) -> None:
    manifest = make_manifest()
    rows = [make_row(manifest, f"t/{i:02d}") for i in range(60)]
    make_set(tmp_path, manifest, [rows[start : start + 6] for start in range(0, 60, 6)])
    opened = ShardSet.open(tmp_path, open_files=3)  # others are closed meanwhile
    expected = {group: opened.read(group).uid for group in opened.row_groups}

    def look(seed: int) -> bool:
        order = np.random.default_rng(seed).integers(len(opened.row_groups), size=150)
        groups = [opened.row_groups[place] for place in order]
        return all(opened.read(group, ["xyz", "rgb"]).uid == expected[group] for group in groups)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(look, range(8)))
    assert (
        pickle.loads(pickle.dumps(opened)).read(opened.row_groups[0]).uid
        == expected[opened.row_groups[0]]
    )


@pytest.mark.parametrize("value", [1.5, -1.5])
def test_encode_rows__coordinates_beyond_either_side_are_refused(value: float) -> None:
    manifest = make_manifest()
    xyz = np.zeros((8, 3), np.float32)
    xyz[3, 1] = value
    with pytest.raises(ValueError, match="xyz leaves"):
        encode_rows([make_row(manifest, "a", xyz=xyz)], manifest)
