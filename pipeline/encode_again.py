"""The embeddings of a shard set made again by another teacher, without rendering anything.

Clouds, texts, categories, splits and failures are carried over; texts are encoded anew from what
the rows hold, names in the set's own prompt templates; views and thumbnails are encoded anew from
the pictures that the set keeps (``pipeline embed --keep-images``). A set that keeps none becomes
one with texts alone and no views.

Rows stream through: a few row groups are in memory at a time, and the pictures of the next objects
are decoded while those before are encoded. The new set is the only checkpoint: what it holds is
skipped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalog import clean_temporaries
from pipeline.common import InputError, check_place, cores, versions
from pipeline.console import ProgressBar, note
from pipeline.datasets.base import Record
from pipeline.encode import Encoder
from pipeline.lock import exclusive
from pipeline.objects import Processed, teacher_size
from pipeline.pictures import LOSSLESS, U8, Size, at_sizes, decode_webp
from pipeline.resize import compile_cached
from pipeline.shards import (
    ImageSet,
    KeptImages,
    Manifest,
    Row,
    ShardSet,
    TeacherInfo,
    create_or_open,
    mark_unfinished,
    record_contents,
    what_lacks,
    write_failures,
    write_part,
    write_part_with_images,
)
from pipeline.shards.storage import Storage
from pipeline.teacher import AnyTeacher, choose_device, load_teacher

_PICTURES_AT_ONCE = 2048  # 300 MB at 224 px, twice: those being encoded and the next ones
_DECODERS = 8  # threads at most; more than any teacher uses up


@dataclass(frozen=True)
class EncodeAgainOptions:
    """One run."""

    shards: str
    teacher: str  # as ``load_teacher`` takes it
    out: str
    device: str = "auto"  # auto, cpu, cuda
    precision: str = "auto"  # auto, fp32, bf16, fp16
    batch_size: int | None = None  # None: 256 on a GPU, 32 on a CPU
    compiled: bool = True  # torch.compile, on a GPU
    keep_images: bool = False  # copy the kept pictures along
    rows_per_part: int = 256


@dataclass
class EncodeAgainSummary:
    """What a run did."""

    encoded: int = 0  # objects
    skipped: int = 0  # were there already
    failures: int = 0  # carried over
    pictures: int = 0
    texts: int = 0
    texts_cut: int = 0  # longer than the teacher's context
    tokens_cut: int = 0
    texts_unknown: int = 0  # left out: not among the names of a teacher that has vectors only
    objects_without_text: int = 0
    seconds: float = 0.0  # without loading the teacher
    teacher: str = ""
    device: str = ""
    precision: str = ""

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class _Item:
    """One row, and its pictures where the set keeps them, ready for the teacher."""

    row: Row
    kept: KeptImages | None
    views: U8  # (V, S, S, 3); V is 0 without pictures
    thumbnail: U8 | None  # (S, S, 3)


def encode_again(options: EncodeAgainOptions) -> EncodeAgainSummary:
    """Encode until ``out`` holds every row of ``shards``.

    Raises ``InputError`` for bad options, damaged sets, an ``out`` that was made with others, or
    another run at work on it.
    """
    source = ShardSet.open(options.shards)
    _check_out(source, options.out)
    images = _images(source, options)
    device = choose_device(options.device)
    teacher = load_teacher(
        options.teacher,
        device,
        precision=options.precision,
        batch_size=options.batch_size or (256 if device == "cuda" else 32),
        fixed_batch=True,
        compiled=options.compiled,
    )
    if not teacher.info.has_images:
        if options.keep_images:
            raise InputError(
                f"--keep-images: {teacher.info.label} does not embed images, so the set would have "
                "none; leave the option out"
            )
        images = None
    if lacking := what_lacks(options.shards):
        note(lacking)
    wanted = new_manifest(source.manifest, teacher.info, teacher.precision, options.keep_images)
    manifest = create_or_open(options.out, wanted)
    _tell_without_views(source.manifest, teacher.info, options)
    summary = EncodeAgainSummary(
        teacher=teacher.info.label, device=device, precision=teacher.precision
    )
    with exclusive(options.out):
        clean_temporaries(options.out)
        mark_unfinished(options.out)
        failures = source.failures()
        if failures:
            write_failures(options.out, failures)
        summary.failures = len(failures)
        begun = time.perf_counter()
        _run(source, images, teacher, manifest, options, summary)
        record_contents(options.out)
        summary.seconds = time.perf_counter() - begun
    return summary


def new_manifest(
    source: Manifest, teacher: TeacherInfo, precision: str, keep_images: bool
) -> Manifest:
    """The manifest of a set that another teacher makes of the rows of ``source``.

    Views that were encoded from pictures with losses are told apart from those that were not
    (``renderer.encoded_from``): the two are never mixed in one set.
    """
    told = {
        **(source.versions or {}),
        **versions("mrd3d", "torch", "open_clip_torch"),
        "teacher_precision": precision,
    }
    # 0: a set with less in it can be read by older installations.
    common = replace(
        source,
        teacher=teacher,
        templates=teacher.prompts(source.templates),
        versions=told,
        contract_version=0,
    )
    if source.kept_images is None or not teacher.has_images:
        return common.without_views()
    renderer = source.renderer
    if source.kept_images != LOSSLESS:
        renderer = {**renderer, "encoded_from": source.kept_images}
    kept = source.kept_images if keep_images else None
    return replace(common, renderer=renderer, kept_images=kept, contract_version=0)


def tell(summary: EncodeAgainSummary, out: str) -> None:
    """Print how the run went."""
    rate = summary.encoded / summary.seconds if summary.seconds else 0.0
    note(
        f"{out}: {summary.encoded} objects encoded by {summary.teacher} ({summary.device}, "
        f"{summary.precision}), {summary.skipped} already there; {rate:.1f} objects/s"
    )
    if summary.failures:
        note(f"  {summary.failures} recorded failures were carried over")
    if summary.texts_unknown:
        note(
            f"  {summary.texts_unknown} texts are unknown to the teacher and were left out; "
            f"{summary.objects_without_text} objects have no text"
        )
    if summary.texts_cut:
        note(
            f"  {summary.texts_cut} of {summary.texts} texts were truncated to the teacher's "
            f"context, by {summary.tokens_cut} tokens in total"
        )


def _check_out(source: ShardSet, out: str) -> None:
    there = Storage.at(out)
    if there.is_local and source.storage.is_local:
        same = Path(there.path).resolve() == Path(source.storage.path).resolve()
    else:
        same = there.root.rstrip("/") == source.storage.root.rstrip("/")
    if same:
        raise InputError(f"--out {out}: is the input set; name another folder")
    if there.is_local:
        check_place(Path(there.path), "--out", folder=True)  # before the teacher is loaded


def _images(source: ShardSet, options: EncodeAgainOptions) -> ImageSet | None:
    """The kept pictures, every side file there; None where the set keeps none."""
    if source.manifest.kept_images is not None:
        images = ImageSet(source)
        _ = images.files
        return images
    if options.keep_images:
        raise InputError(
            f"--keep-images: {options.shards} keeps no pictures; leave the option out, or make "
            "the set again with `pipeline embed --keep-images webp`"
        )
    return None


def _tell_without_views(
    manifest: Manifest, teacher: TeacherInfo, options: EncodeAgainOptions
) -> None:
    if not (manifest.n_views or manifest.thumbnails):
        return
    if not teacher.has_images:
        note(f"{teacher.label} does not embed images: {options.out} has no views")
    elif manifest.kept_images is None:
        note(
            f"{options.shards} keeps no pictures: only texts are encoded, and {options.out} has "
            "no views. To have views, make the set again with `pipeline embed --keep-images webp`"
        )


def _run(
    source: ShardSet,
    images: ImageSet | None,
    teacher: AnyTeacher,
    manifest: Manifest,
    options: EncodeAgainOptions,
    summary: EncodeAgainSummary,
) -> None:
    done = set(ShardSet.open(options.out).uids())
    size = teacher_size(teacher.info)
    if images is not None:
        compile_cached()  # once, before the threads all do
    encoder = Encoder(teacher, manifest.templates)
    per_object = manifest.n_views + manifest.thumbnails
    at_once = _PICTURES_AT_ONCE // per_object if per_object else options.rows_per_part
    part: list[Row] = []
    kept: list[KeptImages] = []

    def flush() -> None:
        if part and manifest.kept_images:
            write_part_with_images(options.out, manifest, part, kept)
        elif part:
            write_part(options.out, manifest, part)
        part.clear()
        kept.clear()

    total = len(source)
    decoders = min(_DECODERS, cores())
    with (
        ProgressBar("encode-again", total, "objects") as bar,
        ThreadPoolExecutor(decoders) as pool,
        ThreadPoolExecutor(1) as ahead,
    ):
        items = _items(source, images, done, size, pool)
        next_chunk = ahead.submit(_take, items, max(1, at_once))
        while chunk := next_chunk.result():
            next_chunk = ahead.submit(_take, items, max(1, at_once))
            for item, row in zip(chunk, _encoded(encoder, chunk, size), strict=True):
                part.append(row)
                if item.kept is not None:
                    kept.append(item.kept)
                if len(part) == options.rows_per_part:
                    flush()
            summary.encoded += len(chunk)
            summary.pictures += sum(len(i.views) + (i.thumbnail is not None) for i in chunk)
            bar.advance(len(chunk))
        flush()
    summary.skipped = total - summary.encoded
    counts = encoder.take_counts()
    summary.texts = counts.get("texts", 0)
    summary.texts_cut = counts.get("texts_cut", 0)
    summary.tokens_cut = counts.get("tokens_cut", 0)
    summary.texts_unknown = counts.get("texts_unknown", 0)
    summary.objects_without_text = counts.get("objects_without_text", 0)


def _take(items: Iterator[_Item], count: int) -> list[_Item]:
    return list(islice(items, count))


def _items(
    source: ShardSet,
    images: ImageSet | None,
    done: set[str],
    size: Size,
    pool: ThreadPoolExecutor,
) -> Iterator[_Item]:
    """The rows that are not done, in their order, with their pictures decoded."""
    for group in source.row_groups:
        if done.issuperset(source.read(group, []).uid):
            continue
        rows = source.rows(group)
        found: list[KeptImages | None] = [None] * len(rows)
        if images is not None:
            batch = images.read(group)
            found = [
                KeptImages(*item)
                for item in zip(batch.uid, batch.views, batch.thumbnails, strict=True)
            ]
        wanted = [(row, kept) for row, kept in zip(rows, found, strict=True) if row.uid not in done]
        name = source.storage.show(group.part)
        # Rows of one row group at a time: few enough to hold, enough for every thread.
        yield from pool.map(partial(_item, size=size, part=name), wanted)


def _item(found: tuple[Row, KeptImages | None], size: Size, part: str) -> _Item:
    row, kept = found
    if kept is None:
        return _Item(row, None, np.zeros((0, 1, 1, 3), np.uint8), None)
    thumbnail = [] if kept.thumbnail is None else [kept.thumbnail]
    try:
        pictures = np.stack([decode_webp(data) for data in (*kept.views, *thumbnail)])
    except ValueError as error:  # also of pictures that differ in size
        raise InputError(
            f"{part}: the kept pictures of {row.uid} cannot be read ({error}); delete the part "
            "and run the same `pipeline embed` command again"
        ) from error
    # As the renderer gave them, with a fourth channel, which does not change the colours.
    opaque = np.full((*pictures.shape[:3], 4), 255, np.uint8)
    opaque[..., :3] = pictures
    pictures = at_sizes(opaque, [size])[size]
    n_views = len(kept.views)
    return _Item(row, kept, pictures[:n_views], pictures[n_views] if thumbnail else None)


def _encoded(encoder: Encoder, items: Sequence[_Item], size: Size) -> list[Row]:
    """The items' rows with new embeddings."""
    objects = []
    for item in items:
        row = item.row
        record = Record(row.uid, row.dataset, row.source, row.source, row.category, row.split)
        objects.append(
            Processed(
                record=record,
                texts=tuple(row.texts),
                text_sources=tuple(row.text_sources),
                images={size: item.views},
                xyz=_NO_POINTS,
                rgb=row.rgb,
                has_color=row.has_color,
                sha256=row.sha256,
                n_faces=row.n_faces,
                n_vertices=row.n_vertices,
                n_bytes=row.n_bytes,
                thumbnail={} if item.thumbnail is None else {size: item.thumbnail},
            )
        )
    return [
        replace(
            item.row,
            image_embeds=new.image_embeds,
            texts=new.texts,
            text_sources=new.text_sources,
            text_embeds=new.text_embeds,
            thumbnail_embed=new.thumbnail_embed,
        )
        for item, new in zip(items, encoder.encode(objects), strict=True)
    ]


_NO_POINTS = np.zeros((0, 3), np.float32)  # the encoder does not look at them
