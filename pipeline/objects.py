"""One object from record to pixels and points: what a CPU worker does, without Ray.

``process`` never raises for a bad object: it returns a ``Failure``. It can run in the calling
process, or in a child process of its own (``pipeline.isolated``).
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Cameras
from pipeline.captions import CaptionOptions, collect_texts
from pipeline.common import content_hash
from pipeline.datasets.base import Dataset, Record
from pipeline.pictures import Size, at_sizes, encode_webp, shows_something
from pipeline.renderers import get_renderer
from pipeline.renderers.base import RenderConfig
from pipeline.resize import METHODS
from pipeline.scene import Mesh, MeshError
from pipeline.shards import Failure, KeptImages, TeacherInfo


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
    # What the teachers read (``teacher_size``): larger views are resized by the worker, as
    # open_clip does it, so that only that travels to them.
    encode_sizes: tuple[Size, ...] = (None,)
    thumbnail: bool = False  # one more view, framed on the object (``Cameras.with_thumbnail``)
    keep_images: str | None = None  # format of the views to keep (``pictures.kept_format``)
    captions: CaptionOptions = field(default_factory=CaptionOptions)


@dataclass(frozen=True)
class Processed:
    """One object ready to be encoded."""

    record: Record
    texts: tuple[str, ...]
    text_sources: tuple[str, ...]
    # By encode size: (V, S, S, 3) sRGB on the background, S at most the teacher's.
    images: dict[Size, NDArray[np.uint8]]
    xyz: NDArray[np.float32]  # (N, 3)
    rgb: NDArray[np.uint8]  # (N, 3)
    has_color: bool
    sha256: str
    n_faces: int
    n_vertices: int
    n_bytes: int
    # By encode size: (S, S, 3); {} where none was asked for, or it shows nothing.
    thumbnail: dict[Size, NDArray[np.uint8]] = field(default_factory=dict)
    kept: KeptImages | None = None  # the pictures as rendered, as ``keep_images`` says
    text_counts: dict[str, int] = field(default_factory=dict)  # see ``captions.Texts``
    seconds: dict[str, float] = field(default_factory=dict)  # by stage: load, render, sample, keep


def failure(record: Record, stage: str, error: str, message: str) -> Failure:
    """A failures row for ``record``; long messages are cut."""
    text = " ".join(message.split())[:500]
    return Failure(record.uid, record.dataset, record.source, stage, error, text)


def teacher_size(teacher: TeacherInfo) -> Size:
    """The size and filter with which a teacher reads pictures; None where it must do it itself."""
    preprocess = teacher.config.get("preprocess_cfg", {})
    size = preprocess.get("size")
    side = size[0] if isinstance(size, list) else size
    method = str(preprocess.get("interpolation", "bicubic"))
    return (side, method) if isinstance(side, int) and method in METHODS else None


def draw(mesh: Mesh, settings: ObjectSettings) -> NDArray[np.uint8]:
    """All views of a mesh, and the thumbnail as the last one if asked for: (V, S, S, 4) uint8.

    Raises ``MeshError`` (``blank_render``) when no view shows anything of the object, as
    ``pictures.shows_something`` measures it.
    """
    cameras = settings.cameras
    if not len(cameras):
        side = settings.render.image_size
        return np.zeros((0, side, side, 4), np.uint8)
    if settings.thumbnail:
        cameras = cameras.with_thumbnail(mesh)
    pictures = get_renderer(settings.renderer).render(mesh, cameras, settings.render)
    background = settings.render.background
    views = pictures[: len(settings.cameras)]
    if any(shows_something(view, background) for view in views) or not len(views):
        return pictures
    if views[..., 3].any():
        red, green, blue = background
        raise MeshError(
            "blank_render",
            "in no view can the object be distinguished from the background "
            f"#{red:02x}{green:02x}{blue:02x}; try another one",
            "render",
        )
    raise MeshError("blank_render", "nothing of the object is visible in any view", "render")


def process(record: Record, settings: ObjectSettings) -> Processed | Failure:
    """Load, render and sample one object."""
    stage, seconds = "load", {}
    try:
        start = time.perf_counter()
        asset = settings.dataset.load(record)
        mesh = asset.mesh
        seconds["load"] = time.perf_counter() - start

        stage, start = "render", time.perf_counter()
        drawn = draw(mesh, settings)
        n_views = len(settings.cameras)
        views, extra = drawn[:n_views], drawn[n_views:]
        # A thumbnail that shows nothing (a sheet of paper seen from its edge) is left out.
        extra = extra[[shows_something(view, settings.render.background) for view in extra]]
        images = at_sizes(views, settings.encode_sizes)
        thumbnails = at_sizes(extra, settings.encode_sizes)
        seconds["render"] = time.perf_counter() - start

        kept: KeptImages | None = None
        if settings.keep_images:
            stage, start = "keep", time.perf_counter()
            files = [encode_webp(v[..., :3], settings.keep_images) for v in (*views, *extra)]
            kept = KeptImages(record.uid, tuple(files[:n_views]), *files[n_views:])
            seconds["keep"] = time.perf_counter() - start

        stage, start = "sample", time.perf_counter()
        from pipeline.clouds import cloud_points
        from pipeline.points import sample_points

        # The seed depends on the object, not on its place in the run: resuming changes nothing.
        seed = int(content_hash(f"{settings.sampling_seed}/{record.uid}")[:15], 16)
        cloud = asset.cloud
        if cloud is None:
            points = sample_points(mesh, settings.n_points, seed=seed, n_fps=settings.n_fps)
        else:  # the mesh is only what is drawn of it
            points = cloud_points(cloud, settings.n_points, seed=seed, n_fps=settings.n_fps)
        seconds["sample"] = time.perf_counter() - start

        stage = "texts"
        texts = collect_texts(record, settings.captions)
        return Processed(
            record=record,
            texts=tuple(text for text, _ in texts.pairs),
            text_sources=tuple(source for _, source in texts.pairs),
            text_counts=texts.counts,
            images=images,
            xyz=points.xyz,
            rgb=points.rgb,
            has_color=points.has_color,
            sha256=asset.sha256,
            n_faces=len(mesh.faces) if cloud is None else 0,
            n_vertices=len(mesh.vertices) if cloud is None else len(cloud.xyz),
            n_bytes=asset.n_bytes,
            thumbnail={size: found[0] for size, found in thumbnails.items() if len(found)},
            kept=kept,
            seconds=seconds,
        )
    except Exception as error:  # an object must never end the job
        where = error.stage if isinstance(error, MeshError) and error.stage else stage
        return failure(record, where, *reason(error))


def reason(error: Exception) -> tuple[str, str]:
    """Kind and message of what went wrong with an object."""
    match error:
        case MeshError():
            return error.kind, error.message
        case MemoryError():
            return "out_of_memory", "needs more memory than a worker may take"
        case RecursionError():
            return "recursion", "nested too deeply"
    return type(error).__name__, str(error) or "no message"


def prefer_throughput() -> None:
    """Ask the kernel for long time slices: workers of a batch job gain nothing by quick ones."""
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
