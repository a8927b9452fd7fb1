"""For tests of the `gl` renderer: whether it can run here, and how near two pictures are."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.common import InputError
from pipeline.renderers.gl import TOLERANCE, GlRenderer, Tolerance
from pipeline.renderers.gl_context import probe


@cache
def _reason() -> str | None:
    try:
        GlRenderer()
        probe()
    except InputError as error:
        return str(error)
    return None


def need_gl() -> GlRenderer:
    """The renderer; skips the test with the reason where OpenGL cannot be had."""
    reason = _reason()
    if reason:
        pytest.skip(reason)
    return GlRenderer()


def agreement(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> Tolerance:
    """How far pictures (V, S, S, 4) are apart, over the pixels that either object touches.

    The difference of a pixel is that of its worst channel; a silhouette is where coverage is at
    least half.
    """
    touched = (ours[..., 3] > 0) | (theirs[..., 3] > 0)
    assert touched.any(), "nothing to compare"
    difference = np.abs(ours.astype(int) - theirs)[..., :3].max(-1)[touched]
    first, second = ours[..., 3] >= 128, theirs[..., 3] >= 128
    union = (first | second).sum()
    return Tolerance(
        mean=float(difference.mean()),
        median=float(np.median(difference)),
        percentile_99=float(np.percentile(difference, 99)),
        silhouette_iou=float((first & second).sum() / union) if union else 0.0,
    )


def outside(found: Tolerance, allowed: Tolerance = TOLERANCE) -> bool:
    """Whether pictures are farther apart than allowed."""
    return (
        found.mean > allowed.mean
        or found.median > allowed.median
        or found.percentile_99 > allowed.percentile_99
        or found.silhouette_iou < allowed.silhouette_iou
    )
