"""The synthetic world, wired in where the commands take a teacher and a student."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trimesh

from evaluation import isolated, teachers
from evaluation import student as student_module
from evaluation.student import Student
from evaluation.teachers import QueryTeacher
from pipeline.shards import TeacherInfo
from tests.evaluation import world
from tests.running import Cli


class Kept(isolated.IsolatedCalls):
    """Stays open when a command is done with it: a process for each would take long."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def calls() -> Iterator[isolated.IsolatedCalls]:
    """Processes that read shapes, for all tests; none before the first shape."""
    made = Kept()
    yield made
    isolated.IsolatedCalls.close(made)


@pytest.fixture(autouse=True)
def _kept_calls(monkeypatch: pytest.MonkeyPatch, calls: isolated.IsolatedCalls) -> None:
    """Commands take the processes that there are."""
    monkeypatch.setattr(isolated, "IsolatedCalls", lambda *_, **__: calls)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.make_shards(tmp_path_factory.mktemp("world") / "shards")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A run folder that the fake loader knows; ``blind`` in its name gives the constant student."""

    def open_teacher(
        info: TeacherInfo, spec: str | None = None, device: str = "cpu"
    ) -> QueryTeacher:
        return world.FakeTeacher(world.teacher_info(8, 999) if spec == "other" else None)

    def load(path: Path | str, device: str = "cpu", batch_size: int = 64) -> Student:
        name = Path(path).name
        return world.student("blind" in name, hash_="other" if "other" in name else "abc")

    monkeypatch.setattr(teachers, "open_teacher", open_teacher)
    monkeypatch.setattr(student_module, "load_student", load)
    run = tmp_path / "run"
    run.mkdir()
    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("COLUMNS", "200")  # tables unfolded
    return Cli("evaluation", monkeypatch, capsys)


@pytest.fixture
def embedded(command: Cli, fakes: Path, shards: Path, tmp_path: Path) -> Path:
    out = tmp_path / "e.parquet"
    command.ok("encode", "--checkpoint", fakes, "--shards", shards, "--out", out)
    return out


@pytest.fixture
def indexed(command: Cli, embedded: Path, tmp_path: Path) -> Path:
    out = tmp_path / "idx"
    command.ok("index", "--embeddings", embedded, "--out", out)
    return out


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    """A folder with a red box as 000.glb, a broken 001.glb, and a box outside of it."""
    folder = tmp_path / "meshes"
    folder.mkdir()
    red = trimesh.creation.box()
    red.visual.face_colors = [255, 0, 0, 255]
    red.export(folder / "000.glb")
    (folder / "001.glb").write_bytes(b"no mesh")
    red.export(tmp_path / "outside.glb")
    return folder
