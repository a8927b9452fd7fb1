"""What a run would take, before it starts: a few objects are embedded here and the rest projected.

Nothing is written. The sample is drawn evenly from all that is to be done, so the listing is walked
to its end once.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.captions import CaptionJoin
from pipeline.catalog import pending_sets
from pipeline.cluster import available, running
from pipeline.common import check_place, cores, shown_bytes
from pipeline.console import print_table
from pipeline.datasets.base import Record
from pipeline.isolated import IsolatedProcessor, compile_all
from pipeline.job import EmbedOptions, for_teachers, listed, prepare
from pipeline.objects import Processed
from pipeline.shards import Manifest, Row, create_or_open
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.storage import Storage, shown
from pipeline.shards.writer import ROW_GROUP_ROWS, encode_part
from pipeline.stages import EncodeSettings, EncodeStage, Target


@dataclass(frozen=True)
class Estimate:
    """A projection. Seconds are of one worker; ``hours`` is the whole run on all of them."""

    records: int  # that the source lists
    to_do: int  # of them, in any of the sets
    to_do_by_set: dict[str, int]
    sampled: int
    sample_failed: int
    reasons: dict[str, int]
    seconds: dict[str, float]  # an object, by stage, mean over the sample
    seconds_range: tuple[float, float]  # an object, all stages: least and most in the sample
    encode_seconds: float  # an object, all teachers, on their device
    workers: int
    encoders: int  # 0: the workers encode
    hours: float
    hours_range: tuple[float, float]  # if all objects were like the quickest, or the slowest
    limited_by: str  # workers or encoders
    bytes_per_object: dict[str, float]  # on disk, by shard set
    kept_bytes_per_object: float  # pictures beside the first set
    source_bytes_per_object: float  # read or downloaded
    total_bytes: float
    free_bytes: int | None  # where the sets go; None: not known
    cost: float | None = None
    price_per_hour: float | None = None
    basis: str = field(default="")


def estimate(
    options: EmbedOptions, sample: int = 8, price_per_hour: float | None = None
) -> Estimate:
    """Project a run from ``sample`` objects.

    Raises ``InputError`` as ``pipeline.job.embed`` does, for everything that would keep a run from
    starting.
    """
    targets = prepare(options, write=False)
    objects = for_teachers(options.objects, *(t.manifest.teacher for t in targets.targets))
    options = replace(options, objects=objects)
    with CaptionJoin(options.objects.captions.files, lambda: listed(options)) as captions:
        captions.probe()
        chosen, records, lacking = _draw(options, targets, sample)
        chosen = list(captions.join(chosen))
    to_do = lacking.total()
    by_set = {
        target.out: sum(n for places, n in lacking.items() if place in places)
        for place, target in enumerate(targets.targets)
    }
    compile_all(options.objects.renderer)
    processor = IsolatedProcessor(options.objects, options.timeout_s)
    try:
        if chosen:
            list(processor(chosen[:1]))  # imports and first touches are not the objects' fault
        done = list(processor(chosen))
    finally:
        processor.close()
    good = [item for item in done if isinstance(item, Processed)]
    reasons = Counter(
        f"{item.stage}: {item.error}" for item in done if not isinstance(item, Processed)
    )
    encode_seconds, rows = _encoded(targets, good)
    stages = {
        name: float(np.mean([item.seconds.get(name, 0.0) for item in good]))
        for name in ("load", "render", "keep", "sample")
        if any(name in item.seconds for item in good)
    }
    spent = [sum(item.seconds.values()) for item in good] or [0.0]
    workers, encoders = _processes(options, targets.device)

    def wall(seconds: float) -> tuple[float, str]:
        """Seconds an object with all workers at it, and what they wait for."""
        if not encoders:
            return (seconds + encode_seconds) / workers, "workers"
        return max((seconds / workers, "workers"), (encode_seconds / encoders, "encoders"))

    per_object, limited_by = wall(float(np.mean(spent)))
    hours = per_object * to_do / 3600
    low, high = (wall(s)[0] * to_do / 3600 for s in (min(spent), max(spent)))
    sizes = {
        target.out: part_bytes(
            target.manifest, found, max(1, min(options.rows_per_part, by_set[target.out]))
        )
        if found
        else 0.0
        for target, found in zip(targets.targets, rows, strict=True)
    }
    kept = [
        sum(map(len, item.kept.views)) + len(item.kept.thumbnail or b"")
        for item in good
        if item.kept is not None
    ]
    kept_bytes = float(np.mean(kept)) if kept else 0.0
    total = sum(sizes[out] * count for out, count in by_set.items())
    total += kept_bytes * by_set[targets.targets[0].out]
    return Estimate(
        records=records,
        to_do=to_do,
        to_do_by_set=by_set,
        sampled=len(done),
        sample_failed=len(done) - len(good),
        reasons=dict(reasons),
        seconds=stages,
        seconds_range=(min(spent), max(spent)),
        encode_seconds=encode_seconds,
        workers=workers,
        encoders=encoders,
        hours=hours,
        hours_range=(low, high),
        limited_by=limited_by,
        bytes_per_object=sizes,
        kept_bytes_per_object=kept_bytes,
        source_bytes_per_object=float(np.mean([i.n_bytes for i in good])) if good else 0.0,
        total_bytes=total * len(good) / max(1, len(done)),
        free_bytes=_free(options.out),
        cost=None if price_per_hour is None else hours * price_per_hour,
        price_per_hour=price_per_hour,
        basis=f"{len(good)} objects of {to_do:,}, sampled evenly, one at a time on this machine; "
        f"teachers on {targets.device}; add the start-up time of Ray and the workers",
    )


def _draw(
    options: EmbedOptions, targets: EncodeSettings, sample: int
) -> tuple[list[Record], int, Counter[tuple[int, ...]]]:
    """An even sample of what is to be done, how many records there are, how many which sets lack.

    The sets go by their places in ``targets``.
    """
    records = 0

    def counted() -> Iterator[Record]:
        nonlocal records
        for record in listed(options):
            records += 1
            yield record

    outs = [_begun(target) for target in targets.targets]
    rng = random.Random(0)
    chosen: list[tuple[int, Record]] = []  # a reservoir
    lacking: Counter[tuple[int, ...]] = Counter()
    pending = pending_sets(outs, counted(), retry_failures=options.retry_failures)
    for seen, (record, places) in enumerate(pending, 1):
        lacking[places] += 1
        if len(chosen) < sample:
            chosen.append((seen, record))
        elif (place := rng.randrange(seen)) < sample:
            chosen[place] = (seen, record)
    return [record for _, record in sorted(chosen, key=lambda p: p[0])], records, lacking


def _begun(target: Target) -> str | None:
    """The set of a target if it is there; checks that it fits."""
    storage = Storage.at(target.out)
    if storage.is_local:
        check_place(Path(storage.path), "--out", folder=True)
    if not storage.exists(MANIFEST) and not storage.list("part-", ".parquet"):
        return None
    create_or_open(target.out, target.manifest)  # writes nothing: it is there, or refused
    return target.out


def _encoded(targets: EncodeSettings, good: list[Processed]) -> tuple[float, list[list[Row]]]:
    """Seconds an object that all teachers together take, and the rows that each makes."""
    places = tuple(range(len(targets.targets)))
    if not good:
        return 0.0, [[] for _ in places]
    stage = EncodeStage(targets)
    stage.encoded([(good[0], places)])  # first touches
    start = time.perf_counter()
    done = stage.encoded([(item, places) for item in good])
    seconds = (time.perf_counter() - start) / len(good)
    return seconds, [[item.rows[place] for item in done] for place in places]


def part_bytes(manifest: Manifest, rows: Sequence[Row], rows_per_part: int) -> float:
    """Bytes on disk of a row like ``rows``, on average, in parts of ``rows_per_part``.

    A file has, besides what its rows hold, a footer and some bytes for every column of every row
    group. They are told apart by files of one row and of all of them, and by the footers of files
    of one row group and of two.
    """

    def size(some: Sequence[Row]) -> int:
        return len(encode_part(manifest, some)[1])

    group = rows[:ROW_GROUP_ROWS]
    alone = float(np.mean([size([row]) for row in group]))
    row = (size(group) - alone) / (len(group) - 1) if len(group) > 1 else alone
    fixed = alone - row
    tiled = [
        replace(rows[at % len(rows)], uid=f"{rows[at % len(rows)].uid}/{at:05d}")
        for at in range(ROW_GROUP_ROWS + 1)
    ]
    one = _besides(encode_part(manifest, tiled[:-1])[1])
    more = _besides(encode_part(manifest, tiled)[1]) - one + (fixed - one)
    groups = -(-rows_per_part // ROW_GROUP_ROWS)
    return row + (fixed + more * (groups - 1)) / rows_per_part


def _besides(data: bytes) -> int:
    """Bytes of a Parquet file that are not of its columns."""
    found = pq.read_metadata(pa.BufferReader(data))
    groups = [found.row_group(index) for index in range(found.num_row_groups)]
    columns: int = sum(
        group.column(column).total_compressed_size
        for group in groups
        for column in range(group.num_columns)
    )
    return len(data) - columns


def _processes(options: EmbedOptions, device: str) -> tuple[int, int]:
    """How many workers and encoders the job would start."""
    if options.address:
        with running(options.address) as cpus:
            room, gpus = cpus() - 1, available("GPU")
    else:
        import torch

        room, gpus = cores(), torch.cuda.device_count()
    workers = max(1, int(room / options.worker_cpus))
    if options.workers:
        workers = min(workers, options.workers) if options.address else options.workers
    if device != "cuda":
        return workers, 0
    return workers, options.encoders or max(1, int(gpus / options.encoder_gpus))


def _free(out: str) -> int | None:
    """Room on the disk that a local set would be on."""
    storage = Storage.at(out)
    if not storage.is_local:
        return None
    path = Path(storage.path)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def show(found: Estimate) -> None:
    """Print an estimate as a table."""
    low, high = found.seconds_range
    quick, slow = found.hours_range
    stages = ", ".join(f"{name} {1e3 * value:.0f}" for name, value in found.seconds.items())
    rows: list[list[object]] = [
        ["objects listed, already there, to do", _counts(found)],
        ["ms per object", f"{stages}, encode {1e3 * found.encode_seconds:.0f}"],
        ["without encoding", f"{1e3 * low:.0f} to {1e3 * high:.0f} ms in the sample"],
        ["workers", f"{found.workers}" + (f", {found.encoders} on GPUs" * (found.encoders > 0))],
        [
            "time",
            f"{_span(found.hours)} ({_span(quick)} to {_span(slow)} if all objects were like one "
            f"of the sample), limited by the {found.limited_by}",
        ],
    ]
    for out, size in found.bytes_per_object.items():
        told = f"{size / 1e3:.1f}, {found.to_do_by_set[out]:,} objects"
        rows.append([f"{shown(out)}, kB per object", told])
    if found.kept_bytes_per_object:
        rows.append(["kept pictures, kB per object", f"{found.kept_bytes_per_object / 1e3:.1f}"])
    room = "" if found.free_bytes is None else f" of {shown_bytes(found.free_bytes)} free"
    lacks = found.free_bytes is not None and found.total_bytes > found.free_bytes
    rows.append(
        ["size on disk", shown_bytes(found.total_bytes) + room + (": NOT ENOUGH SPACE" * lacks)]
    )
    rows.append(["to read or download", shown_bytes(found.source_bytes_per_object * found.to_do)])
    if found.cost is not None:
        rows.append(["cost", f"{found.cost:,.2f} at {found.price_per_hour:g} per hour"])
    if found.sample_failed:
        told = ", ".join(f"{n} x {kind}" for kind, n in found.reasons.items())
        rows.append(["failed in the sample", f"{found.sample_failed} of {found.sampled}: {told}"])
    rows.append(["basis", found.basis])
    print_table("estimate; nothing was written", ["", ""], [[k, str(v)] for k, v in rows])


def _counts(found: Estimate) -> str:
    return f"{found.records:,}, {found.records - found.to_do:,}, {found.to_do:,}"


def _span(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:,.1f} h"
