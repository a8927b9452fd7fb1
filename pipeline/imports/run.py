"""The import of the release: units shared out to processes, with one driver that keeps count.

    driver: lists, what is done -> tasks -> processes: read, convert, claim, write parts
                                      <- reports

A plain pool of processes, not Ray: the work is a stream per archive with nothing to shuffle, and
the processes exchange uids only. The set is its own checkpoint, as everywhere.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalog import clean_temporaries, failed_uids
from pipeline.common import InputError, cores
from pipeline.console import ProgressBar, note, tell_failed_before
from pipeline.imports.exported import MANIFEST_FILE, read_manifest
from pipeline.imports.layout import (
    EVERYTHING,
    LISTS,
    META,
    Unit,
    by_unit,
    find_units,
    meta_file,
    read_filtered,
    read_list,
)
from pipeline.imports.openshape import F32, N_VIEWS, ObjectRules, as_words, make_manifest, uid_of
from pipeline.imports.unpickle import BadPickleError, UnsafePickleError, load_npy
from pipeline.imports.writing import Grant, Progress, Task, Writer
from pipeline.lock import exclusive
from pipeline.meshes import UP_AXES
from pipeline.shards import (
    ShardSet,
    create_or_open,
    has_lost_files,
    mark_unfinished,
    record_contents,
)


@dataclass(frozen=True)
class ImportOptions:
    """One import."""

    root: Path
    out: str
    only_lvis: bool = False  # the LVIS objects alone, as an evaluation set
    split_file: str = "train_all"  # which objects: a name of ``LISTS``, ``all``, or a JSON file
    holdout_lvis: bool = False  # LVIS objects get the split "test", on the list or not
    text_filter: bool = True  # leave out raw texts that gpt4_filtering.json marks "N"
    up_axis: str = "+y"  # of the stored clouds
    n_points: int = 10_000
    n_views: int = N_VIEWS
    workers: int | None = None  # processes; None: one per CPU
    rows_per_part: int = 256
    max_failures: float = 0.05  # fraction
    retry_failures: bool = False
    limit: int | None = None  # at most that many new rows

    def recorded(self) -> dict[str, Any]:
        """Those that decide what rows hold."""
        return {
            "kind": "lvis" if self.only_lvis else "training",
            "up_axis": self.up_axis,
            "text_filter": self.text_filter,
            "holdout_lvis": self.holdout_lvis,
            "text_features": "prompt_avg; retrieved: original",
        }


@dataclass
class ImportSummary:
    """What an import did."""

    imported: int = 0
    failed: int = 0
    skipped: int = 0  # were there already
    failed_before: int = 0  # of these, as failures
    unwanted: int = 0  # read past: on no list
    lacking: int = 0  # on the list, in archives that are not here
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    limit: float = 0.05

    @property
    def too_many_failures(self) -> bool:
        """Whether more than the fraction ``limit`` have failed, in this run and before."""
        total = self.imported + self.failed + self.skipped
        return self.failed + self.failed_before > self.limit * total

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def import_openshape(options: ImportOptions) -> ImportSummary:
    """Import until every wanted object that is there is a row or a failure.

    Raises ``InputError`` for bad options, a folder that is not the release, a set made with other
    options, another run at work on it, and, once everything else is done, damaged archives.
    """
    begun = time.perf_counter()
    if options.up_axis not in UP_AXES:
        raise InputError(f"--up-axis {options.up_axis}: use one of {', '.join(UP_AXES)}")
    units = find_units(options.root)
    rules = _rules(options)
    summary = ImportSummary(limit=options.max_failures)
    listed, summary.lacking = _listed(options, rules, units)
    if listed is not None and not listed:
        held = ", ".join(sorted({unit.place[0] for unit in units}))
        raise InputError(
            f"{options.root}: none of the {summary.lacking:,} listed objects is in the files "
            f"found ({held}); download more archives, or use another --split-file"
        )
    create_or_open(options.out, rules.manifest)
    with exclusive(options.out):
        clean_temporaries(options.out)
        uids, done = _done(options, units)
        if not options.retry_failures:
            summary.failed_before = len(failed_uids(options.out))
        tasks = [
            Task(
                unit,
                None if listed is None else frozenset(listed.get(unit.place, ())),
                frozenset(done.get(unit.place, ())),
            )
            for unit in units
            if listed is None or unit.place in listed
        ]
        total = None
        if listed is not None:
            total = sum(uid_of(p) not in uids for places in listed.values() for p in places)
        lost = options.limit is not None and has_lost_files(options.out)
        mark_unfinished(options.out)
        damaged = _drive(options, rules, tasks, uids, summary, total)
        if not damaged and not lost:
            record_contents(options.out)
    summary.seconds = time.perf_counter() - begun
    if damaged:
        tell(summary, options.out)
        raise InputError(
            f"{damaged[0]}{f' (and {len(damaged) - 1} more archives)' if damaged[1:] else ''}: "
            "download it again and run the same command; everything else is imported"
        )
    return summary


def tell(summary: ImportSummary, out: str) -> None:
    """Print how the import went."""
    done = summary.imported + summary.failed
    note(
        f"{out}: {summary.imported} imported, {summary.failed} failed, {summary.skipped} "
        f"already there; {done / summary.seconds if summary.seconds else 0:.1f} objects/s"
    )
    tell_failed_before(summary.failed_before)
    if summary.lacking:
        note(f"  {summary.lacking} listed objects are in archives that were not found")
    for reason, count in summary.reasons.items():
        note(f"  {count} x {reason}")


# Options that say how rows are made of the release's files, and how a user writes them.
_OF_THE_RELEASE = {
    "only_lvis": "-lvis of `pipeline import openshape-lvis`",
    "split_file": "--split-file",
    "holdout_lvis": "--holdout-lvis",
    "text_filter": "--no-text-filter",
    "up_axis": "--up-axis",
    "n_points": "--points",
    "n_views": "--views",
}


def _rules(options: ImportOptions) -> ObjectRules:
    exported = read_manifest(options.root / META / MANIFEST_FILE)
    if exported is not None:
        plain = ImportOptions(options.root, options.out)
        for field, option in _OF_THE_RELEASE.items():
            # Numbers of points and views may be said where they are those of the rows.
            if getattr(options, field) not in (
                getattr(plain, field),
                getattr(exported, field, None),
            ):
                raise InputError(
                    f"{options.root}: is an export of this project, restored row by row as "
                    f"it was; leave out {option} (`pipeline filter` and `split` choose rows)"
                )
        # The pictures stay behind, the contract's version follows.
        manifest = replace(exported, kept_images=None, contract_version=0)
        return ObjectRules(manifest, "+y", {}, frozenset(), False, False, as_exported=True)
    names: dict[str, str] = {}
    needs_lvis = options.only_lvis or options.holdout_lvis
    if needs_lvis or (options.root / META / "split" / "lvis.json").is_file():
        path = meta_file(options.root, "split/lvis.json")
        names = {place[-1]: category or "" for place, category in read_list(path)}
        if not all(names.values()):
            raise InputError(f"{path}: an object has no category; download the file again")
    else:
        note(f"{options.root / META}/split/lvis.json not found: objects get no category")
    filtered: frozenset[str] = frozenset()
    if options.text_filter:
        remedy = "keep all raw texts with --no-text-filter"
        filtered = read_filtered(meta_file(options.root, "gpt4_filtering.json", remedy))
    return ObjectRules(
        manifest=make_manifest(options.recorded(), options.n_points, options.n_views),
        up_axis=options.up_axis,
        categories={name: as_words(category) for name, category in names.items()},
        without_raw_text=filtered,
        holdout_lvis=options.holdout_lvis,
        only_lvis=options.only_lvis,
        category_embeds=lvis_embeds(options.root, names) if options.only_lvis else None,
    )


def lvis_embeds(root: Path, names: dict[str, str]) -> dict[str, F32] | None:
    """The released text feature of every LVIS category, by its words; None where there are none.

    The file has one row for each category, in the order of their sorted names. Raises
    ``InputError`` when it has another number of rows.
    """
    path = root / META / "lvis_cat_name_pt_feat.npy"
    if not path.is_file():
        note(f"{path} not found: categories get no text")
        return None
    categories = sorted(set(names.values()))
    try:
        values = load_npy(path.read_bytes())
    except (BadPickleError, UnsafePickleError) as error:
        raise InputError(f"{path}: {error}; download it again") from error
    if not isinstance(values, np.ndarray) or values.shape[:1] != (len(categories),):
        raise InputError(
            f"{path}: has {getattr(values, 'shape', 'no rows')}, expected one row for each of the "
            f"{len(categories)} categories of split/lvis.json; download both again"
        )
    return {as_words(name): values[row] for row, name in enumerate(categories)}


def _listed(
    options: ImportOptions, rules: ObjectRules, units: list[Unit]
) -> tuple[dict[tuple[str, ...], set[tuple[str, ...]]] | None, int]:
    """Places that lists name, by unit (None: no list counts), and how many are not here."""
    if rules.as_exported:
        return None, 0
    root, name = options.root, options.split_file
    lvis = read_list(meta_file(root, "split/lvis.json")) if rules.categories else []
    if options.only_lvis:
        return by_unit({place for place, _ in lvis}, units)
    if name == EVERYTHING:
        return None, 0
    if name in LISTS:
        folder = "split/ablation" if name == "train_shapenet_only" else "split"
        path = meta_file(root, f"{folder}/{name}.json", "use --split-file all")
    else:
        path = Path(name)
        if not path.is_file():
            raise InputError(
                f"--split-file {name}: no such file; use {', '.join(LISTS)}, {EVERYTHING} or a "
                "JSON file of the same form"
            )
    places = {place for place, _ in read_list(path)}
    if options.holdout_lvis:
        places.update(place for place, _ in lvis)
    return by_unit(places, units)


def _done(
    options: ImportOptions, units: list[Unit]
) -> tuple[set[str], dict[tuple[str, ...], set[tuple[str, ...]]]]:
    """Uids that are rows or failures, and their places by unit."""
    shards = ShardSet.open(options.out)
    pairs = [
        pair
        for batch in shards.batches(["source"])
        for pair in zip(batch.uid, batch.source or [], strict=True)
    ]
    if not options.retry_failures:
        pairs += [(item.uid, item.source) for item in shards.failures()]
    places = (tuple(source.removesuffix(".npy").split("/")) for _, source in pairs)
    return {uid for uid, _ in pairs}, by_unit(places, units)[0]


class _Counter:
    """What the driver knows: uids that are taken, rows that may still come."""

    def __init__(self, uids: set[str], limit: int | None) -> None:
        self.uids, self.left = uids, limit

    def claim(self, uids: list[str], n_rows: int) -> Grant:
        """Grant a process the uids that nobody has; the first ``n_rows`` are rows."""
        if self.left is not None and self.left <= 0:
            return Grant(frozenset(uids), stop=True)
        drop = {uid for uid in uids if uid in self.uids}
        known = len(drop)
        rows = [uid for uid in uids[:n_rows] if uid not in drop]
        if self.left is not None:
            drop.update(rows[self.left :])
            self.left -= len(rows[: self.left])
        self.uids.update(uid for uid in uids if uid not in drop)
        return Grant(frozenset(drop), known, stop=self.left is not None and self.left <= 0)


def _drive(
    options: ImportOptions,
    rules: ObjectRules,
    tasks: list[Task],
    uids: set[str],
    summary: ImportSummary,
    total: int | None,
) -> list[str]:
    """Run all tasks and count; the archives that were damaged."""
    counter = _Counter(uids, options.limit)
    processes = min(options.workers or cores(), max(1, len(tasks)))
    if options.limit is not None:
        total = options.limit if total is None else min(total, options.limit)
    if processes == 1:
        writer = Writer(options.out, rules, options.rows_per_part, counter.claim)
        reports = writer.run(tasks)
    else:
        reports = _pool(options, rules, tasks, counter, processes)
    reasons: Counter[str] = Counter()
    damaged = []
    with ProgressBar("import", total, "objects") as bar:
        for report in reports:
            summary.imported += report.rows
            summary.failed += report.failures
            summary.skipped += report.skipped
            summary.unwanted += report.unwanted
            reasons.update(report.reasons)
            if report.damaged:
                damaged.append(report.damaged)
            bar.advance(report.rows + report.failures, f"{summary.failed} failed")
    summary.reasons = dict(reasons.most_common())
    return damaged


def _pool(
    options: ImportOptions,
    rules: ObjectRules,
    tasks: list[Task],
    counter: _Counter,
    processes: int,
) -> Iterator[Progress]:
    """Reports of ``processes`` children that share the tasks, largest archives first."""
    context = multiprocessing.get_context("spawn")  # the driver has threads, a fork would not
    queue = sorted(tasks, key=_size, reverse=True)
    with ExitStack() as stack:
        children: dict[Connection, Any] = {}
        for _ in range(processes):
            ours, theirs = context.Pipe()
            child = context.Process(
                target=_child, args=(theirs, options.out, rules, options.rows_per_part), daemon=True
            )
            child.start()
            theirs.close()
            stack.callback(child.join, 10)
            stack.callback(child.terminate)
            stack.callback(ours.close)
            children[ours] = child
        while children:
            for connection in wait(list(children)):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, ConnectionResetError):
                    child = children.pop(connection)
                    child.join()
                    raise InputError(
                        f"--workers: a process of the import ended with code {child.exitcode}; run "
                        "the same command again to continue, with fewer of them if memory is short"
                    ) from None
                match message:
                    case "next":
                        task = None
                        if queue and (counter.left is None or counter.left > 0):
                            task = queue.pop(0)
                        connection.send(task)
                    case "done":
                        del children[connection]
                    case Progress():
                        yield message
                    case InputError():
                        raise message
                    case (list() as uids, int() as n_rows):
                        connection.send(counter.claim(uids, n_rows))


def _size(task: Task) -> int:
    return task.unit.path.stat().st_size if task.unit.packed else 0


def _child(connection: Connection, out: str, rules: ObjectRules, rows_per_part: int) -> None:
    def claim(uids: list[str], n_rows: int) -> Grant:
        connection.send((uids, n_rows))
        grant = connection.recv()
        assert isinstance(grant, Grant)
        return grant

    def tasks() -> Iterator[Task]:
        while True:
            connection.send("next")
            task = connection.recv()
            if task is None:
                return
            yield task

    try:
        for progress in Writer(out, rules, rows_per_part, claim).run(tasks()):
            connection.send(progress)
        connection.send("done")
    except InputError as error:  # the folder cannot be written
        connection.send(error)
    except (BrokenPipeError, EOFError, KeyboardInterrupt):
        pass  # the driver has gone: what is written is whole
