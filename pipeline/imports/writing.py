"""One process's share of an import: objects of units to rows, rows to parts.

Rows and failures gather until they fill a part. Before a part is written its uids are claimed
from the driver, which knows what the set holds and what the other processes have written: no uid
comes twice, whatever the archives hold. Killed at any moment, an import has whole parts only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.imports.archives import DamagedArchiveError
from pipeline.imports.layout import Unit
from pipeline.imports.openshape import STAGE, ObjectRules, make_row, source_of, uid_of
from pipeline.scene import MeshError
from pipeline.shards import Failure, Row, write_failures, write_part
from pipeline.shards.schema import encode_rows

MAX_BYTES = 64 << 20  # of one object; those of the release have about one
_REPORT_EVERY_S = 1.0


@dataclass(frozen=True)
class Task:
    """One unit, which of its objects a list names (None: all) and which are done."""

    unit: Unit
    listed: frozenset[tuple[str, ...]] | None
    done: frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Grant:
    """What may be written of a claim: all but ``drop``. ``stop``: nothing more is wanted."""

    drop: frozenset[str]
    known: int = 0  # of those, how many the set holds already
    stop: bool = False


@dataclass
class Progress:
    """What a process did since its last report."""

    rows: int = 0
    failures: int = 0
    skipped: int = 0  # done before
    unwanted: int = 0  # on no list
    reasons: Counter[str] = field(default_factory=Counter)
    damaged: str | None = None  # archive and reason


Claim = Callable[[list[str], int], Grant]  # uids of rows and failures, how many of them are rows


class Writer:
    """Gathers rows and failures and writes them as parts of ``out``."""

    def __init__(self, out: str, rules: ObjectRules, rows_per_part: int, claim: Claim) -> None:
        self.out, self.rules, self.claim = out, rules, claim
        self.rows_per_part = rows_per_part
        self.stopped = False
        self._rows: dict[str, Row] = {}
        self._failures: dict[str, Failure] = {}

    def run(self, tasks: Iterable[Task]) -> Iterator[Progress]:
        """Read every task to its end; reports come about once a second and after each part."""
        for task in tasks:
            yield from self._unit(task)
            if self.stopped:
                return
        yield self.flush()

    def _unit(self, task: Task) -> Iterator[Progress]:
        progress, reported = Progress(), time.monotonic()
        try:
            for member in task.unit.members(MAX_BYTES):
                place = task.unit.place_of(member.name)
                if not self.rules.wanted(place, task.listed):
                    progress.unwanted += 1
                elif place in task.done:
                    progress.skipped += 1
                else:
                    self._object(place, member.data, member.size)
                    if len(self._rows) + len(self._failures) >= self.rows_per_part:
                        yield self.flush()
                        if self.stopped:
                            return
                if time.monotonic() - reported > _REPORT_EVERY_S:
                    yield progress
                    progress, reported = Progress(), time.monotonic()
        except DamagedArchiveError as error:
            progress.damaged = f"{task.unit.path}: {error}"
        except OSError as error:
            progress.damaged = f"{task.unit.path}: cannot be read ({error.strerror or error})"
        yield progress

    def _object(self, place: tuple[str, ...], data: bytes | None, size: int) -> None:
        uid = uid_of(place)
        try:
            if data is None:
                raise MeshError(
                    "too_large", f"{size:,} bytes, at most {MAX_BYTES:,} are read", stage=STAGE
                )
            row = make_row(data, place, self.rules)
        except MeshError as error:
            self._fail(uid, place, error.kind, error.message)
        else:
            if row.uid in self._rows:
                self._fail(uid, place, "duplicate", f"{row.uid} comes twice")
            else:
                self._rows[row.uid] = row

    def _fail(self, uid: str, place: tuple[str, ...], error: str, message: str) -> None:
        if uid in self._rows:  # a second file of an object that is there: the first one counts
            return
        self._failures[uid] = Failure(
            uid, place[0].lower(), source_of(place), STAGE, error, message
        )

    def flush(self) -> Progress:
        """Write what has gathered."""
        if not self._rows and not self._failures:
            return Progress()
        for uid in self._rows:
            self._failures.pop(uid, None)
        grant = self.claim([*self._rows, *self._failures], len(self._rows))
        self.stopped = grant.stop
        rows = [row for uid, row in self._rows.items() if uid not in grant.drop]
        failures = [item for uid, item in self._failures.items() if uid not in grant.drop]
        self._rows, self._failures = {}, {}
        try:
            if rows:
                write_part(self.out, self.rules.manifest, rows)
        except (ValueError, TypeError, AttributeError):
            # A row breaks the contract, before anything is written: files may hold anything.
            rows, bad = self._sorted_out(rows)
            failures += bad
            if rows:
                write_part(self.out, self.rules.manifest, rows)
        if failures:
            write_failures(self.out, failures)
        return Progress(
            rows=len(rows),
            failures=len(failures),
            skipped=grant.known,
            reasons=Counter(f"{item.stage}: {item.error}" for item in failures),
        )

    def _sorted_out(self, rows: list[Row]) -> tuple[list[Row], list[Failure]]:
        """The rows that keep the contract, and a failure for each that does not."""
        good, bad = [], []
        for row in rows:
            try:
                encode_rows([row], self.rules.manifest)
                good.append(row)
            except (ValueError, TypeError, AttributeError) as error:
                bad.append(
                    Failure(
                        row.uid, str(row.dataset), str(row.source), STAGE, "bad_row", str(error)
                    )
                )
        return good, bad
