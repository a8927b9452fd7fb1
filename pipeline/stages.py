"""The stages of the embedding job, as Ray runs them.

What travels between them is pickled by us, between our own workers only: it is never written to
disk and never read from a user's file.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.captions import CaptionOptions
from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.heap import keep_freed
from pipeline.isolated import IsolatedProcessor
from pipeline.ledger import GIVE_UP, Guard, Reporter
from pipeline.objects import ObjectSettings, Processed, failure, prefer_throughput
from pipeline.shards import (
    Failure,
    KeptImages,
    Manifest,
    Row,
    write_failures,
    write_part,
    write_part_with_images,
)
from pipeline.shards.schema import quantised
from pipeline.shards.storage import Storage
from pipeline.shards.writer import written_uids
from pipeline.spool import SpoolReader, Todo, unseen

# What one core renders before it encodes: each turn costs a pause, and the pictures of the turn are
# held.
_TURN_BYTES = 128 << 20
_TURN_OBJECTS = 64


@dataclass(frozen=True)
class Target:
    """One teacher, and the shard set that its embeddings go to."""

    spec: str  # as ``pipeline.teacher.load_teacher`` takes it
    out: str
    manifest: Manifest


@dataclass(frozen=True)
class EncodeSettings:
    """What the encoders need to know."""

    targets: tuple[Target, ...]
    device: str
    captions: CaptionOptions
    teacher_options: dict[str, Any] = field(default_factory=dict)  # of ``pipeline.teacher.Teacher``


@dataclass(frozen=True)
class Done:
    """What became of one object."""

    places: tuple[int, ...]  # the targets that it is for
    rows: dict[int, Row] = field(default_factory=dict)  # by target; {}: it failed
    failure: Failure | None = None
    kept: KeptImages | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        """The object's."""
        if self.failure is not None:
            return self.failure.uid
        return next(iter(self.rows.values())).uid


# What became of an object so far, and the targets that it is for.
Item = tuple[Processed | Failure, tuple[int, ...]]


def _uid(item: Processed | Failure) -> str:
    return item.uid if isinstance(item, Failure) else item.record.uid


def turn_objects(settings: ObjectSettings) -> int:
    """How many objects a worker renders before it encodes them."""
    sides = [size[0] if size else settings.render.image_size for size in settings.encode_sizes]
    held = sum(3 * min(side, settings.render.image_size) ** 2 for side in sides)
    return max(1, min(_TURN_OBJECTS, _TURN_BYTES // max(1, held * len(settings.cameras))))


class Renderer:
    """Reads tasks from the spool and processes the objects in a child."""

    def __init__(self, settings: ObjectSettings, spool: str, timeout_s: float) -> None:
        self._name = spool
        self._spool = SpoolReader(spool)
        self._processor = IsolatedProcessor(settings, timeout_s)
        self._processor.start()  # it imports and compiles while this process loads the teachers
        self._turn = turn_objects(settings)

    def read(self, batch: pa.Table) -> tuple[str, list[Todo]]:
        """A name for the task of a batch, and its records."""
        told = [f"{row['group']}+{row['begin']}" for row in batch.to_pylist()]
        return f"{self._name}/{','.join(told)}", self._spool.read(batch)

    def turns(self, todo: Sequence[Todo]) -> Iterator[list[Item]]:
        """The objects, a few at a time; the child rests while the caller works on them."""
        for start in range(0, len(todo), self._turn):
            yield list(self.processed(todo[start : start + self._turn]))

    def processed(self, todo: Sequence[Todo]) -> Iterator[Item]:
        """The objects, one at a time."""
        items = self._processor([item.record for item in todo])
        for item, done in zip(items, todo, strict=True):
            yield item, done.places

    def alone(self, todo: Todo, times: int) -> list[Item]:
        """One object that may be what a worker died at; ``times`` it was for certain."""
        if times >= GIVE_UP:
            return [(_lost(todo.record, "process", times), todo.places)]
        return list(self.processed([todo]))


def _lost(record: Record, stage: str, times: int) -> Failure:
    told = f"its worker died {times + 1} times with it; it may need more memory than there is"
    return failure(record, stage, "worker_lost", told)


class RenderStage:
    """Ray actor: reads its tasks from the spool and processes the objects in a child."""

    def __init__(
        self,
        settings: ObjectSettings,
        spool: str,
        timeout_s: float,
        reporter: Reporter | None = None,
    ) -> None:
        self._guard = Guard(reporter)
        with self._guard.starting():
            self._renderer = Renderer(settings, spool, timeout_s)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield every object by itself: one large one must not hold the others back."""
        key, todo = self._renderer.read(batch)
        with self._guard.attempt(key) as lost:
            if not lost:
                for item in self._renderer.processed(todo):
                    yield pack([item])
                return
            for one in todo:  # a worker died at one of these
                with self._guard.attempt(one.record.uid) as times:
                    items = self._renderer.alone(one, times)
                # Here, since it may wait for those that read it: that is no work on the object.
                yield pack(items)


class EncodeStage:
    """Ray actor: holds the teachers and turns processed objects into rows."""

    def __init__(self, settings: EncodeSettings, reporter: Reporter | None = None) -> None:
        self._guard = Guard(reporter)
        with self._guard.starting():
            self._load(settings)

    def _load(self, settings: EncodeSettings) -> None:
        import torch

        from pipeline.captioners import load_captioner
        from pipeline.encode import Encoder
        from pipeline.teacher import load_matching

        # One thread each: there are as many of these as cores, and sums must not depend on how
        # many threads share them.
        torch.set_num_threads(1)
        prefer_throughput()
        cuda = settings.device == "cuda"
        if not cuda:
            keep_freed()
        # Fixed batches: a row must not depend on what it is encoded with.
        options = {"batch_size": 256 if cuda else 32, "fixed_batch": True, "compiled": cuda}
        self._encoders = [
            Encoder(
                load_matching(
                    target.manifest.teacher,
                    target.spec,
                    settings.device,
                    **{**options, **settings.teacher_options},
                ),
                target.manifest.templates,
            )
            for target in settings.targets
        ]
        self._captions = settings.captions
        spec = settings.captions.captioner
        self._captioner = load_captioner(spec, settings.device) if spec else None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode what ``RenderStage`` yields."""
        items: list[Item] = unpack(batch)
        # Not the first object's own key: that object would answer for the death of any other.
        with self._guard.attempt(f"encode from {_uid(items[0][0])}") as lost:
            if not lost:
                return pack(self.encoded(items))
            done: list[Done] = []
            for item, places in items:  # a worker died at one of these
                with self._guard.attempt(f"encode {_uid(item)}") as times:
                    if times >= GIVE_UP and isinstance(item, Processed):
                        item = _lost(item.record, "encode", times)
                    done += self.encoded([(item, places)])
            return pack(done)

    def encoded(self, items: Sequence[Item]) -> list[Done]:
        """Rows of the objects for every target that lacks them; failures as they are."""
        start = time.perf_counter()
        good = {at: item for at, (item, _) in enumerate(items) if isinstance(item, Processed)}
        if self._captioner is not None and good:
            from pipeline.captioners import caption_objects

            views = self._captions.captioner_views
            captioned = caption_objects(list(good.values()), self._captioner, views)
            good = dict(zip(good, captioned, strict=True))
        rows: dict[int, dict[int, Row]] = {at: {} for at in good}
        texts: dict[str, int] = {}
        for place, encoder in enumerate(self._encoders):
            wanted = [at for at in good if place in items[at][1]]
            encoded = encoder.encode([good[at] for at in wanted])
            counts = encoder.take_counts()
            texts = texts or counts  # every teacher reads the same texts: told once
            for at, row in zip(wanted, encoded, strict=True):
                rows[at][place] = quantised(row)
        seconds = (time.perf_counter() - start) / max(1, len(good))
        done = []
        for at, (item, places) in enumerate(items):
            if isinstance(item, Failure):
                done.append(Done(places, failure=item))
                continue
            spent = {**item.seconds, "encode": seconds}
            done.append(Done(places, rows[at], None, item.kept, spent, texts))
            texts = {}
        return done


class EmbedStage:
    """Ray actor: both of the above on one core, for teachers on the CPU.

    What is rendered never leaves the actor, every core encodes its own, and the two take turns.
    Pictures handed to an encoder that competes for the same cores cost a tenth more (measured in
    docs/benchmarks.md).
    """

    def __init__(
        self,
        settings: ObjectSettings,
        spool: str,
        timeout_s: float,
        encode: EncodeSettings,
        reporter: Reporter | None = None,
    ) -> None:
        self._guard = Guard(reporter)
        with self._guard.starting():
            self._renderer = Renderer(settings, spool, timeout_s)
            self._encode = EncodeStage(encode)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Render and encode the task's objects."""
        key, todo = self._renderer.read(batch)
        done: list[Done] = []
        with self._guard.attempt(key) as lost:
            if not lost:
                for items in self._renderer.turns(todo):
                    done += self._encode.encoded(items)
                return pack(done)
            for one in todo:  # a worker died at one of these
                with self._guard.attempt(one.record.uid) as times:
                    done += self._encode.encoded(self._renderer.alone(one, times))
        return pack(done)


def write_stage(
    batch: pa.Table,
    targets: tuple[Target, ...],
    spool: str | None = None,
    reporter: Reporter | None = None,
) -> pa.Table:
    """Write the objects of a batch, one part for each target; what was done, as one row.

    A task that runs a second time, since its machine was lost, leaves what the first wrote as it
    is: another machine may compute other last bits, and the same rows would be there twice.
    """
    start = time.perf_counter()
    items: list[Done] = unpack(batch)
    with Guard(reporter).write(items[0].uid) as (again, tell):
        if spool is not None and not Storage.at(spool).is_there:
            raise InputError(unseen(spool, "no such file"))
        for place, target in enumerate(targets):
            here = [item for item in items if place in item.places]
            if again:
                there = written_uids(target.out, [item.uid for item in here])
                here = [item for item in here if item.uid not in there]
            _write(target, place, here)
        written = _summed(items, time.perf_counter() - start)
        tell(written)
    return pack([written])


def _write(target: Target, place: int, items: Sequence[Done]) -> None:
    done = [item for item in items if place in item.rows]
    rows = [item.rows[place] for item in done]
    failures = [item.failure for item in items if item.failure is not None]
    if rows and target.manifest.kept_images:
        kept = [item.kept for item in done if item.kept is not None]
        write_part_with_images(target.out, target.manifest, rows, kept)
    elif rows:
        write_part(target.out, target.manifest, rows)
    if failures:
        write_failures(target.out, failures)


def _summed(items: Sequence[Done], write_seconds: float) -> Written:
    failed = [item.failure for item in items if item.failure is not None]
    seconds = {"write": write_seconds}
    texts: Counter[str] = Counter()
    for item in items:
        for stage, spent in item.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
        texts.update(item.texts)
    return Written(
        rows=len(items) - len(failed),
        failures=len(failed),
        failed=tuple(item.uid for item in failed),
        reasons=Counter(f"{item.stage}: {item.error}" for item in failed),
        seconds=seconds,
        texts=texts,
    )


@dataclass(frozen=True)
class Written:
    """What a write did, for the driver's summary."""

    rows: int  # objects
    failures: int  # objects
    failed: tuple[str, ...]  # their uids
    reasons: Counter[str]
    seconds: dict[str, float]
    texts: Counter[str]


def pack(items: Sequence[Any]) -> pa.Table:
    """Items as a table that Ray can pass on without looking into them."""
    packed = [pickle.dumps(item, protocol=5) for item in items]
    return pa.table({"item": pa.array(packed, pa.large_binary())})


def unpack(batch: pa.Table) -> list[Any]:
    """The items of ``pack``."""
    return [pickle.loads(item.as_buffer()) for item in batch.column("item")]
