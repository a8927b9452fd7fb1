"""Atomic writes, hashes, versions."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import common
from pipeline.common import (
    InputError,
    atomic_path,
    canonical_json,
    check_place,
    content_hash,
    file_hash,
    versions,
    write_json,
)


class Interrupt(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_atomic_path__file_appears_whole_under_its_name(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(final) as temporary:
        temporary.write_text("half")
        assert not final.exists()
        assert temporary.parent == final.parent
        assert temporary.name.startswith(".tmp-")
        temporary.write_text("whole")
    assert final.read_text() == "whole"
    assert names(final.parent) == ["file.txt"]


def test_atomic_path__file_is_replaced(tmp_path: Path) -> None:
    final = tmp_path / "file"
    final.write_text("old")
    with atomic_path(final) as temporary:
        temporary.write_text("new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Interrupt])
@pytest.mark.parametrize("old", [True, False])
def test_atomic_path__failed_file_leaves_the_old_content(
    error: type[BaseException], old: bool, tmp_path: Path
) -> None:
    final = tmp_path / "file"
    if old:
        final.write_text("old")

    def write() -> None:
        with atomic_path(final) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == (["file"] if old else [])
    if old:
        assert final.read_text() == "old"


def test_atomic_path__block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("old", [True, False])
def test_atomic_path__directory_is_made_or_replaced(old: bool, tmp_path: Path) -> None:
    final = tmp_path / "folder"
    if old:
        final.mkdir()
        (final / "stale").write_text("old")
    with atomic_path(final) as temporary:
        temporary.mkdir()
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("new")
    assert names(tmp_path) == ["file", "folder", "inner"]


@pytest.mark.parametrize("error", [RuntimeError, Interrupt])
def test_atomic_path__failed_directory_leaves_the_old_one(
    error: type[BaseException], tmp_path: Path
) -> None:
    final = tmp_path / "folder"
    final.mkdir()
    (final / "file").write_text("old")

    def write() -> None:
        with atomic_path(final) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ["file", "folder"]
    assert (final / "file").read_text() == "old"


def test_atomic_path__directory_that_cannot_be_moved_in_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "folder"
    final.mkdir()
    (final / "file").write_text("old")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if target == final and "retired" not in path.name:
            raise OSError("refused")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="refused"), atomic_path(final) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["file", "folder"]
    assert (final / "file").read_text() == "old"


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_atomic_path__of_a_link_the_target_is_replaced(
    folder: bool, old: bool, tmp_path: Path
) -> None:
    target, link = tmp_path / "disk" / "it", tmp_path / "here" / "link"
    link.parent.mkdir()
    link.symlink_to(Path("..") / "disk" / "it")
    if old:
        target.parent.mkdir()
        if folder:
            target.mkdir()
            (target / "stale").write_text("old")
        else:
            target.write_text("old")
    with atomic_path(link) as temporary:
        if folder:
            temporary.mkdir()
            (temporary / "file").write_text("new")
        else:
            temporary.write_text("new")
    assert link.is_symlink()
    assert names(tmp_path) == sorted(["disk", "here", "it", "link", *["file"] * folder])
    assert (target / "file" if folder else target).read_text() == "new"


def test_atomic_path__two_writers_do_not_meet(tmp_path: Path) -> None:
    final = tmp_path / "file"
    with atomic_path(final) as first, atomic_path(final) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    # The inner block ends first, so that the outer one has the last word.
    assert final.read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_write_json__keeps_order_and_letters(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    value = {"z": 1, "a": ["ü", None, 1.5]}
    write_json(path, value)
    assert json.loads(path.read_text()) == value
    assert path.read_text().index('"z"') < path.read_text().index('"a"')
    assert "ü" in path.read_text()


def test_write_json__value_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    assert path.read_text() == "1\n"
    assert names(tmp_path) == ["value.json"]


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.integers())))
def test_canonical_json__does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(turned) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value


@given(st.lists(st.binary() | st.text(st.characters(exclude_categories=["Cs"]))))
def test_content_hash__is_sha256_of_the_joined_chunks(chunks: list[bytes | str]) -> None:
    joined = b"".join(c if isinstance(c, bytes) else c.encode() for c in chunks)
    assert content_hash(*chunks) == hashlib.sha256(joined).hexdigest()


def test_file_hash__is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    (tmp_path / "file").write_bytes(data)
    assert file_hash(tmp_path / "file") == content_hash(data)


def test_versions__leaves_out_what_is_not_installed() -> None:
    found = versions("numpy", "surely-not-installed")
    assert list(found) == ["numpy"]
    assert found["numpy"][0].isdigit()


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("there", False, r"--out .*there: a folder; name a file"),
        ("file", True, r"--out .*file: a file; name a folder"),
        ("file/x", False, r"--out .*file is a file, not a folder; name another place"),
        ("file/x/y", True, r"--out .*file is a file, not a folder; name another place"),
    ],
)
def test_check_place__what_cannot_be_made(
    name: str, folder: bool, message: str, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message):
        check_place(tmp_path / name, "--out", folder=folder)


def test_check_place__a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match="may not be written to; name another place"):
        check_place(tmp_path / "new" / "x.html", "--html")


def test_check_place__of_a_link_the_folder_of_its_target_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "it")
    monkeypatch.setattr("os.access", lambda place, _: place.name != "disk")
    with pytest.raises(InputError, match=r"link: .*/disk may not be written to"):
        check_place(tmp_path / "link", "--html")


def test_check_place__what_can_be_made_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    check_place(tmp_path / "file", "--out")  # to be replaced
    check_place(tmp_path / "a" / "b", "--out")
    check_place(tmp_path / "a" / "b", "--out", folder=True)
    check_place(tmp_path, "--out", folder=True)
    monkeypatch.chdir(tmp_path)
    check_place(Path("x"), "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("told", "expected"),
    [("max 100000", 6), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("", 6)],
)
def test_cores__by_affinity_and_by_the_quota_of_a_container(
    told: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    quota = tmp_path / "cpu.max"
    if told:
        quota.write_text(f"{told}\n")
    monkeypatch.setattr(common, "_QUOTA", quota)
    assert common.cores() == expected
