"""The embedding job: a Ray Data graph from records to parts.

    records (spooled) -> CPU pool: load, render, sample -> actor pool: encode -> write parts

Streaming with bounded memory; the shards are the only checkpoint (``pipeline.catalog.pending``).
The order of rows is kept, so that the same command writes the same files whatever the number of
workers. With teachers on the CPU the two pools are one (``pipeline.stages.EmbedStage``).

Several teachers make several shard sets in one pass: every object is rendered once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.cameras import thumbnail_json
from pipeline.captions import DEFAULT_TEMPLATES, CaptionJoin
from pipeline.catalog import clean_temporaries, failed_uids, pending_sets
from pipeline.common import InputError, check_place, versions
from pipeline.console import note, tell_failed_before
from pipeline.datasets.base import Record
from pipeline.graph import run_graph
from pipeline.lock import exclusive
from pipeline.objects import ObjectSettings, teacher_size
from pipeline.renderers import get_renderer
from pipeline.shards import (
    Manifest,
    ShardSet,
    TeacherInfo,
    create_or_open,
    has_lost_files,
    mark_unfinished,
    record_contents,
    taken_back,
    unstarted,
)
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.storage import Storage, shown, within
from pipeline.spool import Spool, Todo, spooled, with_split
from pipeline.stages import EncodeSettings, Target


@dataclass(frozen=True)
class EmbedOptions:
    """One run of the job."""

    objects: ObjectSettings
    out: str  # of several teachers: each has a folder in it
    teachers: tuple[str, ...] = ("demo",)
    teacher_options: dict[str, Any] = field(default_factory=dict)  # of ``pipeline.teacher.Teacher``
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    device: str = "auto"  # of the teachers: auto, cpu, cuda
    address: str | None = None  # of a running Ray cluster; None: start one here
    workers: int | None = None  # render workers; None: one per CPU
    worker_cpus: float = 1.0  # that a render worker counts for
    encoders: int | None = None  # on GPUs; None: one per GPU
    encoder_gpus: float = 1.0  # that an encoder counts for
    object_store_bytes: int | None = 1 << 30  # of a Ray that is started here
    node_grace_s: float = 60.0  # how long to wait for another machine when one is lost
    rows_per_part: int = 256
    timeout_s: float = 120.0  # per object
    max_failures: float = 0.05  # fraction
    retry_failures: bool = False
    limit: int | None = None  # at most that many records of the source, from its start
    holdout: float = 0.0  # fraction of objects, by uid, put into the split "test"


@dataclass
class EmbedSummary:
    """What a run did."""

    embedded: int = 0
    failed: int = 0
    skipped: int = 0  # were there already
    failed_before: int = 0  # of these, as failures
    seconds: float = 0.0  # of the graph, without starting Ray
    start_seconds: float = 0.0  # until the graph began
    stage_seconds: dict[str, float] = field(default_factory=dict)  # summed over workers
    reasons: dict[str, int] = field(default_factory=dict)
    # See ``encode.Encoder`` and ``captions.CaptionJoin.counts``.
    texts: dict[str, int] = field(default_factory=dict)
    sets: dict[str, str] = field(default_factory=dict)  # shard set by teacher
    passes: int = 0  # over what was left to do: more than one where machines were lost
    limit: float = 0.05  # failed fraction above which the run counts as failed

    @property
    def too_many_failures(self) -> bool:
        """Whether more objects have failed than ``limit`` allows, in this run and before."""
        total = self.embedded + self.failed + self.skipped
        return self.failed + self.failed_before > self.limit * total


def build_manifest(
    options: EmbedOptions,
    teacher: TeacherInfo,
    first: bool = True,
    told: dict[str, str] | None = None,
) -> Manifest:
    """The manifest of the set that ``options`` describe; the ``first`` one keeps the pictures.

    ``told`` joins the versions of the libraries: known, never compared.
    """
    objects = options.objects
    renderer = get_renderer(objects.renderer)
    captions = objects.captions.to_json()
    libraries = versions(
        "mrd3d", "numpy", "numba", "trimesh", "torch", "open_clip_torch", "pyarrow"
    )
    manifest = Manifest(
        teacher=teacher,
        dataset={
            "name": objects.dataset.name,
            "options": objects.dataset.options,
            "holdout": options.holdout,
            **({"captions": captions} if captions else {}),
        },
        n_points=objects.n_points,
        n_fps=objects.n_fps,
        n_views=len(objects.cameras),
        sampling_seed=objects.sampling_seed,
        renderer={
            "name": renderer.name,
            "version": renderer.version,
            "settings": objects.render.to_json(),
        },
        cameras={
            **objects.cameras.to_json(),
            **({"thumbnail": thumbnail_json()} if objects.thumbnail else {}),
        },
        templates=teacher.prompts(options.templates),
        versions={**libraries, **getattr(renderer, "versions", dict)(), **(told or {})},
        thumbnails=objects.thumbnail,
        kept_images=objects.keep_images if first else None,
    )
    return manifest if teacher.has_images else manifest.without_views()


def for_teachers(objects: ObjectSettings, *teachers: TeacherInfo) -> ObjectSettings:
    """``objects`` with views at the sizes that the teachers read, and no larger.

    Nothing is drawn where no teacher embeds pictures.
    """
    teachers = tuple(info for info in teachers if info.has_images)
    if not teachers:
        none = replace(objects.cameras, poses=objects.cameras.poses[:0])
        return replace(objects, cameras=none, thumbnail=False, encode_sizes=(None,))
    return replace(objects, encode_sizes=tuple(dict.fromkeys(map(teacher_size, teachers))))


def set_names(teachers: tuple[str, ...], out: str) -> list[str]:
    """The shard set of each teacher: ``out`` itself, or of several a folder each in it.

    Raises ``InputError`` where two teachers are the same or would share a folder.
    """
    if len(teachers) == 1:
        return [out]
    names = [_set_name(spec) for spec in teachers]
    for name, spec in zip(names, teachers, strict=True):
        if names.count(name) > 1:
            raise InputError(
                f"--teacher {spec}: another one has the same name {name!r}; name each once, and "
                "give local files different names"
            )
    return [within(out, name) for name in names]


def _check_layout(options: EmbedOptions) -> None:
    """Raise ``InputError`` where the sets of other teachers lie so that these would be made anew.

    One teacher's set is ``out`` itself, those of several are folders in it.
    """
    if len(options.teachers) > 1 and Storage.at(options.out).exists(MANIFEST):
        raise InputError(
            f"--out {options.out}: is the set of one teacher, and those of several are folders in "
            "--out; give another folder, or the new teacher alone and an --out of its own"
        )
    inner = within(options.out, _set_name(options.teachers[0]))
    if len(options.teachers) == 1 and Storage.at(inner).exists(MANIFEST):
        raise InputError(
            f"--out {options.out}: holds the sets of several teachers; give --out {inner} to "
            "continue this one, or all of its teachers"
        )


def _set_name(spec: str) -> str:
    """A folder's name for a teacher. Of a path or a repository the last part only."""
    model, _, rest = spec.partition(":")
    last = rest.rstrip("/").rsplit("/", 1)[-1]
    told = last if model in ("hf-hub", "local-dir") else f"{model}-{last}" if last else model
    return re.sub(r"[^a-z0-9._]+", "-", told.lower()).strip("-._") or "teacher"


def embed(options: EmbedOptions) -> EmbedSummary:
    """Run the job until every record of the source is a row or a failure.

    Raises ``InputError`` for bad options, an unreadable source, a set made with other options, or
    another run at work on the same folder.
    """
    begun = time.perf_counter()
    # Before a model is loaded: these raise where there is no source, or nothing can be written.
    _ = options.objects.dataset.options
    for out in set_names(options.teachers, options.out):
        there = Storage.at(out)
        if there.is_local:
            check_place(Path(there.path), "--out", folder=True)
    with ExitStack() as stack:
        captions = stack.enter_context(
            CaptionJoin(options.objects.captions.files, lambda: listed(options))
        )
        # Before anything is written: a file that names no object must not leave an empty set.
        captions.probe()
        fresh = unstarted(set_names(options.teachers, options.out))
        targets = prepare(options)
        objects = for_teachers(options.objects, *(t.manifest.teacher for t in targets.targets))
        for target in targets.targets:
            stack.enter_context(exclusive(target.out))
            clean_temporaries(target.out)
        summary = EmbedSummary(
            limit=options.max_failures, sets={t.spec: t.out for t in targets.targets}
        )
        lost = [target.out for target in targets.targets if has_lost_files(target.out)]
        with taken_back(fresh):
            spool, seen = stack.enter_context(to_do(options, targets, captions))
        summary.skipped = seen.records - spool.total
        summary.failed_before = seen.failed
        if spool.total:
            for target in targets.targets:
                mark_unfinished(target.out)
            run_graph(replace(options, objects=objects), targets, spool, summary, begun)
        for target in targets.targets:
            # A run over some of the objects cannot make up for what was lost: that stays known.
            if target.out not in lost or (
                options.limit is None and seen.records >= len(ShardSet.open(target.out))
            ):
                record_contents(target.out)
        if options.objects.captions.files:
            summary.texts.update(captions.counts)
            for line in captions.lines():
                note(line)
    return summary


def prepare(options: EmbedOptions, write: bool = True) -> EncodeSettings:
    """Load the teachers once to learn what they are, and open or start their shard sets.

    ``write=False`` leaves sets that are not there yet unstarted. Raises ``InputError`` as
    ``embed`` does.
    """
    import torch

    from pipeline.teacher import load_teacher
    from pipeline.teachers.device import choose_precision

    _check_layout(options)
    device = _device(options.device, options.address)
    precision = str(options.teacher_options.get("precision", "auto"))
    # What ``auto`` means is up to the machine that encodes: a cluster's driver may have no GPU.
    if device != "cuda" or torch.cuda.is_available():
        precision = choose_precision(precision, device)
    outs = set_names(options.teachers, options.out)
    told = {"teacher_precision": precision}
    # All of them before any set is started: one may not be there.
    manifests = [
        build_manifest(options, load_teacher(spec, "cpu").info, place == 0, told)
        for place, spec in enumerate(options.teachers)
    ]
    _check_pictures(options, manifests)
    targets = tuple(
        Target(spec, out, create_or_open(out, manifest) if write else manifest)
        for spec, out, manifest in zip(options.teachers, outs, manifests, strict=True)
    )
    return EncodeSettings(targets, device, options.objects.captions, options.teacher_options)


def _check_pictures(options: EmbedOptions, manifests: list[Manifest]) -> None:
    """Raise ``InputError`` where pictures are wanted that no teacher would see."""
    objects = options.objects
    drawn = any(manifest.teacher.has_images for manifest in manifests)
    if objects.keep_images and not manifests[0].teacher.has_images:
        raise InputError(
            f"--keep-images: {manifests[0].teacher.label} does not embed images, so the set would "
            "have none; leave the option out"
        )
    if objects.captions.captioner and not drawn:
        raise InputError(
            "--captioner: with text vectors by name, no views are rendered and captions cannot be "
            "embedded; leave the option out"
        )


def listed(options: EmbedOptions) -> Iterator[Record]:
    """The records of the source that a run is about."""
    return islice(options.objects.dataset.records(), options.limit)


@dataclass
class Seen:
    """Records of a source that were looked at."""

    records: int = 0
    failed: int = 0  # in an earlier run, and not to be tried again


@contextmanager
def to_do(
    options: EmbedOptions, targets: EncodeSettings, captions: CaptionJoin
) -> Iterator[tuple[Spool, Seen]]:
    """Spool the records that a set lacks; yields the spool and how many records there are."""
    seen = Seen()
    outs = [target.out for target in targets.targets]
    failed: set[str] = set()
    if not options.retry_failures:
        failed = set().union(*map(failed_uids, outs))

    def counted() -> Iterator[Record]:
        for record in listed(options):
            seen.records += 1
            seen.failed += record.uid in failed
            yield with_split(record, options.holdout)

    lacking = pending_sets(outs, counted(), retry_failures=options.retry_failures)

    def todo() -> Iterator[Todo]:
        for record, places in lacking:
            (joined,) = captions.join([record])
            yield Todo(joined, places)

    with spooled(outs[0], todo()) as spool:
        yield spool, seen


def _device(name: str, address: str | None) -> str:
    """``cpu`` or ``cuda``. The machine that drives a cluster need not have a GPU itself."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        if address is not None:
            note(
                "--device auto: this machine has no GPU, so CPUs encode; --device cuda uses the "
                "GPUs of the cluster"
            )
        return "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: use auto, cpu or cuda")
    if name == "cuda" and address is None and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible to torch; use --device cpu")
    return name


def tell(summary: EmbedSummary, out: str) -> None:
    """Print how the run went."""
    rate = (summary.embedded + summary.failed) / summary.seconds if summary.seconds else 0.0
    note(
        f"{shown(out)}: {summary.embedded} embedded, {summary.failed} failed, "
        f"{summary.skipped} already there; {rate:.1f} objects/s"
    )
    tell_failed_before(summary.failed_before)
    if len(summary.sets) > 1:
        for teacher, path in summary.sets.items():
            note(f"  {teacher}: {shown(path)}")
    for reason, count in summary.reasons.items():
        note(f"  {count} x {reason}")
    told = [f"{n} {key.replace('_', ' ')}" for key, n in summary.texts.items() if n]
    if told:
        note(f"  texts: {', '.join(told)}")
