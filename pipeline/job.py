"""The embedding job: a Ray Data graph from records to parts.

    records (spooled) -> CPU pool: load, render, sample -> actor pool: encode -> write parts

Streaming with bounded memory; the shards are the only checkpoint (``pipeline.catalog.pending``).
The order of rows is kept, so that the same command writes the same files whatever the number of
workers.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cameras import thumbnail_json
from pipeline.captions import DEFAULT_TEMPLATES
from pipeline.catalog import clean_temporaries, pending
from pipeline.common import InputError, content_hash, versions
from pipeline.console import ProgressBar, note
from pipeline.datasets.base import Record
from pipeline.lock import exclusive
from pipeline.objects import (
    IsolatedProcessor,
    ObjectSettings,
    Processed,
    prefer_throughput,
    teacher_size,
)
from pipeline.renderers import get_renderer
from pipeline.resize import compile_cached as compile_resize
from pipeline.shards import (
    Failure,
    Manifest,
    TeacherInfo,
    create_or_open,
    write_failures,
    write_part,
    write_part_with_images,
)
from pipeline.shards.storage import Storage


@dataclass(frozen=True)
class EmbedOptions:
    """One run of the job."""

    objects: ObjectSettings
    out: str
    teacher: str = "demo"
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    workers: int | None = None  # render workers; None: one per CPU
    device: str = "auto"  # of the teacher: auto, cpu, cuda
    address: str | None = None  # of a running Ray cluster; None: start one here
    rows_per_part: int = 256
    chunk: int = 16  # objects handed to a worker at once
    timeout_s: float = 120.0  # per object
    max_failures: float = 0.05  # fraction
    retry_failures: bool = False
    limit: int | None = None  # at most that many records of the source, from its start
    holdout: float = 0.0  # fraction of objects, by uid, put into the split "test"
    object_store_bytes: int = 1 << 30


@dataclass
class EmbedSummary:
    """What a run did."""

    embedded: int = 0
    failed: int = 0
    skipped: int = 0  # were there already
    seconds: float = 0.0  # of the graph, without starting Ray
    start_seconds: float = 0.0  # until the graph began
    stage_seconds: dict[str, float] = field(default_factory=dict)  # summed over workers
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def too_many_failures(self) -> bool:
        """Set by ``embed`` through ``limit``."""
        total = self.embedded + self.failed
        return total > 0 and self.failed > self.limit * total

    limit: float = 0.05


def build_manifest(options: EmbedOptions, teacher: TeacherInfo) -> Manifest:
    """The manifest of the set that ``options`` describe."""
    objects = options.objects
    renderer = get_renderer(objects.renderer)
    libraries = versions(
        "mrd3d", "numpy", "numba", "trimesh", "torch", "open_clip_torch", "pyarrow", "fpsample"
    )
    return Manifest(
        teacher=teacher,
        dataset={
            "name": objects.dataset.name,
            "options": objects.dataset.options,
            "holdout": options.holdout,
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
        templates=list(options.templates),
        versions={**libraries, **getattr(renderer, "versions", dict)()},
        thumbnails=objects.thumbnail,
        kept_images=objects.keep_images,
    )


def for_teacher(objects: ObjectSettings, teacher: TeacherInfo) -> ObjectSettings:
    """``objects`` with views no larger than the teacher reads them."""
    return replace(objects, encode_sizes=(teacher_size(teacher),))


def embed(options: EmbedOptions) -> EmbedSummary:
    """Run the job until every record of the source is a row or a failure.

    Raises ``InputError`` for bad options, an unreadable source, a set made with other options, or
    another run at work on the same folder.
    """
    from pipeline.teacher import load_teacher

    begun = time.perf_counter()
    device = _device(options.device)
    teacher = load_teacher(options.teacher, "cpu").info
    manifest = create_or_open(options.out, build_manifest(options, teacher))
    options = replace(options, objects=for_teacher(options.objects, teacher))
    with exclusive(options.out):
        clean_temporaries(options.out)
        with _spooled(options) as (spool, total, skipped):
            summary = EmbedSummary(skipped=skipped, limit=options.max_failures)
            if total:
                _run(options, manifest, device, spool, total, summary, begun)
    return summary


def _run(
    options: EmbedOptions,
    manifest: Manifest,
    device: str,
    spool: str,
    total: int,
    summary: EmbedSummary,
    begun: float,
) -> None:
    warm_up = getattr(get_renderer(options.objects.renderer), "compile_cached", None)
    if warm_up:
        warm_up()  # once, before the workers fan out and all compile the same thing
    compile_resize()
    with _ray(options) as cpus:
        reasons: Counter[str] = Counter()
        stages: Counter[str] = Counter()
        graph = _graph(options, manifest, device, spool, total, cpus)
        start = time.perf_counter()
        summary.start_seconds = start - begun
        with ProgressBar("embed", total, "objects") as bar:
            for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in batch.to_pylist():
                    summary.embedded += row["rows"]
                    summary.failed += row["failures"]
                    reasons.update(pickle.loads(row["reasons"]))
                    stages.update(pickle.loads(row["seconds"]))
                    bar.advance(row["rows"] + row["failures"], f"{summary.failed} failed")
        summary.seconds = time.perf_counter() - start
        summary.reasons = dict(reasons.most_common())
        summary.stage_seconds = {k: round(v, 3) for k, v in stages.items()}
    lost = total - summary.embedded - summary.failed
    if lost:
        raise RuntimeError(f"{lost} of {total} objects were lost by the job; run it again")


def _graph(
    options: EmbedOptions, manifest: Manifest, device: str, spool: str, total: int, cpus: int
) -> Any:
    import ray.data
    from ray.data import ActorPoolStrategy

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    workers = options.workers or max(1, cpus - 1)
    cuda = device == "cuda"
    encoders = max(1, _resource("GPU")) if cuda else 1
    chunks = -(-total // options.chunk)
    write: Any = _write_stage  # Ray's own types of a batch function leave no room for Arrow tables
    return (
        ray.data.from_arrow([pa.table({"id": [index]}) for index in range(chunks)])
        .map_batches(
            _RenderStage,
            fn_constructor_args=(options.objects, spool, options.timeout_s),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(workers, chunks)),
            num_cpus=1,
        )
        .map_batches(
            _EncodeStage,
            fn_constructor_args=(
                options.teacher,
                manifest,
                device,
                max(1, (os.cpu_count() or 1) // 2),
            ),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=encoders),
            num_gpus=1 if cuda else None,
            # On a CPU the encoder shares the cores with the render workers: the kernel balances
            # them better than a fixed share would.
            num_cpus=None if cuda else 0,
        )
        .map_batches(
            write,
            fn_args=(options.out, manifest),
            batch_size=options.rows_per_part,
            batch_format="pyarrow",
            num_cpus=0,
        )
    )


def _resource(kind: str) -> int:
    """How much of a resource the cluster has."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(kind, 0))


def _record(row: dict[str, Any]) -> Record:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Record(**values)


class _RenderStage:
    """Ray actor: reads its chunk of records from the spool and processes them in a child."""

    def __init__(self, settings: ObjectSettings, spool: str, timeout_s: float) -> None:
        self._processor = IsolatedProcessor(settings, timeout_s)
        root, _, name = spool.rpartition("/")
        storage = Storage.at(root)
        self._spool = pq.ParquetFile(storage.filesystem.open_input_file(storage.join(name)))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for index in batch.column("id").to_pylist():
            rows = self._spool.read_row_group(index).to_pylist()
            records = [_record(row) for row in rows]
            for item in self._processor.packed(records):
                yield _table([item])


class _EncodeStage:
    """Ray actor: holds the teacher and turns processed objects into rows."""

    def __init__(self, spec: str, manifest: Manifest, device: str, threads: int) -> None:
        import torch

        from pipeline.encode import Encoder
        from pipeline.teacher import load_matching

        torch.set_num_threads(threads)
        prefer_throughput()
        batch_size = 256 if device == "cuda" else 32
        teacher = load_matching(
            manifest.teacher, spec, device, batch_size=batch_size, fixed_batch=True
        )
        self._encoder = Encoder(teacher, manifest.templates)

    def __call__(self, batch: pa.Table) -> pa.Table:
        items = _unpack(batch)
        start = time.perf_counter()
        good = [item for item in items if isinstance(item, Processed)]
        rows = iter(self._encoder.encode(good))
        seconds = (time.perf_counter() - start) / max(1, len(good))
        encoded = []
        for item in items:
            if isinstance(item, Processed):
                encoded.append((next(rows), {**item.seconds, "encode": seconds}, item.kept))
            else:
                encoded.append((item, {}, None))
        return _pack(encoded)


def _write_stage(batch: pa.Table, out: str, manifest: Manifest) -> pa.Table:
    items = _unpack(batch)
    start = time.perf_counter()
    rows = [item for item, _, _ in items if not isinstance(item, Failure)]
    failures = [item for item, _, _ in items if isinstance(item, Failure)]
    kept = [images for _, _, images in items if images is not None]
    if rows and manifest.kept_images:
        write_part_with_images(out, manifest, rows, kept)
    elif rows:
        write_part(out, manifest, rows)
    if failures:
        write_failures(out, failures)
    stages: Counter[str] = Counter({"write": time.perf_counter() - start})
    for _, seconds, _ in items:
        stages.update(seconds)
    reasons = Counter(f"{item.stage}: {item.error}" for item in failures)
    return pa.table(
        {
            "rows": [len(rows)],
            "failures": [len(failures)],
            "reasons": [pickle.dumps(dict(reasons))],
            "seconds": [pickle.dumps(dict(stages))],
        }
    )


def _pack(items: list[Any]) -> pa.Table:
    # Between our own workers only: never written to disk, never read from a user's file.
    return _table([pickle.dumps(item, protocol=5) for item in items])


def _table(items: list[bytes]) -> pa.Table:
    return pa.table({"item": pa.array(items, pa.large_binary())})


def _unpack(batch: pa.Table) -> list[Any]:
    return [pickle.loads(item.as_buffer()) for item in batch.column("item")]


@contextmanager
def _spooled(options: EmbedOptions) -> Iterator[tuple[str, int, int]]:
    """Write the records that are still to do to a temporary file that workers can read.

    Yields its address, how many there are, and how many were done before. The file holds one row
    group per chunk, so neither the driver nor a worker ever holds all records.
    """
    names = [
        ("uid", pa.string()),
        ("dataset", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("category", pa.string()),
        ("split", pa.string()),
        ("texts", pa.list_(pa.string())),
        ("text_sources", pa.list_(pa.string())),
    ]
    schema = pa.schema(names)
    storage = Storage.at(options.out)
    name = f".tmp-records-{uuid.uuid4().hex[:12]}.parquet"
    total, seen = 0, 0

    def counted() -> Iterator[Record]:
        nonlocal seen
        for record in islice(options.objects.dataset.records(), options.limit):
            seen += 1
            yield with_split(record, options.holdout)

    try:
        with (
            storage.filesystem.open_output_stream(storage.join(name)) as stream,
            pq.ParquetWriter(stream, schema) as writer,
        ):
            chunk: list[dict[str, Any]] = []
            for record in pending(options.out, counted(), retry_failures=options.retry_failures):
                chunk.append(asdict(record))
                total += 1
                if len(chunk) == options.chunk:
                    writer.write_table(pa.Table.from_pylist(chunk, schema))
                    chunk = []
            if chunk:
                writer.write_table(pa.Table.from_pylist(chunk, schema))
        yield f"{_absolute(storage)}/{name}", total, seen - total
    finally:
        if storage.exists(name):
            storage.filesystem.delete_file(storage.join(name))


def with_split(record: Record, holdout: float) -> Record:
    """Put a record without a split into "test" or "train", by a hash of its uid.

    The same uid lands in the same split whatever else is in the set.
    """
    if not holdout or record.split is not None:
        return record
    place = int(content_hash(f"split/{record.uid}")[:13], 16) / 16**13
    return replace(record, split="test" if place < holdout else "train")


def _absolute(storage: Storage) -> str:
    return storage.path if storage.is_local else storage.root.rstrip("/")


@contextmanager
def _ray(options: EmbedOptions) -> Iterator[int]:
    """Join the cluster at ``address``, or start a local Ray and stop it afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data  # sets its own loggers up when it is imported

    for name in ("ray", "ray.data", "ray.util"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():  # a caller's own session: used, and left running
        yield max(1, _resource("CPU"))
        return
    local: dict[str, Any] = {
        # One more than the render workers hold for good: the tasks between them need a slot, and
        # without one the graph would wait for ever.
        "num_cpus": (options.workers or os.cpu_count() or 1) + 1,
        "object_store_memory": options.object_store_bytes,
        "include_dashboard": False,
    }
    try:
        ray.init(
            address=options.address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if options.address else local),
        )
    except ConnectionError as error:
        raise InputError(
            f"--address {options.address}: no Ray cluster answers there; start one with "
            "`ray start --head`, or leave the option out"
        ) from error
    try:
        yield max(1, _resource("CPU"))
    finally:
        ray.shutdown()


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible to torch; use --device cpu")
    return name


def tell(summary: EmbedSummary, out: str) -> None:
    """Print how the run went."""
    rate = (summary.embedded + summary.failed) / summary.seconds if summary.seconds else 0.0
    note(
        f"{out}: {summary.embedded} embedded, {summary.failed} failed, "
        f"{summary.skipped} were there already; {rate:.1f} objects/s"
    )
    for reason, count in summary.reasons.items():
        note(f"  {count} x {reason}")
