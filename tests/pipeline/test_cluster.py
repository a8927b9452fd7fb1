from __future__ import annotations

import os

import pytest

from pipeline import cluster
from pipeline.common import InputError

MISMATCH = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\n"
    "This process on node 10.0.0.1 was started with:\n    Ray: 2.56.1\n    Python: 3.11.7\n"
)


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


def test_running__a_cluster_with_another_ray_or_python_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError(MISMATCH)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", refuse)
    with (
        pytest.raises(InputError, match=r"^--address auto: .*Ray: 2\.60\.0 .*Python: 3\.11\.7; "),
        cluster.running("auto"),
    ):
        pass


@pytest.mark.parametrize("address", [None, "auto"])
def test_running__what_ray_logs_as_it_starts_is_not_shown(
    address: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", lambda **_: os.write(2, b"logging.cc:303: Set ray log level"))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with cluster.running(address):
        pass
    assert capfd.readouterr() == ("", "")
