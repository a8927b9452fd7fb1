"""What the search page refuses: large, slow, foreign and too many requests."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient, Response

from evaluation.queries import Part
from evaluation.web.app import make_app
from evaluation.web.limits import PromptProtocol
from evaluation.web.service import SearchService
from pipeline.common import InputError
from tests.evaluation.web.conftest import HOST


def test_limits__large_bodies_with_and_without_a_length(client: TestClient) -> None:
    large = b"x" * 500_000
    told = client.post("/api/search", files={"image": ("a.png", large)})
    assert told.status_code == 413
    assert "larger than 0.4 MB" in told.json()["error"]

    def pieces() -> Iterator[bytes]:
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        yield head
        for _ in range(50):
            yield b"x" * 10_000

    headers = {"content-type": "multipart/form-data; boundary=b"}
    streamed = client.post("/api/search", content=pieces(), headers=headers)
    assert streamed.status_code == 413
    assert client.get("/api/info").status_code == 200


def test_limits__others_are_turned_away_while_all_places_are_taken(service: SearchService) -> None:
    client = TestClient(make_app(service, places=1), base_url=HOST)
    inside: list[int] = []
    search = service.search

    def slow(*args: object, **options: object) -> object:
        service.search = search  # type: ignore[method-assign]
        inside.append(client.post("/api/search", data={"text": "a mug"}).status_code)
        return search(*args, **options)  # type: ignore[arg-type]

    service.search = slow  # type: ignore[method-assign,assignment]
    assert client.post("/api/search", data={"text": "a mug"}).status_code == 200
    assert inside == [503]
    assert client.post("/api/search", data={"text": "a mug"}).status_code == 200


def test_search__a_condition_that_takes_long_is_ended(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.web.service.CONDITION_S", 0.3)
    monkeypatch.setattr("pipeline.sets.filter._check_modest", lambda *_: None)
    endless = "0 = (select count(*) from range(10000000000000) t(i) where i * i % 7 = 9)"
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"takes more than 0.3 s; ask for something simpler"):
        service.search([Part("text", "chair")], where=endless)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("len(range(2000000000)) > 0", "range is no function that"),
        ("len(repeat('x', 900000000)) > 0", "repeat is no function that"),
        ("uid = 'a' or list_sum(range(9)) > 0", "no function that"),
        ("(select count(*) from shards) > 0", "subquery is nothing that"),
        ("(null::int[1000][1000]) is null", "array is nothing that"),
        ("len([x for x in texts if x = 'a']) > 0", "that a condition may use"),
        ("count(*) over () > 0", "that a condition may use"),
        ("uid = 'a'; drop table shards", "more than one statement"),
        ("uid = 'a'; and n_faces < 5", "syntax error"),
    ],
)
def test_search__a_condition_may_not_ask_for_much(
    service: SearchService, where: str, told: str
) -> None:
    with pytest.raises(InputError, match=told) as caught:
        service.search([Part("text", "chair")], where=where)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "where",
    [
        "lower(category) like '%c%' and n_faces between 0 and 1000000 or uid ilike 'zzz'",
        "split in ('train', 'test') or split is null as named -- any",
        "case when has_color then true else not false end and len(texts) >= 0",
        "list_contains(texts, 'x') or 'y' in texts or n_faces::double / 2 + 1 >= 0.5",
        "coalesce(category, '') similar to '.*' and uid not like 'q%' and uid ~ '.'",
    ],
)
def test_search__conditions_of_every_day_are_answered(service: SearchService, where: str) -> None:
    assert service.search([Part("text", "chair")], where=where)


async def ask_together(service: SearchService, count: int) -> list[int]:
    """Status of pictures that are asked for at once."""
    transport = ASGITransport(make_app(service, places=2))
    async with AsyncClient(transport=transport, base_url=HOST) as client:
        path = "/api/objects/{}/picture.png"
        answers = await asyncio.gather(*(client.get(path.format(row)) for row in range(count)))
    return [answer.status_code for answer in answers]


def test_limits__pictures_are_drawn_in_turn_and_none_is_refused(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, at_work, most = threading.Lock(), 0, 0
    draw = service._draw

    def counted(row: int) -> bytes | None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        content = draw(row)
        with lock:
            at_work -= 1
        return content

    monkeypatch.setattr(service, "_picture", counted)
    assert asyncio.run(ask_together(service, 8)) == [200] * 8
    assert most == 2


def test_limits__a_picture_that_waits_too_long_is_refused_as_busy(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(row: int) -> bytes:
        time.sleep(0.3)
        return b""

    monkeypatch.setattr(service, "_picture", slow)
    monkeypatch.setattr("evaluation.web.app.PATIENCE_S", 0.4)
    assert sorted(asyncio.run(ask_together(service, 8)))[::7] == [200, 503]


def test_guard__a_body_that_does_not_come_is_refused(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.web.limits.BODY_S", 0.2)

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(100):
            await asyncio.sleep(0.05)
            yield b"a"

    async def ask() -> Response:
        app = make_app(service)
        headers = {"content-type": "application/x-www-form-urlencoded"}
        async with AsyncClient(transport=ASGITransport(app), base_url=HOST) as client:
            return await client.post("/api/search", content=drip(), headers=headers)

    answer = asyncio.run(ask())
    assert answer.status_code == 408
    assert "did not come within 0.2 s" in answer.json()["error"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_protocol__a_connection_that_asks_nothing_is_closed_and_one_that_does_is_not(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.web.limits.HEADER_S", 0.3)
    info = service.info

    def slow_info() -> dict[str, object]:
        time.sleep(0.7)
        return info()

    monkeypatch.setattr(service, "info", slow_info)
    config = uvicorn.Config(
        make_app(service), port=0, http=PromptProtocol, ws="none", log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        with socket.create_connection(address, 30) as slow:
            slow.settimeout(30)
            url = f"http://{address[0]}:{address[1]}/api/info"
            slow.sendall(b"GE")
            for _ in range(2):  # each takes longer than a head may
                assert httpx.get(url, timeout=30).status_code == 200
            assert slow.recv(10) == b""
    finally:
        server.should_exit = True
        thread.join()


def test_guard__foreign_hosts_and_origins_are_refused(client: TestClient) -> None:
    for headers in (
        {"host": "evil.example"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
    ):
        answer = client.post("/api/search", data={"text": "a"}, headers=headers)
        assert answer.status_code == 403, headers
    same = client.post("/api/search", data={"text": "a"}, headers={"origin": HOST})
    assert same.status_code == 200
    bad = client.post("/api/search", content=b"", headers={"content-length": "-5"})
    assert bad.status_code == 413
