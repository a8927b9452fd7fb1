"""Downloads: what counts as a whole file, what is tried again, what is said when it fails."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.datasets.download_cache import CacheFolder
from pipeline.datasets.downloads import (
    DamagedError,
    DownloadError,
    Downloads,
    Policy,
    TooLargeError,
    check_glb,
    read_gzip_json,
)
from tests.pipeline.hub_server import Hub, serving

FAST = Policy(attempts=3, pause_s=0.01, idle_s=2.0, total_s=10.0)
DATA = bytes(range(256)) * 300


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        server.files["a.bin"] = DATA
        yield server


def downloads(tmp_path: Path, limit: int | None = None, **options: object) -> Downloads:
    return Downloads(
        CacheFolder(tmp_path / "cache", limit),
        **{"policy": FAST, **options},  # type: ignore[arg-type]
    )


def left_over(tmp_path: Path) -> list[str]:
    """Every file in the cache but the ledger."""
    return sorted(
        path.relative_to(tmp_path / "cache").as_posix()
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file() and path.name != ".usage"
    )


def test_get__fetches_once_and_then_reads_the_cache(tmp_path: Path, hub: Hub) -> None:
    one = downloads(tmp_path)
    for _ in range(3):
        assert one.get(f"{hub.url}/a.bin", "deep/a.bin", Path.read_bytes) == DATA
    assert hub.requests["a.bin"] == 1
    assert left_over(tmp_path) == ["deep/a.bin"]


@pytest.mark.parametrize(
    "script",
    [
        ["503", "ok"],
        ["429", "ok"],
        ["truncated", "ok"],
        ["truncated", "503", "ok"],
        ["unsized"],
        ["redirect"],
    ],
)
def test_get__what_passes_is_tried_again(tmp_path: Path, hub: Hub, script: list[str]) -> None:
    hub.script["a.bin"] = script
    assert downloads(tmp_path).get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes) == DATA
    assert hub.requests["a.bin"] == len(script)
    assert left_over(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("manner", "requests", "message"),
    [
        ("404", 1, "answers 404 Not Found"),
        ("403", 1, "answers 403 Forbidden"),
        ("503", 3, "answers 503 Service Unavailable (3 attempts)"),
        ("truncated", 3, "ended after 38,400 of 76,800 bytes that were announced (3 attempts)"),
    ],
)
def test_get__what_stays_is_an_error_that_says_why(
    tmp_path: Path, hub: Hub, manner: str, requests: int, message: str
) -> None:
    hub.script["a.bin"] = [manner]
    with pytest.raises(DownloadError) as caught:
        downloads(tmp_path).get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes)
    assert str(caught.value).startswith(f"{hub.url}/a.bin: ")
    assert str(caught.value).endswith(message)
    assert hub.requests["a.bin"] == requests
    assert left_over(tmp_path) == []


def test_get__no_connection_is_an_error_after_all_attempts(tmp_path: Path) -> None:
    with serving() as gone:
        url = gone.url  # nobody listens there any more
    with pytest.raises(DownloadError, match=r"no connection: Connection refused \(3 attempts\)"):
        downloads(tmp_path).get(f"{url}/a.bin", "a.bin", Path.read_bytes)


def test_get__other_schemes_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    with pytest.raises(DownloadError, match="only http and https"):
        downloads(tmp_path).get(secret.as_uri(), "a.bin", Path.read_bytes)


def test_get__a_server_that_does_not_answer_is_given_up(tmp_path: Path, hub: Hub) -> None:
    hub.script["a.bin"] = ["mute", "ok"]
    quick = downloads(tmp_path, policy=Policy(3, 0.01, idle_s=0.3, total_s=10))
    begun = time.monotonic()
    assert quick.get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes) == DATA
    assert 0.3 <= time.monotonic() - begun < 9  # not all the time that it has


def test_get__a_server_that_drips_ends_with_the_time_limit(tmp_path: Path, hub: Hub) -> None:
    # Every byte comes in time; all together would take an hour.
    hub.script["a.bin"] = ["drip"]
    quick = downloads(tmp_path, policy=Policy(3, 0.01, idle_s=5, total_s=0.6))
    begun = time.monotonic()
    with pytest.raises(DownloadError, match=r"took over 0\.6 s"):
        quick.get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes)
    assert time.monotonic() - begun < 60


def test_get__pauses_double(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("pipeline.datasets.downloads.time.sleep", pauses.append)
    hub.script["a.bin"] = ["503"]
    with pytest.raises(DownloadError, match="5 attempts"):
        downloads(tmp_path, policy=Policy(5, 1.0, 2, 60)).get(
            f"{hub.url}/a.bin", "a.bin", Path.read_bytes
        )
    pauses = [pause for pause in pauses if pause >= 0.5]  # without those of the server
    assert len(pauses) == 4
    for pause, expected in zip(pauses, (1, 2, 4, 8), strict=True):
        assert 0.5 * expected <= pause <= 1.5 * expected


def test_get__a_wrong_content_length_is_caught_by_the_reader(tmp_path: Path, hub: Hub) -> None:
    def whole(path: Path) -> bytes:
        data = path.read_bytes()
        if len(data) != len(DATA):
            raise DamagedError(f"{len(data)} bytes")
        return data

    hub.script["a.bin"] = ["short", "cut", "ok"]
    assert downloads(tmp_path).get(f"{hub.url}/a.bin", "a.bin", whole) == DATA
    assert hub.requests["a.bin"] == 3


def test_get__a_wrong_hash_is_fetched_again_and_given_up_when_it_stays(
    tmp_path: Path, hub: Hub
) -> None:
    right = hashlib.sha256(DATA).hexdigest()
    hub.script["a.bin"] = ["changed", "ok"]
    one = downloads(tmp_path)
    assert one.get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes, sha256=right) == DATA
    hub.files["b.bin"] = b"another file"
    many = downloads(tmp_path, policy=Policy(9, 0.01, 2, 10))
    with pytest.raises(DownloadError, match=r"its SHA-256 is .* was published \(2 attempts\)"):
        many.get(f"{hub.url}/b.bin", "b.bin", Path.read_bytes, sha256=right)


def test_get__the_hash_that_the_hub_publishes_is_checked(tmp_path: Path, hub: Hub) -> None:
    hub.script["a.bin"] = ["lying"]
    with pytest.raises(DownloadError, match="its SHA-256 is"):
        downloads(tmp_path).get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes)
    assert left_over(tmp_path) == []


def test_get__a_file_that_is_broken_at_its_source_is_not_fetched_again(
    tmp_path: Path, hub: Hub
) -> None:
    def broken(path: Path) -> bytes:
        raise DamagedError("half of it")

    hub.script["a.bin"] = ["redirect"]
    with pytest.raises(DownloadError, match=r"half of it \(1 attempt\)"):
        downloads(tmp_path).get(f"{hub.url}/a.bin", "a.bin", broken)


def test_get__a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path, hub: Hub) -> None:
    def whole(path: Path) -> bytes:
        if path.stat().st_size < len(DATA):
            raise DamagedError("half of it")
        return path.read_bytes()

    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.bin").write_bytes(DATA[:100])
    assert downloads(tmp_path).get(f"{hub.url}/a.bin", "a.bin", whole) == DATA
    assert (tmp_path / "cache" / "a.bin").read_bytes() == DATA
    assert hub.requests["a.bin"] == 1


def test_get__a_found_file_is_read_and_never_changed(tmp_path: Path, hub: Hub) -> None:
    own = tmp_path / "own" / "a.bin"
    own.parent.mkdir()
    own.write_bytes(DATA)
    one = downloads(tmp_path, keep=False)
    assert one.get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes, found=(own,)) == DATA
    assert not hub.requests
    own.write_bytes(b"half")
    right = hashlib.sha256(DATA).hexdigest()
    assert one.get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes, sha256=right, found=(own,)) == DATA
    assert own.read_bytes() == b"half"


def test_get__without_an_address_nothing_is_fetched(tmp_path: Path) -> None:
    own = tmp_path / "a.bin"
    with pytest.raises(DownloadError, match=r"x/a\.bin is not there"):
        downloads(tmp_path).get(None, "x/a.bin", Path.read_bytes, found=(own,))
    own.write_bytes(b"half")
    with pytest.raises(DownloadError, match=r"x/a\.bin is damaged: its SHA-256"):
        downloads(tmp_path).get(None, "x/a.bin", Path.read_bytes, sha256="0" * 64, found=(own,))


def test_get__delete_after_use_leaves_nothing(tmp_path: Path, hub: Hub) -> None:
    keeping = downloads(tmp_path)
    keeping.get(f"{hub.url}/a.bin", "kept.bin", Path.read_bytes)
    one = downloads(tmp_path, keep=False)
    assert one.get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes) == DATA
    assert left_over(tmp_path) == ["kept.bin"]
    assert one.get(f"{hub.url}/a.bin", "kept.bin", Path.read_bytes) == DATA
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("manner", ["ok", "unsized"])
def test_get__too_large_is_refused_before_it_is_kept(tmp_path: Path, hub: Hub, manner: str) -> None:
    hub.script["a.bin"] = [manner]
    with pytest.raises(TooLargeError, match="the limit is 1,000"):
        downloads(tmp_path, max_bytes=1000).get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes)
    assert left_over(tmp_path) == []
    assert hub.requests["a.bin"] == 1


@pytest.mark.parametrize("manner", ["ok", "unsized"])
def test_get__larger_than_the_cache_names_the_option(tmp_path: Path, hub: Hub, manner: str) -> None:
    hub.script["a.bin"] = [manner]
    with pytest.raises(DownloadError, match=r"cache may hold 50,000; raise --cache-size"):
        downloads(tmp_path, limit=50_000).get(f"{hub.url}/a.bin", "a.bin", Path.read_bytes)
    assert left_over(tmp_path) == []


def test_get__a_cache_that_cannot_be_written_to_says_so(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(DownloadError, match="the cache cannot be used: "):
        downloads(tmp_path).get(f"{hub.url}/a.bin", "x/a.bin", Path.read_bytes)


def test_get__errors_of_the_reader_pass_and_leave_nothing(tmp_path: Path, hub: Hub) -> None:
    def fails(path: Path) -> bytes:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        downloads(tmp_path).get(f"{hub.url}/a.bin", "a.bin", fails)
    assert left_over(tmp_path) == []


def test_downloads__is_picklable(tmp_path: Path) -> None:
    one = downloads(tmp_path, limit=5)
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<html>", "do not begin with glTF"),
        (b"glTF" + struct.pack("<II", 2, 100) + bytes(80), "92 bytes, the glTF header says 100"),
    ],
)
def test_check_glb__half_a_file_is_damaged(data: bytes, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        check_glb(data)


@pytest.mark.parametrize("extra", [0, 4])
def test_check_glb__a_whole_file_passes_also_with_padding(extra: int) -> None:
    check_glb(b"glTF" + struct.pack("<II", 2, 100) + bytes(88 + extra))


def test_read_gzip_json__anything_less_is_damaged(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"a": list(range(1000))}).encode())
    path = tmp_path / "x.json.gz"
    path.write_bytes(whole)
    assert read_gzip_json(path) == {"a": list(range(1000))}
    for bad in (b"", whole[:-1], whole[:100], b"<html>", gzip.compress(b"{"), whole[:50] + whole):
        path.write_bytes(bad)
        with pytest.raises(DamagedError):
            read_gzip_json(path)
