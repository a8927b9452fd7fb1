"""Stand-ins for what workers of the embedding job do: they wait. Imported by every worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.datasets.base import Asset, Record
from pipeline.ledger import Guard, Reporter
from pipeline.shards import Row
from pipeline.shards.schema import quantised
from pipeline.spool import GROUP, SpoolReader
from pipeline.stages import Done, pack, unpack

SPREAD = 0.15  # of a task's time: that of real objects, 1.2 times their mean, over the root of 64


@dataclass(frozen=True)
class Listed:
    """A source that lists so many objects and can load none."""

    size: int

    name: str = "listed"

    @property
    def options(self) -> dict[str, Any]:
        """For the manifest."""
        return {"count": self.size}

    def records(self) -> Iterator[Record]:
        """Uids as long as those of Objaverse, with two texts each."""
        for number in range(self.size):
            key = f"{number:032x}"
            yield Record(
                f"listed/{key}",
                "listed",
                f"glbs/000-{number % 160:03d}/{key}.glb",
                key,
                texts=("a simulated object", "object, simulated"),
                text_sources=("name", "tags"),
            )

    def count(self) -> int | None:
        """How many."""
        return self.size

    def load(self, record: Record) -> Asset:
        """Never called. Raises ``NotImplementedError``."""
        raise NotImplementedError(record.uid)


@dataclass(frozen=True)
class Waiting:
    """What the stand-ins need to know: how long tasks take, and what size the rows have."""

    seconds: float  # a task of 64 objects
    n_points: int
    n_views: int
    width: int

    def row(self, record: Record) -> Row:
        """One row; the same numbers for all of a process but for the uid."""
        rng = np.random.default_rng(0)
        views = rng.normal(size=(self.n_views, self.width)).astype(np.float32)
        views /= np.linalg.norm(views, axis=-1, keepdims=True)
        xyz = rng.uniform(-0.5, 0.5, (self.n_points, 3)).astype(np.float32)
        return quantised(
            Row(
                record.uid,
                record.dataset,
                record.source,
                None,
                None,
                xyz,
                np.zeros((self.n_points, 3), np.uint8),
                True,
                views,
                record.texts,
                record.text_sources,
                views[:2],
                "0" * 64,
                1000,
                600,
                1_000_000,
            )
        )

    def wait(self, key: str, count: int) -> float:
        """Wait as long as ``count`` objects take, with a spread that the key decides."""
        spread = np.random.default_rng(list(key.encode())).normal(0, SPREAD)
        seconds = float(self.seconds * count / GROUP * np.exp(spread))
        time.sleep(seconds)
        return seconds


class WaitingStage:
    """Stands for ``EmbedStage``: reads its task, asks the ledger, waits, hands rows on."""

    def __init__(self, waiting: Waiting, spool: str, reporter: Reporter) -> None:
        self._guard = Guard(reporter)
        with self._guard.starting():
            self._waiting, self._name, self._spool = waiting, spool, SpoolReader(spool)
            self._row = waiting.row(next(Listed(1).records()))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One task."""
        key = f"{self._name}/{batch.to_pylist()}"
        todo = self._spool.read(batch)
        with self._guard.attempt(key):
            seconds = self._waiting.wait(todo[0].record.uid, len(todo))
            spent = {"wait": seconds / len(todo)}
            done = [
                Done(item.places, {0: replace(self._row, uid=item.record.uid)}, seconds=spent)
                for item in todo
            ]
        return pack(done)


class HandingOnStage:
    """Stands for ``EncodeStage``: asks the ledger, waits, hands on."""

    def __init__(self, seconds: float, reporter: Reporter) -> None:
        self._guard = Guard(reporter)
        with self._guard.starting():
            self._seconds = seconds

    def __call__(self, batch: pa.Table) -> pa.Table:
        """What came of one task of the renderers."""
        items: list[Done] = unpack(batch)
        with self._guard.attempt(f"encode from {items[0].uid}"):
            time.sleep(self._seconds * len(items) / GROUP)
        return batch
