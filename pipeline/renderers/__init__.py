"""Renderers: one file each behind ``pipeline.renderers.base.Renderer``."""

from __future__ import annotations

from functools import cache

from pipeline.common import InputError
from pipeline.renderers.base import Renderer

NAMES = ("raster",)


@cache
def get_renderer(name: str) -> Renderer:
    """The renderer registered as ``name``. Raises ``InputError`` for an unknown name."""
    if name == "raster":
        from pipeline.renderers.raster import RasterRenderer

        return RasterRenderer()
    raise InputError(f"--renderer {name}: unknown; use one of {', '.join(NAMES)}")
