"""How the rasteriser's kernels are compiled, and the colour tables that they share.

``fastmath`` stays off and nothing calls into libm beyond ``sqrt``, ``floor`` and ``ceil``, which
are exact: machines with and without AVX-512 or FMA then give identical bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from numpy.typing import NDArray

Kernel = Callable[..., Any]


def jit(function: Kernel) -> Kernel:
    """``numba.njit`` with the settings of all kernels. Compiled code is cached on disk.

    Numba's cache knows a kernel by the file that it is defined in: after editing a function that
    kernels of another file call, touch that file too.
    """
    return _compiled(function, inline=False)


def jit_inline(function: Kernel) -> Kernel:
    """As ``jit``, for the small functions that LLVM should fold into their callers."""
    return _compiled(function, inline=True)


def _compiled(function: Kernel, *, inline: bool) -> Kernel:
    def compiled(cache: bool) -> Kernel:
        return cast(
            Kernel,
            numba.njit(cache=cache, nogil=True, error_model="numpy", forceinline=inline)(function),
        )

    try:
        return compiled(cache=True)
    except RuntimeError:  # neither the package's nor the user's cache folder can be written
        return compiled(cache=False)


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
