"""A source that does what none may, to see that the watch of ``tests.chaos.watch`` tells of it."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.base import Asset, Record
from tests.chaos import watch
from tests.chaos.mutate import Case, World

DEEDS = ("python", "write", "native", "connect", "process", "exception", "hang", "crash", "hunger")


@dataclass(frozen=True)
class Spy(watch.WatchedDataset):
    """Does, at each case, what its file says."""

    def load(self, record: Record) -> Asset:
        number, _, file = record.key.split("/", 2)
        root = Path(self.base) / number
        watch._watcher(self.log).begin(number, str(root))
        deed, _, port = (root / file).read_text().partition(" ")
        getattr(self, f"_{deed}")(root.parent, int(port))
        raise ZeroDivisionError("done")

    def _python(self, above: Path, _: int) -> None:
        (above / "secret.bin").read_bytes()
        list(above.iterdir())

    def _write(self, above: Path, _: int) -> None:
        (above / "0").mkdir(exist_ok=True)
        (above / "left.txt").write_text("x")

    def _native(self, above: Path, _: int) -> None:
        libc = ctypes.CDLL(None)
        libc.close(libc.open(os.fsencode(above / "secret.png"), os.O_RDONLY))

    def _connect(self, _: Path, port: int) -> None:
        socket.create_connection(("127.0.0.1", port)).close()
        time.sleep(0.2)

    def _process(self, *_: object) -> None:
        subprocess.run(["true"], check=True)

    def _exception(self, *_: object) -> None:
        raise ZeroDivisionError("a finding")

    def _hang(self, *_: object) -> None:
        time.sleep(60)

    def _crash(self, *_: object) -> None:
        os.abort()

    def _hunger(self, *_: object) -> None:
        bytearray(64 << 30)


def run_spies(folder: Path) -> list[str]:
    """What the watch finds of every deed."""

    def of(deed: str) -> Case:
        def build(world: World) -> dict[str, bytes]:
            return {"deed": f"{deed} {world.port}".encode()}

        return Case(f"spy/{deed}", "mesh", build)

    cases = [of(deed) for deed in DEEDS]
    return watch.watched_run(cases, folder, timeout_s=4, memory_bytes=4 << 30, dataset=Spy).findings
