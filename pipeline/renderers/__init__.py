"""Renderers: one file each behind ``pipeline.renderers.base.Renderer``."""

from __future__ import annotations

from functools import cache

from pipeline.common import InputError
from pipeline.renderers.base import Renderer

NAMES = ("raster", "gl", "auto")


@cache
def get_renderer(name: str) -> Renderer:
    """The renderer registered as ``name``.

    ``raster`` draws on the CPU; ``gl`` by OpenGL, on a GPU or, where there is none, by Mesa on the
    CPU; ``auto`` is ``gl`` where a GPU answers and ``raster`` otherwise: look at the renderer's
    ``name``, and hand that on to workers.

    Raises ``InputError`` for an unknown name, or where ``gl`` is not installed.
    """
    if name == "raster":
        from pipeline.renderers.raster import RasterRenderer

        return RasterRenderer()
    if name == "gl":
        from pipeline.renderers.gl import GlRenderer

        return GlRenderer()
    if name == "auto":
        from pipeline.renderers.gl_context import gpu_answers

        return get_renderer("gl" if gpu_answers() else "raster")
    raise InputError(f"--renderer {name}: unknown; use one of {', '.join(NAMES)}")
