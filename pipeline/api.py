"""For notebooks and other people's code: a folder of meshes to a shard set in one call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.job import EmbedSummary


def embed_folder(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    teacher: str = "demo",
    metadata: str | os.PathLike[str] | None = None,
    views: int = 12,
    image_size: int = 224,
    points: int = 10_000,
    workers: int | None = None,
    device: str = "auto",
    holdout: float = 0.0,
    up_axis: str = "auto",
) -> EmbedSummary:
    """Embed every mesh below ``root`` into the shard set ``out``, as `pipeline embed` does.

    Each object gets ``views`` pictures of ``image_size`` pixels encoded by ``teacher`` (``demo``,
    ``MODEL:TAG`` of open_clip, or ``MODEL:/path``), its texts encoded, and ``points`` coloured
    points in farthest-point order. ``metadata`` is a CSV or Parquet with captions and categories;
    ``holdout`` the share of objects that get the split "test". Called again, it goes on: what is
    there is skipped, and what failed is left out (``ShardSet.open(out).failures()`` says why).

    A Ray is started for the time of the call, unless one runs in this process already. Raises
    ``InputError`` (``pipeline.common``) for whatever the command would refuse.

    >>> summary = embed_folder("meshes", "shards/mine")
    >>> summary.embedded, summary.failed
    """
    from pipeline.cameras import make_cameras
    from pipeline.datasets.sources import SourceOptions, make_dataset
    from pipeline.job import EmbedOptions, embed
    from pipeline.objects import ObjectSettings
    from pipeline.renderers.base import RenderConfig

    source = make_dataset(
        "folder",
        SourceOptions(
            root=Path(root),
            metadata=None if metadata is None else Path(metadata),
            up_axis=None if up_axis == "auto" else up_axis,
        ),
    )
    objects = ObjectSettings(
        dataset=source,
        cameras=make_cameras("ring", views),
        render=RenderConfig(image_size=image_size),
        n_points=points,
        n_fps=min(points, 2048),
    )
    options = EmbedOptions(
        objects=objects,
        out=os.fspath(out),
        teachers=(teacher,),
        workers=workers,
        device=device,
        holdout=holdout,
    )
    return embed(options)
