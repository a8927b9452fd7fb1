"""How kernels are compiled.

``fastmath`` stays off, and kernels call nothing of libm beyond ``sqrt``, ``floor`` and ``ceil``,
which are exact: machines with and without AVX-512 or FMA then give identical bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numba
from numba.core.caching import FunctionCache

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


class _Cache(FunctionCache):
    """Compiled code on disk, which is nothing but time saved: what is wrong with it is put up with.

    Numba's own raises where a file in it is cut off or the disk is full (numba #10434), and two
    processes that save at once may leave one's code under the other's types.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        usual: Any = super()
        try:
            return usual.load_overload(sig, target_context)
        except Exception:  # it is compiled, and saved over what could not be read
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        usual: Any = super()
        with contextlib.suppress(Exception), self._alone():
            try:
                usual.save_overload(sig, data)
            except Exception:
                usual.flush()  # an index that cannot be read
                usual.save_overload(sig, data)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        folder = Path(self.cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _compiled(function: Kernel, *, inline: bool) -> Kernel:
    kernel: Any = numba.njit(nogil=True, error_model="numpy", forceinline=inline)(function)
    with contextlib.suppress(RuntimeError):  # neither the package's nor the user's can be written
        kernel._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return cast("Kernel", kernel)
