"""The tar reader against the standard library, and on archives that are cut off or lie."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.imports.archives import DamagedArchiveError, Member, read_folder, read_tar
from tests.pipeline.imports.release import write_tar

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=150)
FILES = st.lists(
    st.tuples(NAMES, st.sampled_from([0, 1, 511, 512, 513, 5000])),
    max_size=5,
    unique_by=lambda x: x[0],
)


@settings(max_examples=60, deadline=None)
@given(FILES, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_read_tar__what_tarfile_writes_in_any_format(
    files: list[tuple[str, int]], kind: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar.gz"
        written = []
        with tarfile.open(path, "w:gz", format=kind) as archive:
            for number, (name, size) in enumerate(files):
                entry = tarfile.TarInfo(name.strip("/") + f"{number}.npy")
                entry.size = size
                data = bytes([number]) * size
                try:
                    archive.addfile(entry, io.BytesIO(data))
                except ValueError:  # ustar: too long a name
                    continue
                written.append(Member(entry.name, size, data))
        assert list(read_tar(path, ".npy", 10_000)) == written


def test_read_tar__only_regular_files_with_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("folder.npy")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            link = tarfile.TarInfo(f"link{kind!r}.npy")
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
        for name in ("readme.txt", "a.npy"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
    assert [member.name for member in read_tar(path, ".npy", 100)] == ["a.npy"]


def test_read_tar__larger_members_are_passed_over_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_tar(path, [("a.npy", bytes(50 << 20)), ("b.npy", b"abc")])
    tracemalloc.start()
    found = list(read_tar(path, ".npy", 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [Member("a.npy", 50 << 20, None), Member("b.npy", 3, b"abc")]
    assert peak < 8 << 20


def test_read_tar__several_gzip_members_are_one_stream(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.npy", b"a" * 1000), ("b.npy", b"b")], "w")
    data = (tmp_path / "a.tar").read_bytes()
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(data[:700]) + gzip.compress(data[700:]))
    assert [member.name for member in read_tar(path, ".npy", 5000)] == ["a.npy", "b.npy"]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.65])
def test_read_tar__cut_off_archive_gives_its_members_then_raises(
    share: float, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = [random.Random(i).randbytes(3000) for i in range(6)]
    write_tar(path, [(f"{i}.npy", data) for i, data in enumerate(noise)], f"w:{suffix[4:]}")
    whole = path.read_bytes()
    # tarfile pads to 10 kB: a cut there loses nothing but the second half of the end mark.
    path.write_bytes(whole[: int(len(whole) * share)])
    found: list[Member] = []
    with pytest.raises(DamagedArchiveError, match="ends in the middle after"):
        found.extend(read_tar(path, ".npy", 5000))  # those before the cut arrive
    assert [member.data for member in found] == noise[: len(found)]
    assert len(found) < 6
    assert share < 0.5 or found


def test_read_tar__changed_bytes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_tar(path, [("a.npy", b"a" * 5000)])
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # the checksum at the end of gzip
    path.write_bytes(data)
    with pytest.raises(DamagedArchiveError):
        list(read_tar(path, ".npy", 10_000))
    path.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(DamagedArchiveError, match="not a tar header"):
        list(read_tar(path, ".npy", 10_000))


def test_read_tar__header_that_claims_a_huge_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    entry = tarfile.TarInfo("././@PaxHeader")
    entry.type, entry.size = tarfile.XHDTYPE, 1 << 40
    path.write_bytes(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(100_000)))
    tracemalloc.start()
    with pytest.raises(DamagedArchiveError, match="a header of"):
        list(read_tar(path, ".npy", 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_read_tar__damage_raises_nothing_else(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        write_tar(path, [("a" * 120 + ".npy", b"abc"), ("b.npy", b"x" * 600)], "w")
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 6))):
            raw[data.draw(st.integers(0, 2500))] = data.draw(st.integers(0, 255))
        path.write_bytes(raw)
        with contextlib.suppress(DamagedArchiveError):
            list(read_tar(path, ".npy", 10_000))


def test_read_folder__files_by_name(tmp_path: Path) -> None:
    for name, size in (("b.npy", 3), ("a.npy", 30), ("c.txt", 3)):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "d.npy").mkdir()
    found = list(read_folder(tmp_path, ".npy", 10))
    assert found == [Member("a.npy", 30, None), Member("b.npy", 3, b"xxx")]
