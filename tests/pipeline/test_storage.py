"""Addresses of shard sets, and sets on an S3 store."""

from __future__ import annotations

import errno
import fcntl
import json
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import lock
from pipeline.catalog import clean_temporaries, query
from pipeline.common import InputError
from pipeline.lock import exclusive
from pipeline.shards import (
    Failure,
    ImageSet,
    ShardSet,
    create_or_open,
    read_manifest,
    write_failures,
    write_part,
)
from pipeline.shards.storage import Storage, parquet_footer, shown, within
from pipeline.shards.writer import written_uids
from pipeline.spool import SpoolReader, Todo, spooled
from tests.pipeline.full_disk import full_disk
from tests.pipeline.s3_server import BUCKET, s3_environment
from tests.pipeline.shard_tools import make_manifest, make_row
from tests.pipeline.test_spool import todo


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_environment() as found:
        yield found


@pytest.fixture(params=["environment", "address"])
def uri(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> str:
    """A folder of the store: found by the environment, or by what stands in the address."""
    place = f"s3://{BUCKET}/{tmp_path.name}-{request.param}/deep"
    if request.param == "environment":
        return place
    host = server.replace(":", "%3A")
    return f"{place}?endpoint_override={host}&scheme=http"


def test_within__options_of_an_address_stay_at_its_end() -> None:
    assert within("/a/b/", "c") == "/a/b/c"
    assert within("a?b", "c") == "a?b/c"
    assert within("s3://bucket/x/?scheme=http", "c") == "s3://bucket/x/c?scheme=http"
    assert within(within("s3://b/x?a=1&b=2%2F", "c"), "d") == "s3://b/x/c/d?a=1&b=2%2F"


def test_shown__neither_keys_nor_options() -> None:
    assert shown("s3://KEY:SECRET@bucket/x?region=eu") == "s3://bucket/x"
    assert shown("/local/a@b?c") == "/local/a@b?c"
    with pytest.raises(InputError) as caught:
        Storage.at("nosuch://KEY:SECRET@bucket/x")
    assert "SECRET" not in str(caught.value).partition("(")[0]


def test_file_address__is_the_local_folder(tmp_path: Path) -> None:
    storage = Storage.at(f"file://{tmp_path}/x")
    storage.write("a", b"1")
    assert (tmp_path / "x" / "a").read_bytes() == b"1"
    assert storage.is_local
    with (
        exclusive(f"file://{tmp_path}/x"),
        pytest.raises(InputError, match="another run"),
        exclusive(str(tmp_path / "x")),
    ):
        pass


def test_s3__a_set_is_written_and_read_as_a_local_one(uri: str, tmp_path: Path) -> None:
    manifest = make_manifest()
    rows = [make_row(manifest, f"toy/{n}") for n in range(5)]
    for root in (uri, str(tmp_path / "local")):
        create_or_open(root, manifest)
        assert write_part(root, manifest, rows[:3]) == write_part(root, manifest, rows[:3])
        write_part(root, manifest, rows[3:])
        write_failures(root, [Failure("toy/lost", "toy", "lost", "load", "gone", "x")])
    there, here = ShardSet.open(uri), ShardSet.open(tmp_path / "local")
    assert there.parts == here.parts
    assert pickle.loads(pickle.dumps(there)).uids() == here.uids()
    for ours, theirs in zip(there.batches(), here.batches(), strict=True):
        assert ours.xyz is not None
        assert theirs.xyz is not None
        np.testing.assert_array_equal(ours.xyz, theirs.xyz)
    assert there.failures() == here.failures()
    statement = "select count(*) from shards union all select count(*) from failures"
    assert query(uri, statement) == query(tmp_path / "local", statement)
    assert written_uids(uri, [row.uid for row in rows[:4]]) == {row.uid for row in rows[:4]}
    assert written_uids(uri, ["x/other"]) == set()
    with pytest.raises(InputError, match="differs from the set in n_points"):
        create_or_open(uri, make_manifest(n_points=manifest.n_points + 1))
    with pytest.raises(InputError, match="keeps no pictures"):
        ImageSet.open(uri)


def test_spool__a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        full_disk(),
        pytest.raises(InputError, match=r"records-\w+\.parquet: cannot be written .* make room"),
        spooled(str(tmp_path), todo(70)),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_spool__an_error_of_the_source_stays_what_it_is(tmp_path: Path) -> None:
    def source() -> Iterator[Todo]:
        yield from todo(70)
        raise OSError("of the source")

    with pytest.raises(OSError, match="of the source"), spooled(str(tmp_path), source()):
        pass
    assert not list(tmp_path.iterdir())


class Remembering(MemoryFileSystem):  # type: ignore[misc]
    """A store of fsspec that, like those of clouds, remembers what it listed."""

    protocol = "remembering"
    cachable = False
    seen: ClassVar[dict[str, Any]] = {}

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        key = f"{path} {detail}"
        if key not in self.seen:
            self.seen[key] = super().ls(path, detail, **kwargs)
        return self.seen[key]

    def invalidate_cache(self, path: str | None = None) -> None:
        del path
        self.seen.clear()


def test_fsspec__what_others_have_written_since_is_listed() -> None:
    fsspec.register_implementation("remembering", Remembering, clobber=True)
    storage = Storage.at("remembering://set")
    assert not storage.is_local
    storage.write("part-1", b"1")
    assert storage.list("part-", "") == ["part-1"]
    MemoryFileSystem().pipe(storage.join("part-2"), b"2")  # another machine
    assert storage.list("part-", "") == ["part-1", "part-2"]
    assert storage.exists("part-2")
    MemoryFileSystem().rm(storage.path, recursive=True)
    assert not storage.is_there


def test_exclusive__on_a_store_that_tells_no_time() -> None:
    fsspec.register_implementation("remembering", Remembering, clobber=True)
    uri = "remembering://locked"
    with exclusive(uri), pytest.raises(InputError, match="another run"), exclusive(uri):
        pass
    with exclusive(uri):
        pass
    assert not Storage.at(uri).sizes()


def test_exclusive__a_folder_that_cannot_be_locked_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", unsupported)
        with pytest.raises(InputError, match="cannot be locked"), exclusive(str(tmp_path)):
            pass
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match=r"\.lock: cannot be written"), exclusive(str(tmp_path)):
        pass


class Slow(MemoryFileSystem):  # type: ignore[misc]
    """A store that takes a moment for an upload."""

    protocol = "slow"
    cachable = False
    under_way: ClassVar[threading.Event] = threading.Event()

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "wb":
            self.under_way.set()
            time.sleep(0.5)
        return super()._open(path, mode, **kwargs)


def test_write__to_a_store_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    fsspec.register_implementation("slow", Slow, clobber=True)
    monkeypatch.setattr(Slow, "_open", full)
    with pytest.raises(InputError, match=r"slow://set/x: cannot be written .*; make room"):
        Storage.at("slow://set").write("x", b"1")


def test_s3__missing_set_and_missing_bucket_say_what_is_wrong(server: str) -> None:
    with pytest.raises(InputError, match=r"s3://bucket/none: no manifest\.json"):
        read_manifest("s3://bucket/none")
    with pytest.raises(InputError, match=r"s3://other-bucket/x/manifest.json: cannot be written"):
        create_or_open("s3://other-bucket/x", make_manifest())


def test_s3__spool_is_read_by_its_address_and_goes(uri: str) -> None:
    items = todo(70)
    with spooled(uri, iter(items)) as spool:
        reader = SpoolReader(spool.address)
        assert [i for task in spool.tasks(2) for i in reader.read(task)] == items
    with pytest.raises(InputError, match=r"--out s3://bucket/[^?]*: the worker on .* share"):
        SpoolReader(spool.address)
    assert not Storage.at(uri).sizes()


def test_spool__a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--out {tmp_path}: the worker on"):
        SpoolReader(f"{tmp_path}/.tmp-records-0.parquet")


def test_exclusive__a_second_run_on_a_remote_folder_is_refused(uri: str) -> None:
    with exclusive(uri):
        with pytest.raises(InputError, match="another run is using"), exclusive(uri):
            pass
        assert len(Storage.at(uri).list(".lock-", "")) == 1  # the refused one took its own away
    with exclusive(uri):
        pass
    assert not Storage.at(uri).sizes()


def test_exclusive__what_a_killed_run_left_on_a_store_is_known_at_once_and_cleaned(
    uri: str,
) -> None:
    script = (
        "import os, sys\nfrom pipeline.lock import exclusive\nfrom pipeline.spool import spooled\n"
        "with exclusive(sys.argv[1]), spooled(sys.argv[1], ()):\n    os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, uri], check=False)
    assert done.returncode == 9
    assert [name[:5] for name in sorted(Storage.at(uri).sizes())] == [".lock", ".tmp-"]
    with exclusive(uri):
        assert clean_temporaries(uri) == 1
    assert not Storage.at(uri).sizes()


def test_exclusive__a_lock_of_another_machine_holds_until_it_is_stale(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.at(uri)
    storage.write(".lock-0.json", json.dumps({"machine": "elsewhere", "pid": 1}).encode())
    with pytest.raises(InputError, match="killed on another machine"), exclusive(uri):
        pass
    monkeypatch.setattr(lock, "STALE_S", 0.5)
    time.sleep(2)  # the store tells time in whole seconds
    with exclusive(uri):
        assert len(storage.list(".lock-", "")) == 1


def test_exclusive__the_lock_is_kept_fresh(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    storage = Storage.at(uri)

    def written() -> object:
        (name,) = storage.list(".lock-", "")
        return storage.filesystem.get_file_info(storage.join(name)).mtime

    with exclusive(uri):
        first = written()
        time.sleep(1.5)
        assert written() != first


def test_exclusive__a_damaged_lock_counts_as_alive(uri: str) -> None:
    Storage.at(uri).write(".lock-0.json", b"{")
    with pytest.raises(InputError, match="another run"), exclusive(uri):
        pass


def test_s3__writing_leaves_nothing_but_the_file(uri: str) -> None:
    storage = Storage.at(uri)
    storage.write("a", b"1")
    listed = storage.filesystem.get_file_info(pafs.FileSelector(storage.path, recursive=True))
    assert [info.base_name for info in listed] == ["a"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_write__an_upload_that_is_cut_short_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    storage = Storage.at(f"memory://{uuid.uuid4().hex}/set")
    create = Storage.create

    class Cut:
        """A stream that is closed, as streams are, after half of what it was given."""

        def __init__(self, storage: Storage, name: str) -> None:
            self._stream = create(storage, name)

        def __enter__(self) -> Cut:
            return self

        def write(self, data: bytes) -> None:
            self._stream.write(data[: len(data) // 2])
            raise error

        def __exit__(self, *_: object) -> None:
            self._stream.close()
            assert storage.exists("part-x.parquet")

    monkeypatch.setattr(Storage, "create", lambda self, name: Cut(self, name))
    with pytest.raises(InputError if error is OSError else error):
        storage.write("part-x.parquet", b"12345678")
    assert not storage.exists("part-x.parquet")
    monkeypatch.undo()
    storage.write("part-x.parquet", b"12345678")
    assert storage.read("part-x.parquet") == b"12345678"


def test_footer__longer_than_what_is_read_first_is_whole() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({f"column {i:04d}": [i] for i in range(1000)}), sink)
    data = sink.getvalue().to_pybytes()
    length = int.from_bytes(data[-8:-4], "little") + 8
    assert length > 1 << 16
    assert parquet_footer(pa.BufferReader(data)) == data[-length:]


def test_shown__an_at_sign_in_a_path_is_no_key() -> None:
    assert shown("s3://key:secret@bucket/a") == "s3://bucket/a"
    assert shown("s3://bucket/shapes@2/set") == "s3://bucket/shapes@2/set"
