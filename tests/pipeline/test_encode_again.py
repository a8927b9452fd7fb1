"""A set encoded again by another teacher, against encoding its objects by that teacher at once."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import encode_again as module
from pipeline.cli import app
from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.encode import Encoder
from pipeline.encode_again import EncodeAgainOptions, EncodeAgainSummary, encode_again
from pipeline.lock import exclusive
from pipeline.objects import Processed, teacher_size
from pipeline.pictures import at_sizes, encode_webp
from pipeline.shards import (
    Contents,
    Failure,
    ImageSet,
    KeptImages,
    Manifest,
    Row,
    ShardSet,
    compare_contents,
    create_or_open,
    write_failures,
    write_part,
    write_part_with_images,
)
from pipeline.teacher import Teacher, load_clip
from tests.pipeline.shard_tools import make_manifest, unit
from tests.pipeline.test_teacher import TINY, photos, write_teacher
from tests.running import run as run_command

COUNT, VIEWS, SIZE, POINTS = 9, 3, 40, 8
TEMPLATES = ("a {}", "a 3D model of a {}")
OPTIONS: dict[str, Any] = {"batch_size": 32, "fixed_batch": True}  # as the command has them on CPUs


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{write_teacher(tmp_path_factory.mktemp('first') / 'a')}"


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher of another width that reads larger pictures than the set keeps."""
    vision = {**TINY["vision_cfg"], "image_size": 48}
    folder = tmp_path_factory.mktemp("wider") / "b"
    return f"local-dir:{write_teacher(folder, seed=1, embed_dim=24, vision_cfg=vision)}"


def pictures(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(VIEWS + 1, SIZE, SIZE, 4) as a renderer gives them: the last one is the thumbnail."""
    colours = np.roll(photos(VIEWS + 1 + index, SIZE), index, 0)[: VIEWS + 1]
    found = np.concatenate([colours, np.zeros((VIEWS + 1, SIZE, SIZE, 1), np.uint8)], -1)
    found[:, :6] = 255, 255, 255, 0
    found[:, 6:, ..., 3] = 255
    return found


def objects(teacher: Teacher) -> list[Processed]:
    size = teacher_size(teacher.info)
    made = []
    for index in range(COUNT):
        rng = np.random.default_rng(index)
        drawn = at_sizes(pictures(index), [size])[size]
        texts = [("red mug", "name"), (f"a mug number {index}", "caption"), ("mug, cup", "tags")]
        made.append(
            Processed(
                record=Record(
                    f"toy/{index}", "toy", f"{index}.glb", "key", "mug", ("train", None)[index % 2]
                ),
                texts=tuple(text for text, _ in texts[: index % 4]),
                text_sources=tuple(source for _, source in texts[: index % 4]),
                images={size: drawn[:VIEWS]},
                xyz=rng.uniform(-1, 1, (POINTS, 3)).astype(np.float32),
                rgb=rng.integers(0, 256, (POINTS, 3), dtype=np.uint8),
                has_color=bool(index % 2),
                sha256=f"{index:064x}",
                n_faces=index,
                n_vertices=2 * index,
                n_bytes=3 * index,
                thumbnail={size: drawn[VIEWS]} if index % 3 else {},
            )
        )
    return made


def kept(index: int, form: str) -> KeptImages:
    files = [encode_webp(view[..., :3], form) for view in pictures(index)]
    return KeptImages(f"toy/{index}", files[:VIEWS], files[VIEWS] if index % 3 else None)


def direct(spec: str) -> list[Row]:
    """Rows as ``pipeline embed`` makes them with a teacher."""
    teacher = load_clip(spec, **OPTIONS)
    return Encoder(teacher, TEMPLATES).encode(objects(teacher))


def make(root: Path, spec: str, form: str | None = "webp-lossless", **changes: Any) -> Manifest:
    """A set with parts of 4 rows and a failure."""
    manifest = make_manifest(
        n_points=POINTS,
        n_views=VIEWS,
        thumbnails=True,
        kept_images=form,
        teacher=load_clip(spec).info,
        templates=list(TEMPLATES),
        **changes,
    )
    create_or_open(root, manifest)
    rows = direct(spec)
    for start in range(0, COUNT, 4):
        part = rows[start : start + 4]
        if form:
            files = [kept(start + at, form) for at in range(len(part))]
            write_part_with_images(root, manifest, part, files)
        else:
            write_part(root, manifest, part)
    write_failures(root, [Failure("toy/bad", "toy", "bad.glb", "load", "truncated", "short")])
    return manifest


def run(shards: Path, out: Path, spec: str, **options: Any) -> EncodeAgainSummary:
    options = {"rows_per_part": 4, "device": "cpu", **options}
    return encode_again(EncodeAgainOptions(str(shards), spec, str(out), **options))


def rows_of(root: Path) -> list[Row]:
    shards = ShardSet.open(root)
    found = [row for group in shards.row_groups for row in shards.rows(group)]
    return sorted(found, key=lambda row: row.uid)


def files_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name[0] != "."}


def half(values: Any) -> Any:
    return np.asarray(values, np.float16)


def assert_rows(found: Sequence[Row], expected: Sequence[Row], *, views: bool = True) -> None:
    """Equal to the bit, with ``expected`` rounded as it is when it is stored."""
    assert [row.uid for row in found] == [row.uid for row in expected]
    for ours, row in zip(found, expected, strict=True):
        for name in ("dataset", "source", "category", "split", "has_color", "sha256", "n_faces",
                     "n_vertices", "n_bytes"):  # fmt: skip
            assert getattr(ours, name) == getattr(row, name), name
        assert list(ours.texts) == list(row.texts)
        assert list(ours.text_sources) == list(row.text_sources)
        assert np.abs(ours.xyz - row.xyz).max() < 1 / 32767
        assert np.array_equal(ours.rgb, row.rgb)
        assert np.array_equal(ours.text_embeds, half(row.text_embeds))
        if views:
            assert np.array_equal(ours.image_embeds, half(row.image_embeds))
            assert (ours.thumbnail_embed is None) == (row.thumbnail_embed is None)
            if ours.thumbnail_embed is not None:
                assert np.array_equal(ours.thumbnail_embed, half(row.thumbnail_embed))


def test_encode_again__same_teacher_gives_the_same_rows(first: str, tmp_path: Path) -> None:
    manifest = make(tmp_path / "in", first)
    summary = run(tmp_path / "in", tmp_path / "out", first)
    assert compare_contents(tmp_path / "out") == Contents(4, [], [])
    before, after = rows_of(tmp_path / "in"), rows_of(tmp_path / "out")
    assert_rows(after, before)
    assert all(np.array_equal(a.xyz, b.xyz) for a, b in zip(after, before, strict=True))
    thumbnails = sum(index % 3 > 0 for index in range(COUNT))
    assert (summary.encoded, summary.skipped, summary.failures) == (COUNT, 0, 1)
    assert summary.pictures == COUNT * VIEWS + thumbnails
    assert summary.texts == sum(index % 4 for index in range(COUNT))
    found = ShardSet.open(tmp_path / "out")
    assert found.failures() == ShardSet.open(tmp_path / "in").failures()
    assert found.manifest.kept_images is None
    assert found.manifest.difference(replace(manifest, kept_images=None)) is None
    assert found.manifest.versions is not None
    assert found.manifest.versions["teacher_precision"] == "fp32"
    assert found.manifest.versions["numpy"] == "2.0"  # as the set had it


def test_encode_again__another_teacher_of_another_width_and_size(
    first: str, wider: str, tmp_path: Path
) -> None:
    make(tmp_path / "in", first)
    run(tmp_path / "in", tmp_path / "out", wider, keep_images=True)
    found = ShardSet.open(tmp_path / "out")
    assert found.manifest.teacher.width == 24
    assert_rows(rows_of(tmp_path / "out"), direct(wider))
    # The pictures went along as they were, and serve to encode once more.
    copied = {
        uid: (views, thumbnail)
        for batch in ImageSet(found).batches()
        for uid, views, thumbnail in zip(batch.uid, batch.views, batch.thumbnails, strict=True)
    }
    for index in range(COUNT):
        original = kept(index, "webp-lossless")
        assert copied[original.uid] == (original.views, original.thumbnail)
    run(tmp_path / "out", tmp_path / "back", first)
    assert_rows(rows_of(tmp_path / "back"), rows_of(tmp_path / "in"))


def test_encode_again__pictures_with_losses_are_told_apart(
    first: str, wider: str, tmp_path: Path
) -> None:
    make(tmp_path / "in", first, "webp-90")
    run(tmp_path / "in", tmp_path / "out", wider)
    found, expected = rows_of(tmp_path / "out"), direct(wider)
    assert_rows(found, expected, views=False)
    cosines = [
        (np.float32(ours.image_embeds) * row.image_embeds).sum(1)
        for ours, row in zip(found, expected, strict=True)
    ]
    assert np.min(cosines) > 0.98
    assert np.max(cosines) < 0.999999  # encoded from what was kept, not from elsewhere
    manifest = ShardSet.open(tmp_path / "out").manifest
    assert manifest.renderer["encoded_from"] == "webp-90"
    # A set of the same objects with nothing lost is another one.
    make(tmp_path / "lossless", first)
    with pytest.raises(InputError, match=r"renderer.encoded_from"):
        run(tmp_path / "lossless", tmp_path / "out", wider)


def test_encode_again__without_pictures_texts_alone(
    first: str, wider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "in", first, None)
    summary = run(tmp_path / "in", tmp_path / "out", wider)
    manifest = ShardSet.open(tmp_path / "out").manifest
    assert (manifest.n_views, manifest.thumbnails, summary.pictures) == (0, False, 0)
    assert manifest.contract_version == 1  # nothing in it is newer
    found = rows_of(tmp_path / "out")
    assert_rows(found, direct(wider), views=False)
    assert {row.image_embeds.shape for row in found} == {(0, 24)}
    err = " ".join(capsys.readouterr().err.split())
    assert "keeps no pictures: only texts are encoded" in err
    assert "pipeline embed --keep-images webp" in err
    # Once more, of what has no views anyway: nothing to warn of.
    run(tmp_path / "out", tmp_path / "back", first)
    assert "keeps no pictures" not in capsys.readouterr().err
    assert_rows(rows_of(tmp_path / "back"), rows_of(tmp_path / "in"), views=False)


@pytest.mark.parametrize("keep_images", [False, True])
def test_encode_again__killed_and_run_again_is_as_if_undisturbed(
    first: str, wider: str, tmp_path: Path, keep_images: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "in", first)
    options: dict[str, Any] = {"keep_images": keep_images, "rows_per_part": 3}
    run(tmp_path / "in", tmp_path / "whole", wider, **options)
    out = tmp_path / "out"
    name = "write_part_with_images" if keep_images else "write_part"
    original = getattr(module, name)
    calls = []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dies)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "in", out, wider, **options)
    assert len(rows_of(out)) == 3
    (out / ".tmp-left-behind").write_bytes(b"half of a part")
    summary = run(tmp_path / "in", out, wider, **options)
    assert (summary.encoded, summary.skipped) == (6, 3)
    whole = files_of(tmp_path / "whole")
    assert files_of(out) == whole
    assert not (out / ".tmp-left-behind").exists()
    # A part that is lost is made again; after that there is nothing to do.
    sorted(out.glob("part-*"))[1].unlink()
    assert run(tmp_path / "in", out, wider, **options).encoded == 3
    assert files_of(out) == whole
    assert run(tmp_path / "in", out, wider, **options).encoded == 0
    assert files_of(out) == whole


def test_encode_again__a_part_does_not_depend_on_how_many_pictures_fit(
    first: str, wider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "in", first)
    run(tmp_path / "in", tmp_path / "a", wider)
    monkeypatch.setattr(module, "_PICTURES_AT_ONCE", 2)  # fewer than one object has
    run(tmp_path / "in", tmp_path / "b", wider)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_encode_again__embeddings_of_a_teacher_known_by_name_alone(
    first: str, wider: str, tmp_path: Path
) -> None:
    info = replace(load_clip(first).info, fingerprint_image=[], fingerprint_text=[])
    manifest = make_manifest(
        n_points=POINTS, n_views=VIEWS, thumbnails=True, teacher=info, templates=list(TEMPLATES)
    )
    create_or_open(tmp_path / "in", manifest)
    write_part(tmp_path / "in", manifest, direct(first))
    run(tmp_path / "in", tmp_path / "out", wider)
    assert ShardSet.open(tmp_path / "out").manifest.teacher.has_fingerprint
    assert_rows(rows_of(tmp_path / "out"), direct(wider), views=False)


def test_encode_again__by_a_teacher_of_vectors_keeps_known_names_and_categories(
    first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "in", first)
    vectors = unit(np.random.default_rng(0).normal(size=(2, 12)))
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "names.txt").write_text("mug\na mug number 2\n")
    spec = f"vectors:{tmp_path}/v.npy,{tmp_path}/names.txt"
    with pytest.raises(InputError, match=r"--keep-images: .* does not embed images"):
        run(tmp_path / "in", tmp_path / "out", spec, keep_images=True)
    assert not (tmp_path / "out").exists()
    summary = run(tmp_path / "in", tmp_path / "out", spec)
    assert "does not embed images" in capsys.readouterr().err
    for index, row in enumerate(rows_of(tmp_path / "out")):
        known = [("a mug number 2", "caption", 1)] if index == 2 else [("mug", "category", 0)]
        if index % 4 == 0:  # had no text, and has none now
            known = []
        assert list(row.texts) == [text for text, _, _ in known]
        assert list(row.text_sources) == [source for _, source, _ in known]
        assert np.array_equal(row.text_embeds, half(vectors[[place for *_, place in known]]))
    assert summary.texts_unknown == sum(index % 4 for index in range(COUNT)) - 1
    assert (summary.pictures, summary.objects_without_text) == (0, len(range(0, COUNT, 4)))


def test_encode_again__another_precision_may_go_on_with_a_set(
    first: str, wider: str, tmp_path: Path
) -> None:
    make(tmp_path / "in", first)
    out = tmp_path / "out"
    run(tmp_path / "in", out, wider)
    sorted(out.glob("part-*"))[0].unlink()
    summary = run(tmp_path / "in", out, wider, precision="bf16")
    assert (summary.encoded, summary.precision) == (4, "bf16")
    for ours, row in zip(rows_of(out), direct(wider), strict=True):
        assert (np.float32(ours.image_embeds) * row.image_embeds).sum(1).min() > 0.999
    manifest = ShardSet.open(out).manifest
    assert manifest.versions is not None
    assert manifest.versions["teacher_precision"] == "fp32"  # of the run that began it


def test_encode_again__what_cannot_be(first: str, wider: str, tmp_path: Path) -> None:
    shards, out = tmp_path / "in", tmp_path / "out"
    make(shards, first)
    with pytest.raises(InputError, match=r"--out .*: is the input set"):
        run(shards, tmp_path / "x" / ".." / "in", wider)
    with pytest.raises(InputError, match="this is not a shard set"):
        run(tmp_path / "none", out, wider)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .*file is a file, not a folder"):
        run(shards, tmp_path / "file" / "x", wider)
    assert not out.exists()
    run(shards, out, wider)
    with pytest.raises(InputError, match=r"differs from the set in teacher"):
        run(shards, out, first)
    with exclusive(str(out)), pytest.raises(InputError, match="another run is using"):
        run(shards, out, wider)
    with pytest.raises(InputError, match=r"--keep-images: .* keeps no pictures"):
        run(out, tmp_path / "more", wider, keep_images=True)
    next(iter(shards.glob("images-*"))).unlink()
    with pytest.raises(InputError, match=r"its pictures .* are missing"):
        run(shards, tmp_path / "more", wider)
    assert not (tmp_path / "more").exists()


def test_encode_again__kept_bytes_that_are_no_picture(first: str, tmp_path: Path) -> None:
    manifest = make(tmp_path / "in", first)
    row = replace(direct(first)[1], uid="toy/odd")
    files = replace(kept(1, "webp-lossless"), uid="toy/odd", thumbnail=b"no picture")
    write_part_with_images(tmp_path / "in", manifest, [row], [files])
    with pytest.raises(InputError, match=r"part-.*the kept pictures of toy/odd cannot be read"):
        run(tmp_path / "in", tmp_path / "out", first)


def test_command__tells_what_it_did(first: str, wider: str, tmp_path: Path) -> None:
    make(tmp_path / "in", first)
    arguments = ["encode-again", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    options = ["--teacher", wider, "--device", "cpu", "--precision", "bf16", "--json"]
    done = CliRunner().invoke(app, [*arguments, *options])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert (told["encoded"], told["failures"], told["precision"]) == (COUNT, 1, "bf16")
    assert told["teacher"].startswith("local-dir:b")
    assert f"{COUNT} objects encoded by local-dir:b" in " ".join(done.stderr.split())
    bad = CliRunner().invoke(app, [*arguments, "--teacher", wider, "--precision", "fp16"])
    assert isinstance(bad.exception, InputError)


def test_command__interrupted_it_says_what_is_kept_and_goes_on(
    first: str,
    wider: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "in", first)
    out = tmp_path / "out"
    line = ["encode-again", str(tmp_path / "in"), "--teacher", wider, "--out", str(out)]
    line += ["--rows-per-part", "3", "--device", "cpu"]
    calls: list[int] = []

    def stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return write_part(*arguments)

    def run_line() -> int:
        return run_command(monkeypatch, "pipeline", *line)

    monkeypatch.setattr(module, "write_part", stopped)
    assert run_line() == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"interrupted: finished parts are kept in {out}; run the same command again to continue"
    )
    assert len(rows_of(out)) == 3
    assert not list(out.glob(".tmp-*"))
    assert run_line() == 0
    assert len(rows_of(out)) == COUNT
