"""Uploads that hang, crash or eat memory: the page answers in time, and goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from evaluation.web.app import make_app
from evaluation.web.service import SearchService
from tests.evaluation import trouble

HOST = "http://127.0.0.1:8000"
LIMIT_S = 2.0


@pytest.fixture
def service(
    fakes: Path, indexed: Path, meshes: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SearchService]:
    monkeypatch.setattr("evaluation.isolated._prepare", trouble.nothing)
    monkeypatch.setattr("evaluation.student.load_shape", trouble.load_shape)
    monkeypatch.setattr("evaluation.score.look", trouble.look)
    monkeypatch.setattr("evaluation.web.service.render_mesh", trouble.render_mesh)
    monkeypatch.setattr("evaluation.web.service.SHAPE_BYTES", 2 << 30)
    made = SearchService(indexed, meshes=meshes, checkpoint=fakes, timeout_s=LIMIT_S)
    made.warm_up()
    yield made
    made.close()


def ask(client: TestClient, content: bytes, path: str = "search") -> Any:
    file = ("a.glb", content)
    if path == "score":
        return client.post("/api/score", data={"text": "a mug"}, files={"mesh": file})
    data = {"classes": "mug\nchair"} if path == "classify" else {}
    return client.post(f"/api/{path}", data=data, files={"shape": file})


def test_uploads__that_hang_crash_or_eat_memory_cost_their_request(service: SearchService) -> None:
    with TestClient(make_app(service, places=1), base_url=HOST) as client:
        assert ask(client, b"good").status_code == 200
        with ThreadPoolExecutor(1) as threads:
            begun = time.monotonic()
            hangs = threads.submit(ask, client, b"hang", "score")
            time.sleep(0.3)
            # The place for shapes is taken; words have others, and wait for no mesh.
            assert ask(client, b"good").status_code == 503
            assert client.post("/api/search", data={"text": "a mug"}).status_code == 200
            assert not hangs.done()
            answer = hangs.result()
            assert time.monotonic() - begun < LIMIT_S + 5
        assert answer.status_code == 400
        assert answer.json() == {
            "error": "mesh.glb: cannot be scored (timeout: took over 2 s); "
            "give a simpler mesh, or a larger --timeout"
        }
        assert ask(client, b"good", "score").status_code == 200
        for content, path, told in (
            (b"hungry", "search", "shape.glb: cannot be embedded (out_of_memory: needs more"),
            (b"die", "classify", "shape.glb: cannot be embedded (crash: the worker died"),
        ):
            answer = ask(client, content, path)
            assert answer.status_code == 400
            assert answer.json()["error"].startswith(told)
            assert "\n" not in answer.json()["error"]
            assert ask(client, b"good", path).status_code == 200
    (kept,) = service._processes._idle
    assert kept._child is not None
    process = kept._child._process
    assert process.is_alive()
    service.close()
    with pytest.raises(ValueError, match="closed"):  # ended, and let go
        process.is_alive()


@pytest.mark.slow
def test_pictures__a_mesh_that_hangs_is_drawn_once_and_others_are_seen(
    service: SearchService, meshes: Path
) -> None:
    (meshes / "001.glb").write_bytes(b"hang")
    with TestClient(make_app(service), base_url=HOST) as client:
        assert client.get("/api/objects/1/picture.png").status_code == 404  # it has no cloud here
        begun = time.monotonic()
        assert client.get("/api/objects/1/picture.png").status_code == 404
        assert time.monotonic() - begun < LIMIT_S
        assert client.get("/api/objects/0/picture.png").status_code == 200
