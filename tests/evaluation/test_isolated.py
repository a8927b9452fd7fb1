"""Files that hang, crash or eat memory: they cost themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from evaluation.isolated import IsolatedCalls
from evaluation.score import Asked, Failure, Scorer, score_all
from evaluation.shapes import here, load_shape
from pipeline.cameras import ring
from pipeline.common import InputError
from pipeline.scene import MeshError
from tests.evaluation import trouble, world
from tests.running import run

MEMORY = 2 << 30


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for kind in ("good", "hang", "die", "once", "hungry", "mesh", "input", "bug", "slow"):
        (folder / f"{kind}.glb").write_text(kind)
    return folder


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedCalls]:
    """With two seconds each. ``IsolatedCalls`` itself: its name in its module is another's here."""
    monkeypatch.setattr("evaluation.isolated._prepare", trouble.nothing)
    with IsolatedCalls(2.0, MEMORY) as made:
        yield made


@pytest.mark.parametrize(
    "names",
    [
        ("good", "hang", "mesh", "input", "bug", "good"),
        pytest.param(("good", "hungry", "once", "die", "good"), marks=pytest.mark.slow),
    ],
)
def test_score__goes_on_past_meshes_that_hang_crash_or_eat_memory(
    names: tuple[str, ...],
    files: Path,
    strict: IsolatedCalls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evaluation.score.look", trouble.look)
    scorer = Scorer(world.FakeTeacher(), world.student(), ring(2), call=strict)
    failures: list[Failure] = []
    asked = [Asked(name, files / f"{name}.glb", "a mug") for name in names]
    scores = list(score_all(asked, scorer, failures))
    reasons = {
        "hungry": "cannot be scored (out_of_memory: needs more memory than a worker may take); "
        "give another mesh",
        "hang": "cannot be scored (timeout: took over 2 s); "
        "give a simpler mesh, or a larger --timeout",
        "die": "cannot be scored (crash: the worker died (exit code -9)); give another mesh",
        "mesh": "cannot be scored (no_faces: the mesh has no faces); give another mesh",
        "input": "is not that; give this",
        "bug": "cannot be scored (KeyError: 'surprise'); give another mesh",
    }
    assert [one.mesh for one in scores] == [name for name in names if name not in reasons]
    assert scores[0].shape_text == scores[-1].shape_text
    assert failures == [
        Failure(place, asked[place], f"{files / name}.glb: {reasons[name]}")
        for place, name in enumerate(names)
        if name in reasons
    ]


@pytest.mark.slow
def test_calls__children_are_kept_one_for_each_call_at_once_and_ended(files: Path) -> None:
    slow, quick = files / "slow.glb", files / "good.glb"
    with IsolatedCalls(60.0) as calls, ThreadPoolExecutor(2) as threads:
        assert not calls._idle
        one = calls(trouble.own_pid, quick)
        two = set(threads.map(lambda _: calls(trouble.own_pid, slow), range(2)))
        assert len(two) == 2
        assert one in two
        assert {calls(trouble.own_pid, quick) for _ in range(5)} <= two
        begun = time.perf_counter()
        for _ in range(20):
            calls(trouble.own_pid, quick)
        assert (time.perf_counter() - begun) / 20 < 0.05
        children = [psutil.Process(pid) for pid in two]
        assert all(child.is_running() for child in children)
    assert not any(child.is_running() for child in children)
    with pytest.raises(RuntimeError, match="closed"):
        calls(trouble.own_pid, quick)


def test_calls__give_what_a_call_here_gives(calls: IsolatedCalls, meshes: Path) -> None:
    ours = here(load_shape, meshes / "000.glb", "auto", 3, 500, 64)
    theirs = calls(load_shape, meshes / "000.glb", "auto", 3, 500, 64)
    assert (ours.xyz == theirs.xyz).all()
    assert (ours.rgb == theirs.rgb).all()
    assert ours.has_color == theirs.has_color
    for wrong, error in ((("auto", 0), MeshError), (("up", 0), InputError)):
        messages = []
        for call in (here, calls):
            with pytest.raises(error) as raised:
                call(load_shape, meshes / "001.glb", *wrong, 500, 64)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["score", "encode", "retrieve"])
def test_command__a_mesh_that_hangs_is_named(
    name: str,
    files: Path,
    fakes: Path,
    indexed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("evaluation.isolated.IsolatedCalls", IsolatedCalls)
    monkeypatch.setattr("evaluation.score.look", trouble.look)
    monkeypatch.setattr("evaluation.student.load_shape", trouble.load_shape)
    monkeypatch.setattr("evaluation.student.sample_mesh", trouble.load_shape)
    capsys.readouterr()
    few = (files / "hang.glb", files / "good.glb")
    common = ("--checkpoint", fakes, "--timeout", 2)
    if name == "score":
        code = run(monkeypatch, "evaluation", "score", *few, "--text", "a mug", *common)
    elif name == "encode":
        given = ("--meshes", few[0], "--meshes", few[1], "--out", tmp_path / "new.parquet")
        code = run(monkeypatch, "evaluation", "encode", *given, *common)
    else:
        code = run(
            monkeypatch, "evaluation", "retrieve", "--index", indexed, "--shape", few[0], *common
        )
    assert code == (2 if name == "retrieve" else 3)
    assert "(timeout: took over 2 s)" in " ".join(capsys.readouterr().err.split())
