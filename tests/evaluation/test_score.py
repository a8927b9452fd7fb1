from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image

from evaluation import teachers
from evaluation.score import (
    COLUMNS,
    Asked,
    Scorer,
    Scores,
    read_distractors,
    read_prompts,
    summarise,
)
from evaluation.shapes import read_mesh
from pipeline.cameras import ring
from pipeline.common import InputError
from pipeline.renderers.base import RenderConfig
from pipeline.renderers.raster import RasterRenderer
from tests.evaluation import world
from tests.running import Cli

SMALL = RenderConfig(image_size=48)


def write_mesh(path: Path, red: int = 50) -> Path:
    mesh = trimesh.creation.box((1, 2, 0.5))
    mesh.visual.vertex_colors = np.tile([red, 10, 10, 255], (len(mesh.vertices), 1))
    mesh.export(path)
    return path


def write_picture(path: Path, red: int) -> Path:
    Image.new("RGB", (20, 10), (red, 0, 0)).save(path)
    return path


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    return write_mesh(tmp_path / "box.glb")


def test_scorer__figures_are_those_of_a_loop(mesh: Path, tmp_path: Path) -> None:
    teacher, student, cameras = world.FakeTeacher(), world.student(), ring(3)
    others = ["a chair", "a fish", "an oak tree", "A  MUG"]
    scorer = Scorer(teacher, student, cameras, distractors=others, draws=3, seed=5, config=SMALL)
    picture = write_picture(tmp_path / "ref.png", 100)
    found = scorer(Asked("box", mesh, "a mug", picture))

    text = world.text_vector("a mug")
    loaded = read_mesh(mesh)
    shapes = [student.embed_cloud(student.sample(loaded, seed)) for seed in (5, 6, 7)]
    by_draw = [float(shape @ text) for shape in shapes]
    assert found.shape_text == pytest.approx(np.mean(by_draw), abs=1e-6)
    assert found.shape_text_sd == pytest.approx(np.std(by_draw, ddof=1), abs=1e-6)
    assert found.shape_text_sd is not None
    assert found.shape_text_sd > 0

    drawn = RasterRenderer().render(loaded, cameras, SMALL)[..., :3]
    views = [teacher.encode_images(view[None])[0] for view in drawn]
    by_view = [float(view @ text) for view in views]
    assert found.view_text == pytest.approx(np.mean(by_view), abs=1e-6)
    assert found.view_text_best == pytest.approx(max(by_view), abs=1e-6)

    # The picture lies in the middle of a white square, as an object on the renders' background.
    square = np.full((20, 20, 3), 255, np.uint8)
    square[5:15] = (100, 0, 0)
    wanted = teacher.encode_images(square[None])[0]
    assert found.view_image == pytest.approx(np.mean([v @ wanted for v in views]), abs=1e-6)
    assert found.shape_image == pytest.approx(np.mean([s @ wanted for s in shapes]), abs=1e-6)

    wrong = [world.text_vector(other) for other in others[:3]]  # the last one is the text itself
    assert found.n_distractors == 3
    mean = np.mean(views, 0)
    assert found.view_rank == 1 + sum(float(mean @ w) >= float(mean @ text) for w in wrong)
    firsts = [all(shape @ text > shape @ w for w in wrong) for shape in shapes]
    assert found.shape_precision == pytest.approx(np.mean(firsts))


def test_scorer__a_tie_with_a_distractor_is_lost(
    mesh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "text_vector", lambda _: world.unit_vector(0))
    scorer = Scorer(world.FakeTeacher(), world.student(), ring(2), distractors=["x"], config=SMALL)
    found = scorer(Asked("box", mesh, "y"))
    assert (found.shape_rank, found.view_rank, found.shape_precision) == (2, 2, 0.0)


class WideTeacher(world.FakeTeacher):
    """Gives every text one vector of 512 dimensions, and every picture another one."""

    def __init__(self) -> None:
        super().__init__(world.teacher_info(512))
        self.pictures = 0

    def encode_texts(self, texts: Sequence[str], /) -> world.F32:
        return np.tile(world.unit_vector(0, 512), (len(texts), 1))

    def encode_images(self, images: NDArray[np.uint8], /) -> world.F32:
        del images
        self.pictures += 1
        return world.unit_vector(self.pictures, 512)[None]


def test_scorer__a_tie_is_lost_whatever_the_last_bits_of_two_products_say(mesh: Path) -> None:
    others = [f"text {i}" for i in range(37)]
    scorer = Scorer(WideTeacher(), None, ring(1), distractors=others, config=SMALL)
    seen = scorer.look(mesh)
    assert {scorer(Asked("box", mesh, "a box"), seen).view_rank for _ in range(50)} == {38}


class CountingTeacher(world.FakeTeacher):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def encode_texts(self, texts: Sequence[str], /) -> world.F32:
        self.texts += texts
        return super().encode_texts(texts)


def test_scorer__every_text_is_encoded_once(mesh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = CountingTeacher()
    scorer = Scorer(teacher, None, ring(1), distractors=["a chair", "a fish"], config=SMALL)
    seen = scorer.look(mesh)
    for text in ("a mug", "a box", "a mug", "a chair"):
        scorer(Asked("box", mesh, text), seen)
    assert sorted(teacher.texts) == ["a box", "a chair", "a chair", "a fish", "a mug"]


def test_scorer__keeps_no_more_texts_than_it_may(
    mesh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.score.KNOWN_TEXTS", 2)
    teacher = CountingTeacher()
    scorer = Scorer(teacher, None, ring(1), distractors=["a fish"], config=SMALL)
    seen = scorer.look(mesh)
    for text in ("a", "b", "a", "c", "a", "b"):  # c takes the place of b
        scorer(Asked("box", mesh, text), seen)
    assert [text for text in teacher.texts if text != "a fish"] == ["a", "b", "c", "b"]
    assert teacher.texts.count("a fish") == 1


def test_scorer__without_a_student_only_views_are_looked_at(mesh: Path) -> None:
    found = Scorer(world.FakeTeacher(), None, ring(2), config=SMALL)(Asked("box", mesh, "a mug"))
    assert found.view_text is not None
    told = {k for k, v in vars(found).items() if v is not None}
    assert told == {"mesh", "text", "view_text", "view_text_best"}


def test_scorer__equal_seeds_give_equal_figures_and_others_differ(mesh: Path) -> None:
    def score(seed: int) -> Scores:
        made = Scorer(world.FakeTeacher(), world.student(), ring(2), seed=seed, config=SMALL)
        return made(Asked("box", mesh, "a mug"))

    assert score(0) == score(0)
    assert score(0).shape_text != score(1).shape_text


def test_scorer__a_mesh_that_shows_nothing_is_an_input_error(tmp_path: Path) -> None:
    file = tmp_path / "white.ply"
    ghost = trimesh.creation.box((1, 1, 1))
    ghost.visual.vertex_colors = np.full((len(ghost.vertices), 4), 255, np.uint8)
    ghost.export(file)
    flat = RenderConfig(image_size=48, ambient=1.0, diffuse=0.0)  # white on white
    scorer = Scorer(world.FakeTeacher(), None, ring(2), config=flat)
    with pytest.raises(InputError, match=r"white\.ply: cannot be scored \(blank_render"):
        scorer(Asked("white", file, "a mug"))


def test_summary__means_intervals_and_precisions() -> None:
    made = [
        Scores("a", "x", None, shape_text=0.1, view_text=0.5, shape_rank=1, view_rank=3),
        Scores("b", "x", None, shape_text=0.3, view_text=0.5, shape_rank=2, view_rank=1),
        Scores("c", "x", None, shape_text=0.2, view_text=None, shape_rank=1, view_rank=None),
    ]
    found = summarise(made)
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's t for two degrees of freedom
    assert found["shape_text"]["mean"] == pytest.approx(0.2)
    assert found["shape_text"]["low"] == pytest.approx(0.2 - half, abs=1e-5)
    assert found["shape_text"]["high"] == pytest.approx(0.2 + half, abs=1e-5)
    assert found["view_text"] == {"mean": 0.5, "low": None, "high": None, "n": 2}
    assert found["shape_precision"]["value"] == pytest.approx(2 / 3)
    assert (found["view_precision"]["value"], found["view_precision"]["n"]) == (0.5, 2)
    assert "shape_image" not in found


def test_distractors__of_the_package_are_many_and_distinct() -> None:
    found = read_distractors(None)
    assert len(found) == len({text.casefold() for text in found}) > 100
    assert all(text.startswith(("a ", "an ")) for text in found)


def test_distractors__a_byte_order_mark_is_no_part_of_the_first_text(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("a mug\na chair\n", "utf-8-sig")
    assert read_distractors(tmp_path / "d.txt") == ["a mug", "a chair"]


def test_prompts__paths_are_relative_to_the_table_and_lines_are_named(tmp_path: Path) -> None:
    write_mesh(tmp_path / "a.glb")
    table = tmp_path / "prompts.csv"
    table.write_text("mesh,text,image\na.glb, a mug ,\na.glb,,ref.png\n", encoding="utf-8-sig")
    mesh = tmp_path / "a.glb"
    assert read_prompts(table) == [
        Asked("a.glb", mesh, "a mug", None),
        Asked("a.glb", mesh, None, tmp_path / "ref.png"),
    ]
    for text, wrong in (
        ("mesh,text\na.glb,\n", "line 2: no mesh, or no prompt"),
        ("name,prompt\na.glb,x\n", "its columns are name, prompt; give a CSV"),
        ("mesh,words\na.glb,x\n", "its columns are mesh, words; give a CSV"),
        ("mesh,text\n", "holds no line"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=wrong):
            read_prompts(table)
    with pytest.raises(InputError, match="not a readable table"):
        read_prompts(tmp_path / "none.csv")


def test_prompts__semicolons_and_prompts_are_read(tmp_path: Path) -> None:
    write_mesh(tmp_path / "a.glb")
    table = tmp_path / "prompts.csv"
    table.write_text("mesh;prompt\na.glb;a mug, red\nb.glb;y\n", encoding="utf-8-sig")
    asked = read_prompts(table)
    assert [(one.name, one.text) for one in asked] == [("a.glb", "a mug, red"), ("b.glb", "y")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "meshes"
    made.mkdir()
    for i in range(3):
        write_mesh(made / f"{i}.glb", 40 * i)
    (made / "broken.glb").write_bytes(b"glTF no")
    return made


def test_command__a_folder_to_csv_with_what_failed(
    command: Cli, fakes: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.csv"
    command.ok(
        *("score", folder, "--text", "a mug", "--checkpoint", fakes, "--out", out),
        *("--views", 2, "--draws", 2, "--max-failures", 0.5),
    )
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*COLUMNS, "error"]
    assert [row["mesh"] for row in rows] == ["0.glb", "1.glb", "2.glb", "broken.glb"]
    assert all(float(row["shape_text"]) <= 1 for row in rows[:3])
    assert int(rows[0]["n_distractors"]) == 164
    assert "broken.glb" in rows[3]["error"]
    assert rows[3]["shape_text"] == ""


def test_command__failures_keep_their_line_and_what_was_asked(
    command: Cli, fakes: Path, mesh: Path, tmp_path: Path
) -> None:
    picture = write_picture(tmp_path / "ref.png", 50)
    table, out = tmp_path / "prompts.csv", tmp_path / "scores.csv"
    table.write_text(
        "mesh,text,image\nno.glb,a cat,\nbox.glb,a mug,\nno2.glb,,ref.png\nbox.glb,x,\n"
    )
    asked = ("score", "--prompts", table, "--checkpoint", fakes, "--views", 1, "--out", out)
    command.ok(*asked, "--max-failures", 1)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["mesh"], row["text"], row["image"]) for row in rows] == [
        *(("no.glb", "a cat", ""), ("box.glb", "a mug", "")),
        *(("no2.glb", "", str(picture)), ("box.glb", "x", "")),
    ]
    assert [bool(row["error"]) for row in rows] == [True, False, True, False]
    assert [bool(row["shape_text"]) for row in rows] == [False, True, False, True]


def test_command__meshes_of_one_name_are_told_apart(
    command: Cli, fakes: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / "out" / name).mkdir(parents=True)
        write_mesh(tmp_path / "out" / name / "mesh.glb")
    meshes = [tmp_path / "out" / name / "mesh.glb" for name in ("a", "b")]
    common = ("--text", "a mug", "--checkpoint", fakes, "--views", 1)
    found = command.json("score", *meshes, *common)
    assert [one["mesh"] for one in found["scores"]] == ["a/mesh.glb", "b/mesh.glb"]
    assert "b/mesh.glb" in command.ok("score", *meshes, *common)


def test_command__json_and_table(command: Cli, fakes: Path, mesh: Path, tmp_path: Path) -> None:
    out, common = tmp_path / "s.json", ("--checkpoint", fakes, "--views", 2)
    printed = command.json("score", mesh, "--text", "a mug", *common, "--out", out)
    assert json.loads(out.read_text()) == printed
    assert printed["summary"]["meshes"] == 1
    assert printed["model"]["name"] == "reader"
    assert printed["protocol"]["draws"] == 3
    assert printed["summary"]["failed"] == len(printed["failures"])
    assert printed["protocol"]["n_distractors"] == 164
    assert len(printed["protocol"]["distractors_sha256"]) == 64
    table = command.ok("score", mesh, "--text", "a mug", *common)
    assert "retrieval precision by shape" in table
    assert f"{printed['scores'][0]['view_text']:.3f}" in table


def test_command__too_many_failures_exit_with_3(
    command: Cli, fakes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.running import run

    code = run(monkeypatch, "evaluation", "score", folder, "--text", "a mug", "--checkpoint", fakes)
    assert code == 3


def test_command__a_mesh_that_is_not_there_fails_and_the_others_are_scored(
    command: Cli, fakes: Path, mesh: Path, tmp_path: Path
) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text(f"mesh,text\n{mesh},a chair\nnone.glb,a mug\n")
    asked = ("score", "--prompts", table, "--checkpoint", fakes, "--views", 1)
    found = command.json(*asked, "--max-failures", 1)
    assert [one["mesh"] for one in found["scores"]] == [str(mesh)]
    (failure,) = found["failures"]
    assert (failure["mesh"], failure["text"], failure["image"]) == ("none.glb", "a mug", None)
    assert "cannot be scored" in failure["reason"]


def test_command__bad_input_is_one_line(
    command: Cli, fakes: Path, mesh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = ("--checkpoint", fakes)
    for arguments, told in (
        ((mesh, *student), "give --text, --image, or both"),
        ((mesh, "--text", " ", *student), "--text: is empty"),
        (("--text", "x", *student), "give mesh files"),
        ((mesh, "--text", "x"), "give --checkpoint RUN"),
        ((tmp_path / "no.glb", "--text", "x", *student), "no such file or folder"),
        ((mesh, "--image", tmp_path / "no.png", *student), "no such file"),
        ((mesh, "--image", mesh, *student), f"--image {mesh}: not a readable picture"),
        ((mesh, "--text", "x", *student, "--out", "x.txt"), "ends in .csv or .json"),
        ((mesh, "--text", "x", "--prompts", "p.csv", *student), "leave the others out"),
        ((mesh, "--text", "x", "--distractors", tmp_path / "no", *student), "--distractors"),
    ):
        assert told in command.refused("score", *arguments)
    asked: list[str] = []

    def load_any(spec: str, device: str = "cpu") -> world.FakeTeacher:
        asked.append(spec)
        return world.FakeTeacher()

    monkeypatch.setattr(teachers, "load_any", load_any)
    told = command.json("score", mesh, "--text", "x", "--teacher", "demo", "--views", 1)
    assert asked == ["demo"]
    assert told["model"] is None
