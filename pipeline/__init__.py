"""Assets to embedding shards: render, encode with CLIP, sample points, write Parquet.

``from pipeline import embed_folder`` embeds a folder of meshes; ``ShardSet`` reads what it wrote.
Other entry points: ``pipeline.job.embed`` (every option), ``pipeline.cli.main``. Nothing is
imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import embed_folder
    from pipeline.shards import ShardSet

__all__ = ["ShardSet", "embed_folder"]


def __getattr__(name: str) -> Any:
    if name == "ShardSet":
        from pipeline.shards import ShardSet

        return ShardSet
    if name == "embed_folder":
        from pipeline.api import embed_folder

        return embed_folder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
