from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.common import InputError
from pipeline.doctor import Check, checks
from tests.pipeline.test_teacher import write_teacher


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what takes seconds: Ray, a renderer in another process, the network."""
    ok = Check("x", "ok", "fine")
    for name in ("_ray", "_gl", "_hub", "_raster"):
        monkeypatch.setattr(doctor, name, lambda *_: ok)


@pytest.mark.usefixtures("quick")
def test_checks__a_teacher_of_a_file_is_loaded_and_a_missing_one_told(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "tiny")
    found = {check.name: check for check in checks(f"local-dir:{teacher}", str(tmp_path))}
    assert {check.state for check in found.values()} <= {"ok", "missing"}
    assert "width" in found[f"teacher local-dir:{teacher}"].told
    last = list(checks("local-dir:/nowhere", str(tmp_path)))[-1]
    assert last.state == "broken"
    assert "/nowhere" in last.told


@pytest.mark.usefixtures("quick")
def test_checks__a_step_that_fails_is_told_and_the_others_are_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> Check:
        raise RuntimeError("no room\nsecond line")

    def wrong(_: object) -> Check:
        raise InputError("address x: no cluster answers; start one")

    monkeypatch.setattr(doctor, "_gpu", fail)
    monkeypatch.setattr(doctor, "_ray", wrong)
    found = {check.name: check for check in checks("demo", str(tmp_path))}
    assert found["GPU"].state == "broken"
    assert found["GPU"].told == "RuntimeError: no room"
    assert found["Ray"].remedy == "start one"
    assert found["teacher demo"].state == "ok"


def test_disk__a_folder_that_is_not_there_yet_and_one_that_is_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert doctor._disk(str(tmp_path / "a" / "b")).state == "ok"
    monkeypatch.setattr(doctor, "_LITTLE", 1e30)
    assert doctor._disk(str(tmp_path)).state == "missing"
    assert "store" in doctor._disk("s3://bucket/shards").told


def test_hub__no_answer_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_HUB", "http://127.0.0.1:1")
    assert doctor._hub().state == "missing"


@pytest.mark.usefixtures("quick")
def test_doctor__exit_code_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.running import run

    assert run(monkeypatch, "pipeline", "doctor", "--out", str(tmp_path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found[-1]["state"] == "ok"
    assert (
        run(
            monkeypatch,
            "pipeline",
            "doctor",
            "--out",
            str(tmp_path),
            "--teacher",
            "local-dir:/nowhere",
        )
        == 1
    )
    assert "BROKEN" in capsys.readouterr().out
