"""How kernels are compiled.

``fastmath`` stays off, and kernels call nothing of libm beyond ``sqrt``, ``floor`` and ``ceil``,
which are exact: machines with and without AVX-512 or FMA then give identical bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba

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
