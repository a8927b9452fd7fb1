"""The shared folder of downloads: limit, order of removal, locks between processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets.download_cache import CacheFolder, CacheFullError
from pipeline.datasets.downloads import DamagedError, DownloadError, Downloads, Policy
from tests.pipeline.hub_server import Hub, serving

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def put(cache: CacheFolder, name: str, size: int, used_at: int | None = None) -> Path:
    with cache.writing(name, soon()) as part:
        assert part is not None
        part.reserve(size, soon())
        part.stream.write(b"x" * size)
        part.end()
        part.commit()
    path = cache.path(name)
    if used_at is not None:
        os.utime(path, (used_at, used_at))
    return path


def names(cache: CacheFolder) -> list[str]:
    return sorted(p.name for p in cache.root.rglob("*") if p.is_file() and p.name != ".usage")


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../x", ".usage", "a/.b", "a\\b", "a\0"])
def test_path__names_that_lead_out_or_are_hidden_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name of a file"):
        CacheFolder(tmp_path).path(name)


def test_limit__what_was_used_the_longest_ago_goes(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 1000)
    for index, name in enumerate("abcd"):
        put(cache, f"{name}/{name}", 200, used_at=1000 + index)
    with cache.reading("a/a") as hit:  # a is the latest now
        assert hit is not None
    put(cache, "e", 300)
    # 800 + 300 does not fit: down to 900 and to 700, so b goes, then c since 600 + 300 <= 900.
    assert names(cache) == ["a", "c", "d", "e"]
    assert cache.usage() == 900


def test_limit__is_never_passed_whatever_comes(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 10_000)
    rng = random.Random(3)
    for index in range(200):
        put(cache, f"{index % 7}/{index}", rng.randrange(1, 4000))
        assert cache.usage() <= 10_000
        assert int((tmp_path / ".usage").read_text()) == cache.usage()
    assert cache.usage() > 5000


def test_limit__files_of_others_count_too(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(bytes(900))
    os.utime(tmp_path / "old", (1, 1))
    cache = CacheFolder(tmp_path, 1000)
    put(cache, "new", 500)
    assert names(cache) == ["new"]


def test_limit__none_keeps_all_and_a_later_limit_counts_them(tmp_path: Path) -> None:
    free = CacheFolder(tmp_path)
    for index in range(5):
        put(free, str(index), 1000, used_at=index)
    assert free.usage() == 5000
    put(CacheFolder(tmp_path, 3000), "new", 100)
    assert names(free) == ["3", "4", "new"]


def test_reserve__a_file_in_use_stays_and_the_writer_waits(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 1000)
    put(cache, "read", 800)
    with cache.reading("read") as hit:
        assert hit is not None
        with cache.writing("new", soon()) as part:
            assert part is not None
            with pytest.raises(CacheFullError, match="in use"):
                part.reserve(500, soon(0.2))
        assert not cache.discard("read")
        assert hit.path.read_bytes() == b"x" * 800
        # It waits until the reader is done, and then goes on.
        waiter = threading.Thread(target=put, args=(cache, "new", 500))
        waiter.start()
        time.sleep(0.2)
        assert names(cache) == [".new.part", "read"]
    waiter.join()
    assert names(cache) == ["new"]
    assert cache.usage() == 500


def test_reserve__more_than_the_limit_is_refused_at_once(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 1000)
    put(cache, "a", 10)
    with cache.writing("b", soon()) as part:
        assert part is not None
        with pytest.raises(CacheFullError, match="1,001 bytes, the cache may hold 1,000"):
            part.reserve(1001, soon())
    assert names(cache) == ["a"]


def test_reserve__counts_before_the_first_byte(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 1000)
    with cache.writing("a", soon()) as one, cache.writing("b", soon()) as two:
        assert one is not None
        assert two is not None
        one.reserve(700, soon())
        with pytest.raises(CacheFullError, match="in use"):
            two.reserve(400, soon(0.1))
        one.clear()  # another attempt at the same file
        with pytest.raises(CacheFullError, match="in use"):
            two.reserve(400, soon(0.1))
        two.reserve(300, soon())
    assert cache.usage() == 0
    assert (tmp_path / ".usage").read_text() == "0"


def test_discard__removes_and_books(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 1000)
    put(cache, "a", 600)
    assert cache.discard("a")
    assert cache.discard("a")
    assert (tmp_path / ".usage").read_text() == "0"


def test_commit__a_damaged_file_is_replaced_once(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 1000)
    put(cache, "a", 400)
    with cache.reading("a") as hit:
        assert hit is not None
    with cache.writing("a", soon(), stale=hit.identity) as part:
        assert part is not None
        part.reserve(500, soon())
        part.stream.write(b"y" * 500)
        part.end()
        part.commit()
    assert cache.path("a").read_bytes() == b"y" * 500
    assert (tmp_path / ".usage").read_text() == "500"
    with cache.writing("a", soon(), stale=hit.identity) as part:
        assert part is None  # somebody did it already


def test_usage__a_ledger_of_nonsense_is_counted_anew(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 1000)
    put(cache, "a", 400)
    (tmp_path / ".usage").write_text("many")
    put(cache, "b", 100)
    assert (tmp_path / ".usage").read_text() == "500"


# -- several processes -----------------------------------------------------------------------------


def content(index: int) -> bytes:
    return hashlib.sha256(str(index).encode()).digest() * (300 + 40 * index)


def whole(path: Path) -> bytes:
    """The bytes after a while, checked by the hash that they repeat."""
    before = path.read_bytes()
    time.sleep(0.003)
    data = path.read_bytes()  # still there
    if data != before or data != data[:32] * (len(data) // 32):
        raise DamagedError("half of it")
    return data


def work(url: str, root: str, limit: int | None, seed: int, rounds: int, keep: bool) -> None:
    rng = random.Random(seed)
    one = Downloads(CacheFolder(Path(root), limit), keep, None, Policy(4, 0.01, 5, 30))
    for _ in range(rounds):
        index = rng.randrange(12)
        assert one.get(f"{url}/{index}", f"{index % 3}/{index}", whole) == content(index)


def run_all(processes: list[Any]) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.mark.parametrize("keep", [True, False])
def test_two_processes__share_a_small_cache(tmp_path: Path, hub: Hub, keep: bool) -> None:
    # 12 files of 9,600 to 23,680 bytes, room for three: files go while others are read.
    for index in range(12):
        hub.files[str(index)] = content(index)
    limit = 60_000
    highest, done = 0, threading.Event()
    cache = CacheFolder(tmp_path, limit)

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            with cache._ledger():  # nothing comes or goes while it is counted
                highest = max(highest, cache.usage())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run_all(
            [
                SPAWN.Process(target=work, args=(hub.url, str(tmp_path), limit, seed, 80, keep))
                for seed in (1, 2)
            ]
        )
    finally:
        done.set()
        watcher.join()
    assert 0 < highest <= limit
    assert not [name for name in names(cache) if name.endswith(".part")]
    assert int((tmp_path / ".usage").read_text()) == cache.usage()
    if keep:
        assert cache.usage() > limit // 3
        assert 12 <= sum(hub.requests.values()) < 160  # files went, and some were reused


def test_two_processes__fetch_the_same_file_once(tmp_path: Path, hub: Hub) -> None:
    for index in range(12):
        hub.files[str(index)] = content(index)
    hub.delay_s = 0.01
    run_all(
        [
            SPAWN.Process(target=work, args=(hub.url, str(tmp_path), None, 7, 40, True))
            for _ in range(2)
        ]
    )
    assert max(hub.requests.values()) == 1


def hang(url: str, root: str) -> None:
    CacheFolder(Path(root), 1000)
    Downloads(CacheFolder(Path(root), 1000), policy=Policy(1, 0, 30, 30)).get(
        f"{url}/a", "a", Path.read_bytes
    )


def test_two_processes__a_killed_writer_leaves_neither_lock_nor_room_taken(
    tmp_path: Path, hub: Hub
) -> None:
    hub.files["a"] = bytes(800)
    hub.files["b"] = bytes(900)
    hub.script["a"] = ["drip", "ok"]
    process = SPAWN.Process(target=hang, args=(hub.url, str(tmp_path)))
    process.start()
    cache = CacheFolder(tmp_path, 1000)
    while cache.usage() < 800:  # reserved, and under way
        assert process.is_alive()
        time.sleep(0.01)
    waits = Downloads(cache, policy=Policy(1, 0, 5, 0.3))
    with pytest.raises(DownloadError, match="another worker has been fetching it"):
        waits.get(f"{hub.url}/a", "a", Path.read_bytes)
    with pytest.raises(DownloadError, match="in use"):
        waits.get(f"{hub.url}/b", "b", Path.read_bytes)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert names(cache) == [".a.part"]
    assert waits.get(f"{hub.url}/b", "b", Path.read_bytes) == bytes(900)
    assert names(cache) == ["b"]
    assert waits.get(f"{hub.url}/a", "a", Path.read_bytes) == bytes(800)
    assert names(cache) == ["a"]
