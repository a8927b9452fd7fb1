"""The colour tables that renderers share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ENCODE_STEPS = 16384
"""Entries of the linear-to-sRGB table: fine enough that every sRGB code survives a round trip."""


def _tables() -> tuple[NDArray[np.float32], NDArray[np.uint16], NDArray[np.uint8]]:
    """Made in plain Python: numpy's powers differ in the last bit between processors."""

    def to_linear(x: float) -> float:
        return x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4

    def to_srgb(x: float) -> float:
        return x * 12.92 if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055

    decode = [to_linear(i / 255) for i in range(256)]
    encode = [round(255 * to_srgb(i / (ENCODE_STEPS - 1))) for i in range(ENCODE_STEPS)]
    return (
        np.array(decode, np.float32),
        np.array([round(65535 * x) for x in decode], np.uint16),
        np.array(encode, np.uint8),
    )


# (256,) float32 linear light in [0, 1], (256,) uint16 the same times 65535, (16384,) uint8 codes.
SRGB_TO_LINEAR, SRGB_TO_LINEAR16, LINEAR_TO_SRGB = _tables()
