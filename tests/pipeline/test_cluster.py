from __future__ import annotations

import pytest

from pipeline import cluster
from pipeline.common import InputError


def test_init__a_machine_with_much_other_work_gets_another_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def slow(**options: object) -> None:
        calls.append(str(options["address"]))
        if len(calls) < 3:
            raise Exception("The current node timed out during startup. This could happen")

    monkeypatch.setattr("ray.init", slow)
    monkeypatch.setattr("ray.shutdown", lambda: calls.append("shutdown"))
    cluster._init(address="local")
    assert calls == ["local", "shutdown", "local"]


def test_init__another_error_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def wrong(**_: object) -> None:
        calls.append("init")
        raise ValueError("other")

    monkeypatch.setattr("ray.init", wrong)
    with pytest.raises(ValueError, match="other"):
        cluster._init(address="local")
    assert calls == ["init"]


def test_running__too_small_an_object_store_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ValueError("Attempting to cap object store memory usage at 1 bytes, but")

    monkeypatch.setattr("ray.init", refuse)
    with (
        pytest.raises(InputError, match="--object-store: 1,000 bytes are too few"),
        cluster.running(object_store_bytes=1000),
    ):
        pass
