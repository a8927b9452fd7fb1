"""What a run would take, before it starts: a few objects are embedded here and the rest projected.

Nothing is written. The sample is drawn evenly from all that is to be done, so the listing is walked
to its end once.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from pipeline.captions import CaptionJoin
from pipeline.catalog import pending_sets
from pipeline.console import print_table
from pipeline.datasets.base import Record
from pipeline.encode import Encoder
from pipeline.isolated import IsolatedProcessor
from pipeline.job import EmbedOptions, compile_all, for_teachers, prepare
from pipeline.objects import Processed
from pipeline.shards import Row, create_or_open
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.storage import Storage
from pipeline.shards.writer import encode_part
from pipeline.stages import EncodeSettings


@dataclass(frozen=True)
class Estimate:
    """A projection. Seconds are of one worker; ``hours`` is the whole run on all of them."""

    records: int  # that the source lists
    to_do: int  # of them, in any of the sets
    sampled: int
    sample_failed: int
    reasons: dict[str, int]
    seconds: dict[str, float]  # an object, by stage, mean over the sample
    seconds_range: tuple[float, float]  # an object, all stages: least and most in the sample
    encode_seconds: float  # an object, all teachers, on their device
    workers: int
    encoders: int  # 0: the workers encode
    hours: float
    limited_by: str  # workers or encoders
    bytes_per_object: dict[str, float]  # on disk, by shard set
    kept_bytes_per_object: float  # pictures beside the first set
    source_bytes_per_object: float  # read or downloaded
    total_bytes: float
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
    with CaptionJoin(options.objects.captions.files) as captions:
        captions.probe(islice(options.objects.dataset.records(), options.limit))
        chosen, records, to_do = _draw(options, targets, sample)
        chosen = list(captions.join(chosen))
    compile_all(options.objects.renderer)
    processor = IsolatedProcessor(options.objects, options.timeout_s)
    try:
        if chosen:
            list(processor(chosen[:1]))  # imports and first touches are not the objects' fault
        done = list(processor(chosen))
    finally:
        processor.close()
    good = [item for item in done if isinstance(item, Processed)]
    reasons: dict[str, int] = {}
    for item in done:
        if not isinstance(item, Processed):
            kind = f"{item.stage}: {item.error}"
            reasons[kind] = reasons.get(kind, 0) + 1
    encode_seconds, rows = _encoded(targets, good)
    stages = {
        name: float(np.mean([item.seconds.get(name, 0.0) for item in good]))
        for name in ("load", "render", "keep", "sample")
        if any(name in item.seconds for item in good)
    }
    spent = [sum(item.seconds.values()) for item in good] or [0.0]
    workers = options.workers or max(1, int((os.cpu_count() or 1) / options.worker_cpus))
    encoders = 0
    per_object = (float(np.mean(spent)) + encode_seconds) / workers
    limited_by = "workers"
    if targets.device == "cuda":
        encoders = options.encoders or _gpus()
        rendering, encoding = float(np.mean(spent)) / workers, encode_seconds / encoders
        per_object, limited_by = max(
            (rendering, "workers"), (encoding, "encoders"), key=lambda pair: pair[0]
        )
    sizes = {
        target.out: len(encode_part(target.manifest, found)[1]) / len(found) if found else 0.0
        for target, found in zip(targets.targets, rows, strict=True)
    }
    kept = [
        sum(map(len, item.kept.views)) + len(item.kept.thumbnail or b"")
        for item in good
        if item.kept is not None
    ]
    kept_bytes = float(np.mean(kept)) if kept else 0.0
    fraction = len(good) / len(done) if done else 1.0
    hours = per_object * to_do / 3600
    return Estimate(
        records=records,
        to_do=to_do,
        sampled=len(done),
        sample_failed=len(done) - len(good),
        reasons=reasons,
        seconds=stages,
        seconds_range=(min(spent), max(spent)),
        encode_seconds=encode_seconds,
        workers=workers,
        encoders=encoders,
        hours=hours,
        limited_by=limited_by,
        bytes_per_object=sizes,
        kept_bytes_per_object=kept_bytes,
        source_bytes_per_object=float(np.mean([i.n_bytes for i in good])) if good else 0.0,
        total_bytes=(sum(sizes.values()) + kept_bytes) * to_do * fraction,
        cost=None if price_per_hour is None else hours * price_per_hour,
        price_per_hour=price_per_hour,
        basis=f"{len(good)} objects embedded here, on {targets.device}",
    )


def _draw(
    options: EmbedOptions, targets: EncodeSettings, sample: int
) -> tuple[list[Record], int, int]:
    """An even sample of what is to be done, how many records there are, how many are to do."""
    records = 0

    def counted() -> Iterator[Record]:
        nonlocal records
        for record in islice(options.objects.dataset.records(), options.limit):
            records += 1
            yield record

    todo: Iterator[Record] = counted()
    begun = [t for t in targets.targets if Storage.at(t.out).exists(MANIFEST)]
    for target in begun:
        create_or_open(target.out, target.manifest)  # there already: checks that it fits
    if len(begun) == len(targets.targets):
        lacking = pending_sets([t.out for t in begun], todo, retry_failures=options.retry_failures)
        todo = (record for record, _ in lacking)
    rng = random.Random(0)
    chosen: list[tuple[int, Record]] = []  # a reservoir
    seen = 0
    for record in todo:
        seen += 1
        if len(chosen) < sample:
            chosen.append((seen, record))
        elif (place := rng.randrange(seen)) < sample:
            chosen[place] = (seen, record)
    return [record for _, record in sorted(chosen, key=lambda pair: pair[0])], records, seen


def _encoded(targets: EncodeSettings, good: list[Processed]) -> tuple[float, list[list[Row]]]:
    """Seconds an object that all teachers together take, and the rows that each makes."""
    from pipeline.teacher import load_matching

    seconds, rows = 0.0, []
    for target in targets.targets:
        teacher = load_matching(
            target.manifest.teacher, target.spec, targets.device, **targets.teacher_options
        )
        encoder = Encoder(teacher, target.manifest.templates)
        encoder.encode(good[:1])
        start = time.perf_counter()
        rows.append(encoder.encode(good))
        seconds += (time.perf_counter() - start) / max(1, len(good))
    return seconds, rows


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def show(found: Estimate) -> None:
    """Print an estimate as a table."""
    low, high = found.seconds_range
    stages = ", ".join(f"{name} {1e3 * value:.0f}" for name, value in found.seconds.items())
    rows: list[list[object]] = [
        ["objects listed, to do", f"{found.records:,}, {found.to_do:,}"],
        ["ms an object", f"{stages}, encode {1e3 * found.encode_seconds:.0f}"],
        ["without encoding", f"{1e3 * low:.0f} to {1e3 * high:.0f} ms in the sample"],
        ["workers", f"{found.workers}" + (f", {found.encoders} on GPUs" * (found.encoders > 0))],
        ["time", f"{_span(found.hours)}, limited by the {found.limited_by}"],
    ]
    for out, size in found.bytes_per_object.items():
        rows.append([f"{out}, kB an object", f"{size / 1e3:.1f}"])
    if found.kept_bytes_per_object:
        rows.append(["kept pictures, kB an object", f"{found.kept_bytes_per_object / 1e3:.1f}"])
    rows.append(["size on disk", _size(found.total_bytes)])
    rows.append(["to read or download", _size(found.source_bytes_per_object * found.to_do)])
    if found.cost is not None:
        rows.append(["cost", f"{found.cost:,.2f} at {found.price_per_hour:g} an hour"])
    if found.sample_failed:
        told = ", ".join(f"{n} x {kind}" for kind, n in found.reasons.items())
        rows.append(["failed in the sample", f"{found.sample_failed} of {found.sampled}: {told}"])
    rows.append(["basis", found.basis])
    print_table("estimate; nothing was written", ["", ""], [[k, str(v)] for k, v in rows])


def _span(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:,.1f} h"


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
