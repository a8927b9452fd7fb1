"""Running hostile files as the job does, under watch.

Every case goes to the child process of a worker (``pipeline.isolated``), which loads, draws and
samples it under the limits of time and memory of a job. Watched are:

- in the child, by an audit hook: every file and folder that Python code opens, anything that is
  written, removed or started, and every use of a socket;
- outside of it: canaries (good files above the assets' folders, whose opening the kernel tells by
  inotify, whoever opens them) and a local server that counts connections, for native libraries;
- the peak of resident memory and the seconds of every case.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cameras import ring
from pipeline.captions.files import parse_caption_file
from pipeline.common import InputError, content_hash
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.layouts import path_key
from pipeline.datasets.points import PointsDataset
from pipeline.isolated import IsolatedProcessor
from pipeline.objects import ObjectSettings, Processed
from pipeline.renderers.base import RenderConfig
from pipeline.scene import MeshError
from pipeline.shards import Failure
from tests.chaos.mutations import Case, World, write_case
from tests.pipeline.gltf_files import cube_glb, png

# What an asset may fail with: kinds of the readers, of the picture, of the sample. The name of a
# Python exception is none of them, nor are "crash", "timeout", "recursion" and "out_of_memory".
KINDS = frozenset(
    re.findall(
        r"\w+",
        """
        missing_file not_a_file unreadable unsupported_format empty_file bad_header parse_error
        too_large outside_reference missing_buffer missing_texture bad_texture
        unsupported_texture unsupported_feature needs_library undecoded cyclic_scene bad_index
        not_finite no_faces zero_extent no_points bad_shape bad_color pickled has_faces
        too_few_points blank_render input_error
        """,
    )
)
CANARIES = ("secret.png", "secret.bin", "secret.mtl", "secret.h5", "secret.npy", "secret.glb")
# Below these anything may be read: the interpreter, the packages, what the kernel tells.
_PLACES = tuple(
    os.path.realpath(place)
    for place in (
        sys.prefix, sys.base_prefix, Path(__file__).parents[2], "/proc/self", "/proc/cpuinfo",
        "/proc/meminfo", "/sys", "/usr/lib", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom",
    )
)  # fmt: skip
_OPENING = {"open", "os.listdir", "os.scandir"}
_FORBIDDEN = (
    "socket.", "urllib.", "http.client.", "ftplib.", "subprocess.", "os.system", "os.exec",
    "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "os.remove", "os.rename", "os.rmdir",
    "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.putenv", "shutil.",
    "tempfile.", "pickle.find_class", "webbrowser.", "pty.", "ctypes.dlopen",
)  # fmt: skip


@dataclass(frozen=True)
class WatchedDataset:
    """The sources ``folder`` and ``points``, one folder per case, under an audit hook."""

    base: str
    log: str

    @property
    def name(self) -> str:
        return "watched"

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def records(self) -> Iterator[Record]:
        raise NotImplementedError

    def count(self) -> int | None:
        return None

    def load(self, record: Record) -> Asset:
        number, kind, file = record.key.split("/", 2)
        root = Path(self.base) / number
        watcher = _watcher(self.log)
        watcher.begin(number, str(root))
        plain = Record(record.uid, "watched", file, path_key(file))
        try:
            if kind == "mesh":
                return FolderDataset(root).load(plain)
            if kind == "cloud":
                return PointsDataset(root).load(plain)
            if kind == "table":
                first = next(iter(list(FolderDataset(root).records())))
                return FolderDataset(root).load(first)
            for _ in parse_caption_file(str(root / file)).entries():
                pass
            return FolderDataset(Path(self.base)).load(Record("", "", "", "secret.glb"))
        except InputError as error:
            raise MeshError("input_error", str(error)) from error


class _Watcher:
    """The audit hook of a child, and what it tells of each case."""

    def __init__(self, log: str) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._root, self._number, self._begun = "", "", 0.0
        self._allowed: tuple[str, ...] = ()
        self._busy = False
        sys.addaudithook(self._hook)

    def begin(self, number: str, root: str) -> None:
        """A case begins: tell what the last one took."""
        self._busy = True
        self._tell(done=True)
        with suppress(OSError), Path("/proc/self/clear_refs").open("w") as stream:
            stream.write("5")  # the peak begins anew
        self._number, self._root, self._begun = number, root, time.monotonic()
        # The good mesh stands for what follows a caption file.
        self._allowed = (*_PLACES, root, str(Path(root).parent / "secret.glb"))
        self._busy = False

    def _tell(self, **values: Any) -> None:
        if not self._number:
            return
        if values.get("done"):
            status = Path("/proc/self/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            values |= {"peak": int(peak.split()[1]) * 1024}
        text = json.dumps({"number": int(self._number), **values}) + "\n"
        os.write(self._log, text.encode())

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy or not self._number:
            return
        if event in _OPENING and arguments:
            self._opened(event, arguments)
        elif event.startswith(_FORBIDDEN) and not _harmless(event, arguments):
            self._tell(event=f"{event} {arguments!r:.200}")

    def _opened(self, event: str, arguments: tuple[Any, ...]) -> None:
        place = arguments[0]
        if isinstance(place, int) or place is None:
            return
        self._busy = True
        try:
            path = os.path.realpath(os.fsdecode(place))
            flags = arguments[2] if event == "open" and len(arguments) > 2 else 0
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            inside = path.startswith(self._allowed)
            if not inside or (writes and path != "/dev/null"):
                self._tell(event=f"{event} {path!r:.200}{' to write' if writes else ''}")
        finally:
            self._busy = False


def _harmless(event: str, arguments: tuple[Any, ...]) -> bool:
    """The next record, which the worker sends, and libraries of the system and of packages."""
    if event == "pickle.find_class":
        return str(arguments[0]).startswith("pipeline.")
    if event == "subprocess.Popen":  # the standard library's ``platform``, once, for a package
        return list(arguments[1]) == ["uname", "-p"]
    if event == "ctypes.dlopen":
        name = str(arguments[0])
        return "/" not in name or os.path.realpath(name).startswith(_PLACES)
    return False


_WATCHER: _Watcher | None = None


def _watcher(log: str) -> _Watcher:
    global _WATCHER
    if _WATCHER is None:
        _WATCHER = _Watcher(log)
    return _WATCHER


# --- the outer side ---------------------------------------------------------------------------


@dataclass
class Report:
    """What became of the cases."""

    tried: int = 0
    succeeded: int = 0
    failed: int = 0  # cleanly
    kinds: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)  # what may not be
    seconds: float = 0.0
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")  # peak of resident memory
    messages: dict[str, str] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)  # seconds by name

    def figures(self) -> dict[str, Any]:
        """For the page of figures."""
        return {
            "tried": self.tried,
            "failed_cleanly": self.failed,
            "succeeded": self.succeeded,
            "findings": len(self.findings),
            "seconds": round(self.seconds, 1),
            "slowest_s": round(self.slowest[0], 2),
            "slowest": self.slowest[1],
            "peak_memory_mib": self.largest[0] >> 20,
            "largest": self.largest[1],
            "kinds": dict(self.kinds.most_common()),
        }


class _Records(Sequence[Record]):
    """Records of cases; the files of one are written when it is first asked for."""

    def __init__(self, cases: Sequence[Case], world: World, base: Path) -> None:
        self._cases, self._world, self._base = cases, world, base
        self._made: dict[int, Record] = {}

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, at: Any) -> Any:
        if at >= len(self._cases):
            raise IndexError(at)
        if at not in self._made:
            case = self._cases[at]
            file = write_case(case, self._world, self._base / str(at))
            key = f"{at}/{case.kind}/{file}"
            self._made[at] = Record(f"watched/{at}", "watched", file, key)
        return self._made[at]

    def forget(self, at: int) -> None:
        """Remove the files of a case that is done."""
        shutil.rmtree(self._base / str(at))


def watched_run(
    cases: Sequence[Case],
    folder: Path,
    *,
    timeout_s: float,
    memory_bytes: int,
    dataset: type[WatchedDataset] = WatchedDataset,
) -> Report:
    """Run cases one after another in one child, replaced where it dies."""
    base = folder / "above" / "assets"
    base.mkdir(parents=True)
    for place in (base, base.parent):
        _write_canaries(place)
    log = folder / "log"
    log.touch()
    report = Report()
    begun = time.monotonic()
    with (
        _Server() as server,
        _Opened([p / n for p in (base, base.parent) for n in CANARIES]) as seen,
    ):
        world = World(str(base), server.port)
        records = _Records(cases, world, base)
        settings = ObjectSettings(
            dataset(str(base), str(log)),
            ring(3),
            RenderConfig(image_size=32),
            n_points=256,
            n_fps=64,
        )
        processor = IsolatedProcessor(settings, timeout_s, memory_bytes)
        last = begun
        try:
            for at, item in enumerate(processor(records)):
                now = time.monotonic()
                _count(report, cases[at], item)
                report.took[cases[at].name] = now - last
                if at:  # before the first one the child starts
                    report.slowest = max(report.slowest, (now - last, cases[at].name))
                records.forget(at)
                last = time.monotonic()
                for name in seen.names():
                    if name != "secret.glb":
                        report.findings.append(f"{cases[at].name}: {name} was opened")
                if server.connections:
                    report.findings.append(f"{cases[at].name}: a connection was made")
                    server.connections = 0
        finally:
            processor.close()
        for line in log.read_text().splitlines():
            told = json.loads(line)
            name = cases[told["number"]].name
            if "event" in told:
                report.findings.append(f"{name}: {told['event']}")
            else:
                report.largest = max(report.largest, (told["peak"], name))
    for place in (base, base.parent):
        strange = {p.name for p in place.iterdir()} - {*CANARIES, "assets"}
        report.findings += [f"{name} was made" for name in strange if not name.isdigit()]
    report.seconds = time.monotonic() - begun
    return report


def _count(report: Report, case: Case, item: Processed | Failure) -> None:
    report.tried += 1
    if isinstance(item, Processed):
        good = np.isfinite(item.xyz).all() and float(np.abs(item.xyz).max()) <= 1 + 1e-4
        report.succeeded += 1
        if not good:
            report.findings.append(f"{case.name}: points that are no points")
        return
    report.kinds[item.error] += 1
    report.messages[case.name] = f"{item.error}: {item.message}"
    if item.error not in KINDS or not item.message.strip() or "\n" in item.message:
        report.findings.append(f"{case.name}: {item.stage}, {item.error}: {item.message[:150]}")
    else:
        report.failed += 1


def _write_canaries(folder: Path) -> None:
    from tests.chaos.mutate_clouds import XYZ, h5, npy

    picture = png(np.zeros((2, 2, 3), np.uint8))
    contents = {
        "secret.png": picture,
        "secret.bin": b"\0" * 4096,
        "secret.mtl": b"newmtl red\nKd 1 0 0\nnewmtl blue\nKd 0 0 1\n",
        "secret.h5": h5(lambda file: file.create_dataset("xyz", data=XYZ)),
        "secret.npy": npy(XYZ),
        "secret.glb": cube_glb(),
    }
    assert set(contents) == set(CANARIES)
    for name, data in contents.items():
        (folder / name).write_bytes(data)


class _Opened:
    """Which of some files were opened, as the kernel tells (inotify, Linux)."""

    _OPEN = 0x20

    def __init__(self, paths: Sequence[Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._handle >= 0
        self._names = {}
        for path in paths:
            number = self._libc.inotify_add_watch(self._handle, os.fsencode(path), self._OPEN)
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._names[number] = path.name

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def names(self) -> set[str]:
        """Since the last call."""
        found: set[str] = set()
        while True:
            try:
                data = os.read(self._handle, 4096)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                number, _, _, length = struct.unpack_from("<iIII", data, at)
                found.add(self._names[number])
                at += 16 + length


class _Server:
    """Accepts connections on a local port, and counts them."""

    def __enter__(self) -> _Server:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.connections = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            self.connections += 1
            connection.close()

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder whose name is short and the same length everywhere."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(os.path.realpath(name))


def digest(case: Case, world: World) -> str:
    """What tells cases apart: the bytes of their files."""
    parts = [piece for name, data in case.build(world).items() for piece in (name, data)]
    return content_hash(*parts)
