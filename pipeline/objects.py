"""One object from record to pixels and points: what a CPU worker does, without Ray.

``process`` never raises for a bad object: it returns a ``Failure``. It can run in the calling
process, or in a child process of its own (``IsolatedProcessor``) that a crash or a hang of a mesh
library costs nothing but that object.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras
from pipeline.captions import texts_for
from pipeline.common import content_hash
from pipeline.datasets.base import Dataset, Record
from pipeline.renderers import get_renderer
from pipeline.renderers.base import RenderConfig
from pipeline.scene import MeshError
from pipeline.shards import Failure


@dataclass(frozen=True)
class ObjectSettings:
    """Everything that decides what one object turns into, besides the teacher."""

    dataset: Dataset
    cameras: Cameras
    render: RenderConfig
    renderer: str = "raster"
    n_points: int = 10_000
    n_fps: int = 2_048
    sampling_seed: int = 0
    # (side in pixels, "bicubic" or "bilinear") of the teacher: larger views are resized by the
    # worker, as open_clip does it, so that only what the teacher reads travels to it.
    encode_size: tuple[int, str] | None = None


@dataclass(frozen=True)
class Processed:
    """One object ready to be encoded."""

    record: Record
    texts: tuple[str, ...]
    text_sources: tuple[str, ...]
    images: NDArray[np.uint8]  # (V, S, S, 3) sRGB on the background, S at most the teacher's
    xyz: NDArray[np.float32]  # (N, 3)
    rgb: NDArray[np.uint8]  # (N, 3)
    has_color: bool
    sha256: str
    n_faces: int
    n_vertices: int
    n_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)  # by stage: load, render, sample


def failure(record: Record, stage: str, error: str, message: str) -> Failure:
    """A failures row for ``record``; long messages are cut."""
    text = " ".join(message.split())[:500]
    return Failure(record.uid, record.dataset, record.source, stage, error, text)


def resized(images: NDArray[np.uint8], encode_size: tuple[int, str] | None) -> NDArray[np.uint8]:
    """Views (V, S, S, 3) at the teacher's size where they are larger, else as they are."""
    if encode_size is None or images.shape[1] <= encode_size[0]:
        return np.ascontiguousarray(images)
    from PIL import Image

    side, interpolation = encode_size
    method = Image.Resampling[interpolation.upper()]
    views = [Image.fromarray(np.ascontiguousarray(view)) for view in images]
    return np.stack([np.asarray(view.resize((side, side), method)) for view in views])


def process(record: Record, settings: ObjectSettings) -> Processed | Failure:
    """Load, render and sample one object."""
    stage, seconds = "load", {}
    try:
        start = time.perf_counter()
        asset = settings.dataset.load(record)
        mesh = asset.mesh
        seconds["load"] = time.perf_counter() - start

        stage, start = "render", time.perf_counter()
        rendered = get_renderer(settings.renderer).render(mesh, settings.cameras, settings.render)
        if rendered[..., 3].max(initial=0) == 0 and len(settings.cameras):
            raise MeshError("blank_render", "nothing of the object is visible in any view", stage)
        images = resized(rendered[..., :3], settings.encode_size)
        seconds["render"] = time.perf_counter() - start

        stage, start = "sample", time.perf_counter()
        from pipeline.points import sample_points

        # The seed depends on the object, not on its place in the run: resuming changes nothing.
        seed = int(content_hash(f"{settings.sampling_seed}/{record.uid}")[:15], 16)
        points = sample_points(mesh, settings.n_points, seed=seed, n_fps=settings.n_fps)
        seconds["sample"] = time.perf_counter() - start

        stage = "texts"
        texts = texts_for(record)
        return Processed(
            record=record,
            texts=tuple(text for text, _ in texts),
            text_sources=tuple(source for _, source in texts),
            images=images,
            xyz=points.xyz,
            rgb=points.rgb,
            has_color=points.has_color,
            sha256=asset.sha256,
            n_faces=len(mesh.faces),
            n_vertices=len(mesh.vertices),
            n_bytes=asset.n_bytes,
            seconds=seconds,
        )
    except MeshError as error:
        return failure(record, error.stage or stage, error.kind, error.message)
    except MemoryError:
        return failure(record, stage, "out_of_memory", "needs more memory than a worker may take")
    except RecursionError:
        return failure(record, stage, "recursion", "nested too deeply")
    except Exception as error:  # an object must never end the job
        return failure(record, stage, type(error).__name__, str(error) or "no message")


_settings: ObjectSettings | None = None


def _start_child(settings: ObjectSettings, memory_bytes: int | None) -> None:
    global _settings
    _settings = settings
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    prefer_throughput()


def prefer_throughput() -> None:
    """Ask the kernel for long time slices: workers of a batch job gain nothing by quick ones."""
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _run_in_child(record: Record) -> bytes:
    assert _settings is not None
    return pickle.dumps(process(record, _settings), protocol=5)


class IsolatedProcessor:
    """``process`` in a child process, with a time limit per object.

    A child that crashes or hangs is replaced, and its object becomes a failure of kind ``crash``
    or ``timeout``.
    """

    def __init__(
        self,
        settings: ObjectSettings,
        timeout_s: float = 120.0,
        memory_bytes: int | None = 8 << 30,
    ) -> None:
        from pebble import ProcessPool

        self._timeout_s = timeout_s
        # spawn: the parent (a Ray worker) runs threads, which a fork would leave half-dead.
        self._pool = ProcessPool(
            max_workers=1,
            context=multiprocessing.get_context("spawn"),
            initializer=_start_child,
            initargs=(settings, memory_bytes),
        )

    def __call__(self, records: Sequence[Record]) -> Iterator[Processed | Failure]:
        """Process ``records`` in order; the next one is under way while one is handed out."""
        for item in self.packed(records):
            yield pickle.loads(item)

    def packed(self, records: Sequence[Record]) -> Iterator[bytes]:
        """The same, each item pickled: to be passed on without being opened on the way."""
        from pebble import ProcessExpired

        futures = [
            self._pool.schedule(_run_in_child, args=(record,), timeout=self._timeout_s)
            for record in records
        ]
        for record, future in zip(records, futures, strict=True):
            try:
                item = future.result()
            except FutureTimeoutError:
                lost = failure(record, "process", "timeout", f"took over {self._timeout_s:g} s")
                item = pickle.dumps(lost)
            except ProcessExpired as error:
                reason = f"the worker died (exit code {error.exitcode})"
                item = pickle.dumps(failure(record, "process", "crash", reason))
            yield item

    def close(self) -> None:
        """Stop the child."""
        pool: Any = self._pool
        pool.stop()
        pool.join()
