"""Text embeddings by name from a file, in the place of a text tower."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cameras import ring
from pipeline.captions import CaptionJoin, CaptionOptions
from pipeline.common import InputError
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.encode_again import EncodeAgainOptions, encode_again
from pipeline.job import EmbedOptions, for_teachers, prepare, to_do
from pipeline.objects import ObjectSettings, Processed, process
from pipeline.renderers.base import RenderConfig
from pipeline.shards import ShardSet
from pipeline.spool import SpoolReader
from pipeline.stages import EncodeStage, pack, write_stage
from pipeline.teacher import load_matching, load_teacher
from pipeline.teachers.vectors import VectorTeacher, spec, teacher_specs
from tests.pipeline.test_teacher import TINY, photos, write_teacher
from tests.running import run

NAMES = ["Chair", "coffee_mug", "the table", "an axe"]
WIDTH = int(TINY["embed_dim"])


def table(width: int = WIDTH, dtype: Any = np.float16) -> NDArray[Any]:
    return np.random.default_rng(0).normal(3, 1, (len(NAMES), width)).astype(dtype)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    np.save(tmp_path / "words.npy", table())
    (tmp_path / "words.txt").write_text("\n".join(NAMES) + "\n")
    return tmp_path / "words.npy", tmp_path / "words.txt"


def test_names__are_found_whatever_case_underscores_and_articles() -> None:
    teacher = VectorTeacher(NAMES, table())
    unit = table().astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = teacher.encode_texts(["a chair", "Coffee Mug", "table", "axe", "chair"])
    np.testing.assert_allclose(found, unit[[0, 1, 2, 3, 0]], atol=1e-6)
    np.testing.assert_array_equal(teacher.encode_prompts(["chair"], ["a photo of {}"]), found[:1])
    assert teacher.encode_texts([]).shape == (0, WIDTH)
    assert teacher.knows("CHAIR")
    assert not teacher.knows("chairs")
    with pytest.raises(InputError, match=r"'chairs': not among the 4 names .*near: chair\)"):
        teacher.encode_texts(["chair", "chairs"])
    with pytest.raises(InputError, match="cannot embed pictures"):
        teacher.encode_images(photos(1, 32))


@pytest.mark.parametrize("kind", ["txt", "json", "rows", "objects", "csv", "column", "npz"])
def test_files__every_form_is_the_same_teacher(tmp_path: Path, kind: str) -> None:
    plain = VectorTeacher(NAMES, table())
    if kind == "npz":
        np.savez(tmp_path / "w.npz", names=np.array(NAMES), emb=table())
        asked = spec(str(tmp_path / "w.npz"))
    else:
        np.save(tmp_path / "w.npy", table())
        rows = dict(zip(NAMES, range(4), strict=True))
        text = {
            "txt": "\n".join(NAMES),
            "json": json.dumps(NAMES),
            "rows": json.dumps(dict(reversed(rows.items()))),
            "objects": json.dumps([{"id": 7, "name": name} for name in NAMES]),
            "csv": "\n".join(f"{name},x" for name in NAMES),
            "column": "id,name\n" + "\n".join(f"7,{name}" for name in NAMES),
        }[kind]
        suffix = {"txt": "txt", "csv": "csv", "column": "csv"}.get(kind, "json")
        (tmp_path / f"n.{suffix}").write_text(text)
        asked = spec(str(tmp_path / "w.npy"), str(tmp_path / f"n.{suffix}"))
    found = load_teacher(asked)
    assert found.info == plain.info
    assert found.info.mismatch(plain.info) is None
    assert not found.info.has_images
    other = VectorTeacher(NAMES, table() + np.float16(0.5))
    assert other.info.mismatch(plain.info)
    with pytest.raises(InputError, match="give it with --teacher vectors:FILE"):
        load_matching(plain.info)
    with pytest.raises(InputError, match="not the one that made the embeddings"):
        load_matching(other.info, asked)


@pytest.mark.parametrize(
    ("vectors", "names", "told"),
    [
        (table()[:3], "\n".join(NAMES), "4 names for vectors of shape"),
        (table()[0], "\n".join(NAMES), "of shape"),
        (np.zeros((4, 16), np.float32), "\n".join(NAMES), "is 0 or not finite"),
        (table() * np.float32(np.nan), "\n".join(NAMES), "is 0 or not finite"),
        (table().astype(np.int64), "\n".join(NAMES), "expected a table of floats"),
        (np.array([{"a": 1}], object), "a", "not readable"),
        (table(), "", "0 names"),
    ],
)
def test_files__that_do_not_fit_are_one_line(
    tmp_path: Path, vectors: NDArray[Any], names: str, told: str
) -> None:
    np.save(tmp_path / "w.npy", vectors, allow_pickle=True)
    (tmp_path / "n.txt").write_text(names)
    with pytest.raises(InputError, match=told):
        load_teacher(spec(str(tmp_path / "w.npy"), str(tmp_path / "n.txt")))


def test_specs__what_does_not_go_together_is_refused(files: tuple[Path, Path]) -> None:
    vectors, names = map(str, files)
    assert teacher_specs([], None, None) == ("demo",)
    # demo has another width, so there are no pictures.
    assert teacher_specs([], vectors, names) == (f"vectors:{vectors},{names}",)
    with pytest.raises(InputError, match="needs --text-embeddings"):
        teacher_specs([], None, names)
    with pytest.raises(InputError, match="one --teacher"):
        teacher_specs(["demo", "x"], vectors, names)
    with pytest.raises(InputError, match=r"embeds to width 128, .* to 16"):
        teacher_specs(["demo"], vectors, names)
    with pytest.raises(InputError, match="has no names"):
        load_teacher(f"vectors:{vectors}")
    with pytest.raises(InputError, match="no such file"):
        load_teacher("vectors:nowhere.npy,nowhere.txt")


def embed(out: Path, *teachers: str, **changes: Any) -> ShardSet:
    """The stages of ``pipeline embed`` without Ray."""
    objects = ObjectSettings(
        dataset=ProceduralDataset(count=6, seed=3),
        cameras=ring(2),
        render=RenderConfig(image_size=48),
        n_points=64,
        n_fps=32,
        thumbnail=True,
    )
    objects = replace(objects, **changes)
    options = EmbedOptions(objects=objects, out=str(out), teachers=teachers, device="cpu")
    targets = prepare(options)
    objects = for_teachers(objects, *(t.manifest.teacher for t in targets.targets))
    with CaptionJoin(()) as captions, to_do(options, targets, captions) as (spool, _):
        todo = [i for task in spool.tasks(1) for i in SpoolReader(spool.address).read(task)]
    items = [(process(item.record, objects), item.places) for item in todo]
    assert all(isinstance(item, Processed) for item, _ in items)
    write_stage(pack(EncodeStage(targets).encoded(items)), targets.targets)
    return ShardSet.open(out)


def rows_of(shards: ShardSet) -> list[Any]:
    return [row for group in shards.row_groups for row in shards.rows(group)]


def test_embed__texts_by_name_and_no_views_where_there_are_vectors_alone(tmp_path: Path) -> None:
    plain = rows_of(embed(tmp_path / "plain", "demo"))
    words = sorted({row.category for row in plain})[:2]
    np.savez(tmp_path / "w.npz", names=np.array(words), embeddings=table()[:2])
    asked = spec(str(tmp_path / "w.npz"))
    shards = embed(tmp_path / "named", asked)
    assert (shards.manifest.n_views, shards.manifest.thumbnails) == (0, False)
    assert shards.manifest.cameras == {"name": "none"}
    assert shards.manifest.templates == ["{}"]
    assert shards.manifest.teacher.config["images"] is None
    teacher = load_teacher(asked)
    found = rows_of(shards)
    assert 0 < sum(bool(row.texts) for row in found) < len(found)
    for row, before in zip(found, plain, strict=True):
        assert (row.uid, row.split) == (before.uid, before.split)
        np.testing.assert_array_equal(row.xyz, before.xyz)  # drawn or not
        # No caption or name of the others is a word of the table; their category may be.
        assert list(row.texts) == ([row.category] if row.category in words else [])
        expected = teacher.encode_texts(row.texts).astype(np.float16)
        np.testing.assert_array_equal(row.text_embeds, expected)
    with pytest.raises(InputError, match="--keep-images"):
        embed(tmp_path / "kept", asked, keep_images="webp-90")
    with pytest.raises(InputError, match="--captioner"):
        embed(tmp_path / "told", asked, captions=CaptionOptions(captioner="some/model"))


def test_embed__pictures_of_a_teacher_of_the_same_width(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    images = f"local-dir:{write_teacher(tmp_path / 'tiny')}"
    (asked,) = teacher_specs([images], *map(str, files))
    both, plain = embed(tmp_path / "both", asked), embed(tmp_path / "plain", images)
    assert both.manifest.n_views == plain.manifest.n_views == 2
    assert both.manifest.teacher.mismatch(plain.manifest.teacher)
    for ours, theirs in zip(rows_of(both), rows_of(plain), strict=True):
        np.testing.assert_array_equal(ours.image_embeds, theirs.image_embeds)
    again = load_matching(both.manifest.teacher, asked)
    expected = load_teacher(images).encode_images(photos(2, 40))
    np.testing.assert_array_equal(again.encode_images(photos(2, 40)), expected)


def test_encode_again__leaves_what_the_vectors_know(tmp_path: Path) -> None:
    shards = embed(tmp_path / "plain", "demo")
    words = sorted({row.category for row in rows_of(shards)})[:2]
    np.savez(tmp_path / "w.npz", names=np.array(words), emb=table()[:2])
    asked = spec(str(tmp_path / "w.npz"))
    encode_again(EncodeAgainOptions(str(tmp_path / "plain"), asked, str(tmp_path / "again")))
    again, at_once = ShardSet.open(tmp_path / "again"), embed(tmp_path / "named", asked)
    assert again.manifest.n_views == 0
    for ours, theirs in zip(rows_of(again), rows_of(at_once), strict=True):
        assert (ours.uid, ours.texts, ours.text_sources) == (
            theirs.uid,
            theirs.texts,
            theirs.text_sources,
        )
        np.testing.assert_array_equal(ours.text_embeds, theirs.text_embeds)


def test_command__a_missing_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"embed --dataset procedural --count 2 --out {tmp_path}/out --names n.txt"
    asked = [*line.split(), "--text-embeddings", str(tmp_path / "none.npy")]
    assert run(monkeypatch, "pipeline", *asked) == 2
    assert "none.npy: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_vectors__of_lvis_fit_their_names(assets_dir: Path) -> None:
    folder = assets_dir / "clip-text-vectors"
    vectors = folder / "lvis_v1_clip_a+cname.npy"
    released = np.load(folder / "objaverse_lvis_clip_text.npz")
    words = json.loads((folder / "vocab_lookup.json").read_text())
    rows = {name: row for name, (file, row) in words.items() if file == "lvis"}
    teacher = VectorTeacher(list(rows), np.load(vectors)[list(rows.values())])
    known = [name for name in released["names"].tolist() if teacher.knows(name)]
    assert len(known) > 500
    theirs = dict(zip(released["names"].tolist(), released["emb"].astype(np.float32), strict=True))
    expected = np.stack([theirs[name] for name in known])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    cosines = (teacher.encode_texts(known) * expected).sum(1)
    assert np.median(cosines) > 0.999


def test_folder__a_name_that_is_unknown_gives_way_to_the_category(tmp_path: Path) -> None:
    """The usual case: files with long names and a column of classes."""
    (tmp_path / "meshes").mkdir()
    cube = "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1))
    faces = "f 1 2 3\nf 2 4 3\nf 5 6 7\nf 1 2 5\n"
    for name in ("wooden_chair_02", "coffee_mug_1"):
        (tmp_path / "meshes" / f"{name}.obj").write_text(cube + faces)
    (tmp_path / "meta.csv").write_text("file,category\nwooden_chair_02.obj,chair\n")
    np.savez(tmp_path / "w.npz", names=np.array(NAMES), emb=table())
    dataset = FolderDataset(tmp_path / "meshes", metadata=tmp_path / "meta.csv")
    rows = rows_of(embed(tmp_path / "out", spec(str(tmp_path / "w.npz")), dataset=dataset))
    found = {row.uid: (*row.texts, *row.text_sources) for row in rows}
    assert [told for _, told in sorted(found.items())] == [
        ("coffee mug", "name"),
        ("chair", "category"),
    ]
