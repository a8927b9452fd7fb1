"""Which graphics device to draw on, asked of EGL without making a context.

Only ``ctypes`` and the system's ``libEGL.so.1``: listing devices touches no driver state, so that
it is safe in any process, the driver of a job included.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.common import InputError

LIBRARY = "libEGL.so.1"
REMEDY = (
    "install libegl1 and libgl1-mesa-dri (apt) or the graphics driver's EGL, "
    "or use --renderer raster"
)
VARIABLE = "EGL_DEVICE_INDEX"

_EGL_EXTENSIONS = 0x3055
_EGL_CUDA_DEVICE_NV = 0x323A
_MAX_DEVICES = 256


@dataclass(frozen=True)
class Device:
    """An EGL device: its place in EGL's list, whether the CPU draws, its CUDA number if any."""

    index: int
    software: bool
    cuda: int | None = None


def devices() -> tuple[Device, ...]:
    """The devices that EGL lists, GPUs and Mesa's software device alike.

    Empty where there is no EGL library, or one that cannot list devices.
    """
    try:
        egl = ctypes.CDLL(LIBRARY)
        address = egl.eglGetProcAddress
    except (OSError, AttributeError):
        return ()
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    pointer, integer = ctypes.c_void_p, ctypes.c_int32

    def function(name: bytes, result: type | None, *arguments: type) -> Any:
        found = address(name)
        return ctypes.CFUNCTYPE(result, *arguments)(found) if found else None

    query = function(
        b"eglQueryDevicesEXT",
        ctypes.c_uint,
        integer,
        ctypes.POINTER(pointer),
        ctypes.POINTER(integer),
    )
    text = function(b"eglQueryDeviceStringEXT", ctypes.c_char_p, pointer, integer)
    attribute = function(
        b"eglQueryDeviceAttribEXT",
        ctypes.c_uint,
        pointer,
        integer,
        ctypes.POINTER(ctypes.c_ssize_t),
    )
    if query is None or text is None:
        return ()
    handles, count = (pointer * _MAX_DEVICES)(), integer(0)
    if not query(_MAX_DEVICES, handles, ctypes.byref(count)):
        return ()
    found = []
    for index in range(count.value):
        extensions = (text(handles[index], _EGL_EXTENSIONS) or b"").decode("ascii", "replace")
        names, cuda = set(extensions.split()), None
        value = ctypes.c_ssize_t(-1)
        if (
            "EGL_NV_device_cuda" in names
            and attribute is not None
            and attribute(handles[index], _EGL_CUDA_DEVICE_NV, ctypes.byref(value))
        ):
            cuda = int(value.value)
        found.append(Device(index, "EGL_MESA_device_software" in names, cuda))
    return tuple(found)


def choose(
    found: Sequence[Device], environment: Mapping[str, str] = os.environ, process: int | None = None
) -> Device:
    """The device that this process should draw on.

    1. ``EGL_DEVICE_INDEX``: a number in EGL's list, or several with commas between them, over
       which processes are spread by their id;
    2. the GPU that ``CUDA_VISIBLE_DEVICES`` names first, which is how Ray tells a worker its own
       (by number: EGL does not know GPUs by their UUID);
    3. the first GPU; 4. the first device.

    Raises ``InputError`` where there is none, or not the one that was asked for.
    """
    if not found:
        raise InputError(f"--renderer gl: EGL ({LIBRARY}) offers no device; {REMEDY}")
    asked = environment.get(VARIABLE, "").strip()
    if asked:
        try:
            numbers = [int(part) for part in asked.split(",")]
        except ValueError:
            numbers = [-1]
        by_index = {device.index: device for device in found}
        if not set(numbers) <= set(by_index):
            raise InputError(
                f"{VARIABLE}={asked}: not in EGL's list; give one or more of "
                f"{', '.join(map(str, by_index))}, with commas between them"
            )
        return by_index[numbers[(os.getpid() if process is None else process) % len(numbers)]]
    first = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    hardware = [device for device in found if not device.software]
    if first.isdigit():
        for device in hardware:
            if device.cuda == int(first):
                return device
    return hardware[0] if hardware else found[0]
