"""Kept pictures: side files that go with their parts, through kills and damage."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.catalog import clean_temporaries, inspect
from pipeline.common import InputError
from pipeline.console import ProgressBar
from pipeline.sets.writing import new_set
from pipeline.shards import (
    ImageSet,
    KeptImages,
    Manifest,
    Row,
    ShardSet,
    clean_orphans,
    create_or_open,
    write_part,
    write_part_with_images,
)
from pipeline.shards.writer import ROW_GROUP_ROWS
from tests.pipeline.shard_tools import make_manifest, make_row, unit


def manifest_of(**changes: object) -> Manifest:
    given = {"n_views": 3, "kept_images": "webp-90", "thumbnails": True, **changes}
    return make_manifest(**given)  # type: ignore[arg-type]


def rows_of(manifest: Manifest, count: int, first: int = 0) -> list[Row]:
    """Rows of which every third has no thumbnail."""
    rows = [make_row(manifest, f"toy/{i:04d}") for i in range(first, first + count)]
    embed = unit(rows[0].image_embeds)[0]
    return [replace(r, thumbnail_embed=embed if i % 3 else None) for i, r in enumerate(rows)]


def pictures_of(rows: list[Row]) -> list[KeptImages]:
    """Bytes that depend on the object and the view, of uneven length."""
    return [
        KeptImages(
            row.uid,
            tuple(f"{row.uid} view {v}".encode() * (v + 1) for v in range(len(row.image_embeds))),
            None if row.thumbnail_embed is None else f"{row.uid} thumbnail".encode(),
        )
        for row in rows
    ]


def make(root: Path, *counts: int) -> list[list[KeptImages]]:
    """A set with one part per count; what was kept, by part."""
    manifest = create_or_open(root, manifest_of())
    kept = []
    for part, count in enumerate(counts):
        rows = rows_of(manifest, count, 1000 * part)
        kept.append(pictures_of(rows))
        write_part_with_images(root, manifest, rows, kept[-1])
    return kept


def test_images__come_back_aligned_with_the_row_groups(tmp_path: Path) -> None:
    kept = make(tmp_path, ROW_GROUP_ROWS + 5, 3)
    shards = ShardSet.open(tmp_path)
    images = ImageSet(shards)
    assert images.format == "webp-90"
    assert [group.n_rows for group in shards.row_groups] == [ROW_GROUP_ROWS, 5, 3]
    found = []
    for group in shards.row_groups:
        batch = images.read(group)
        assert batch.uid == shards.read(group, ["uid"]).uid
        found += [
            KeptImages(u, tuple(v), t)
            for u, v, t in zip(batch.uid, batch.views, batch.thumbnails, strict=True)
        ]
    assert found == [item for part in kept for item in part]
    assert [len(batch) for batch in images.batches()] == [ROW_GROUP_ROWS, 5, 3]


def test_images__single_views_and_groups_can_be_asked_for(tmp_path: Path) -> None:
    ((first, *_),) = make(tmp_path, 2)
    images = ImageSet.open(tmp_path)
    batch = images.read(images.shards.row_groups[0], views=[2, 0])
    assert batch.views[0] == [first.views[2], first.views[0]]
    (single,) = images.batches([1], images.shards.row_groups)
    assert single.views[0] == [first.views[1]]
    with pytest.raises(IndexError):
        images.read(images.shards.row_groups[0], views=[3])


def test_images__a_set_travels_to_other_processes(tmp_path: Path) -> None:
    make(tmp_path, 2)
    images = ImageSet.open(tmp_path)
    group = images.shards.row_groups[0]
    before = images.read(group)
    assert pickle.loads(pickle.dumps(images)).read(group) == before


def test_write_part_with_images__same_content_same_names_and_the_part_of_a_set_without(
    tmp_path: Path,
) -> None:
    manifest = manifest_of()
    rows = rows_of(manifest, 4)
    for folder in ("a", "b"):
        create_or_open(tmp_path / folder, manifest)
    first = write_part_with_images(tmp_path / "a", manifest, rows, pictures_of(rows))
    second = write_part_with_images(tmp_path / "b", manifest, rows, pictures_of(rows))
    assert first == second
    part, name = first
    assert write_part(tmp_path / "b", manifest, rows) == part
    assert name.startswith(f"images-{part.removeprefix('part-').removesuffix('.parquet')}-")
    for file in first:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    # Pictures are compressed already: their pages are as long as they are.
    size = sum(len(v) for item in pictures_of(rows) for v in item.views)
    metadata = pq.read_metadata(tmp_path / "a" / name).row_group(0)
    columns = [metadata.column(i) for i in range(metadata.num_columns)]
    (views,) = (c for c in columns if c.path_in_schema.startswith("views"))
    assert views.compression == "UNCOMPRESSED"
    assert size < views.total_compressed_size < size + 1000


def test_write_part_with_images__pictures_are_there_before_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.shards.storage import Storage

    manifest = create_or_open(tmp_path, manifest_of())
    rows = rows_of(manifest, 2)
    write = Storage.write

    def killed_at_the_part(self: Storage, name: str, data: bytes) -> None:
        if name.startswith("part-"):
            raise KeyboardInterrupt
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", killed_at_the_part)
        with pytest.raises(KeyboardInterrupt):
            write_part_with_images(tmp_path, manifest, rows, pictures_of(rows))
    assert [p.name.split("-")[0] for p in tmp_path.glob("*.parquet")] == ["images"]
    assert len(ShardSet.open(tmp_path)) == 0
    assert list(ImageSet.open(tmp_path).batches()) == []
    # Going on writes both; the file that was there already is the same.
    write_part_with_images(tmp_path, manifest, rows, pictures_of(rows))
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    assert clean_orphans(tmp_path) == 0


def test_clean_orphans__removes_what_has_no_part_and_doubles_and_nothing_else(
    tmp_path: Path,
) -> None:
    make(tmp_path, 2, 3)
    images = sorted(tmp_path.glob("images-*.parquet"))
    gone = next(tmp_path.glob("part-toy-1000-*"))
    gone.unlink()
    double = images[0].with_name(images[0].name[: -len("00000000.parquet")] + "ffffffff.parquet")
    double.write_bytes(images[0].read_bytes())
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".tmp-1-images-x.parquet").write_text("half")
    assert clean_temporaries(tmp_path) == 3
    assert sorted(p.name.split("-")[0] for p in tmp_path.iterdir()) == [
        "images",
        "manifest.json",
        "notes.txt",
        "part",
    ]
    assert len(list(ImageSet.open(tmp_path).batches())) == 1
    assert clean_orphans(tmp_path) == 0
    assert clean_orphans(tmp_path / "nowhere") == 0


def test_inspect__counts_the_bytes_of_kept_pictures(tmp_path: Path) -> None:
    make(tmp_path, 2)
    total = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert inspect(tmp_path).bytes_on_disk == total


def test_image_set__without_pictures_says_how_to_keep_them(tmp_path: Path) -> None:
    create_or_open(tmp_path, make_manifest())
    with pytest.raises(InputError, match=r"keeps no pictures.*--keep-images webp"):
        ImageSet.open(tmp_path)


def test_read__missing_side_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    make(tmp_path, 2)
    next(tmp_path.glob("images-*")).unlink()
    images = ImageSet.open(tmp_path)
    with pytest.raises(InputError, match=r"part-toy-0000.*its pictures .*are missing; put"):
        images.read(images.shards.row_groups[0])


def refused(root: Path) -> str:
    images = ImageSet.open(root)
    with pytest.raises(InputError) as caught:
        list(images.batches())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_read__truncated_side_file_is_refused(tmp_path: Path, keep: int) -> None:
    make(tmp_path, 2)
    path = next(tmp_path.glob("images-*"))
    path.write_bytes(path.read_bytes()[:keep])
    message = refused(tmp_path)
    assert path.name in message
    assert "delete it and part-toy-0000" in message


def test_read__a_changed_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, 2)
    path = next(tmp_path.glob("images-*"))
    whole = path.read_bytes()
    expected = list(ImageSet.open(tmp_path).batches())
    offsets = range(0, len(whole), 11)
    unnoticed = 0
    for at in offsets:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            found = list(ImageSet.open(tmp_path).batches())
        except InputError:
            continue
        assert found == expected, at
        unnoticed += 1
    assert unnoticed < 0.1 * len(offsets)  # spare bytes of page headers


def test_read__side_file_of_other_rows_is_refused(tmp_path: Path) -> None:
    make(tmp_path, 2, 2)
    first, second = sorted(tmp_path.glob("images-*"))
    tail = second.name[-len("00000000.parquet") :]
    second.rename(first.with_name(first.name[: -len(tail)] + tail))
    first.unlink()
    write_again = rows_of(manifest_of(), 2, 1000)
    write_part_with_images(tmp_path, manifest_of(), write_again, pictures_of(write_again))
    assert "its rows are not those of the part" in refused(tmp_path)


def test_read__side_file_of_another_set_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", 2)
    other = manifest_of(sampling_seed=8)
    create_or_open(tmp_path / "b", other)
    rows = rows_of(other, 2)
    _, name = write_part_with_images(tmp_path / "b", other, rows, pictures_of(rows))
    mine = next((tmp_path / "a").glob("images-*"))
    tail = name[-len("00000000.parquet") :]
    (tmp_path / "b" / name).rename(mine.with_name(mine.name[: -len(tail)] + tail))
    mine.unlink()
    assert "it belongs to another shard set" in refused(tmp_path / "a")


def broken(rows: list[Row], kept: list[KeptImages], case: str) -> list[KeptImages]:
    match case:
        case "order":
            return kept[::-1]
        case "fewer":
            return kept[:1]
        case "views":
            return [kept[0], replace(kept[1], views=kept[1].views[:2])]
        case "thumbnail":
            return [kept[0], replace(kept[1], thumbnail=None)]
        case "empty":
            return [kept[0], replace(kept[1], views=(b"", *kept[1].views[1:]))]
    raise AssertionError(case)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("order", "not those of the rows"),
        ("fewer", "not those of the rows"),
        ("views", "2 pictures of 3 views"),
        ("thumbnail", "do not go together"),
        ("empty", "an empty picture"),
    ],
)
def test_write_part_with_images__items_that_do_not_fit_are_an_error(
    tmp_path: Path, case: str, message: str
) -> None:
    manifest = create_or_open(tmp_path, manifest_of())
    rows = rows_of(manifest, 2)
    with pytest.raises(ValueError, match=message):
        write_part_with_images(tmp_path, manifest, rows, broken(rows, pictures_of(rows), case))
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_write_part_with_images__set_that_keeps_none_is_an_error(tmp_path: Path) -> None:
    manifest = manifest_of(kept_images=None)
    rows = rows_of(manifest, 1)
    with pytest.raises(ValueError, match="no pictures are kept"):
        write_part_with_images(tmp_path, manifest, rows, pictures_of(rows))


def test_images__of_two_side_files_the_one_that_is_read_is_kept(tmp_path: Path) -> None:
    make(tmp_path, 3)
    part, name = next(iter(ImageSet.open(tmp_path).files.items()))
    other = name[: -len("00000000.parquet")] + "ffffffff.parquet"
    assert name < other
    (tmp_path / other).write_bytes((tmp_path / name).read_bytes())
    images = ImageSet.open(tmp_path)
    assert images.file_of(part) == name
    assert clean_orphans(tmp_path) == 1
    assert len(images.read(images.shards.row_groups[0])) == 3


def test_copy__pictures_of_rows_that_wait_go_into_the_next_part(tmp_path: Path) -> None:
    kept = [one for part in make(tmp_path / "a", 7, 6) for one in part]
    source = ShardSet.open(tmp_path / "a")
    with new_set(tmp_path / "b", source.manifest, [source], rows_per_part=5) as writer:
        writer.copy(source, ProgressBar("copy", 13, "objects"))
    found = {
        uid: tuple(views)
        for batch in ImageSet.open(tmp_path / "b").batches()
        for uid, views in zip(batch.uid, batch.views, strict=True)
    }
    assert found == {one.uid: tuple(one.views) for one in kept}
