"""KTX 2 textures with a Basis Universal payload (KHR_texture_basisu), through opengl_basisu."""

from __future__ import annotations

import struct

import numpy as np

from pipeline.meshes.parts import Limits, require
from pipeline.scene import U8, MeshError

KTX2_MAGIC = b"\xabKTX 20\xbb\r\n\x1a\n"
KTX1_MAGIC = b"\xabKTX 11\xbb\r\n\x1a\n"
LIBRARY = "opengl_basisu"

_HEADER = struct.Struct("<9I4I2Q")  # after the magic: KTX 2.0, section 3.1
_LEVEL = struct.Struct("<3Q")
_MOST_LEVELS = 32


def decode_ktx2(data: bytes, limits: Limits, what: str) -> U8:
    """The largest level as (H, W, 4) sRGB uint8, row 0 at the top.

    Raises ``MeshError``: ``unsupported_texture`` for what glTF does not allow in one,
    ``too_large``, ``bad_texture`` for damaged data, ``needs_library`` without the transcoder.
    """
    width, height = _checked_size(data, limits, what)
    try:
        import opengl_basisu
    except ImportError:
        raise MeshError(
            "needs_library", f"{what} is a KTX 2 texture: install the package {LIBRARY}"
        ) from None
    try:
        image = opengl_basisu.open(data).transcode("rgba8")
    except opengl_basisu.UnsupportedError as error:
        raise MeshError("unsupported_texture", f"{what}: {error}") from None
    except Exception as error:  # damaged data
        raise MeshError("bad_texture", f"{what} cannot be decoded: {error}") from None
    pixels = np.asarray(image.data)
    require(pixels.shape == (height, width, 4), "bad_texture", f"{what} has another size inside")
    return pixels.astype(np.uint8, copy=False)


def _checked_size(data: bytes, limits: Limits, what: str) -> tuple[int, int]:
    """Width and height, once what the header claims is possible and within the limits."""
    start = len(KTX2_MAGIC)
    require(len(data) >= start + _HEADER.size, "bad_texture", f"{what} is cut off")
    vk_format, _, width, height, depth, layers, faces, levels, _, *_ = _HEADER.unpack_from(
        data, start
    )
    require(width > 0 and height > 0, "bad_texture", f"{what} has no pixels")
    require(
        width * height <= limits.texture_pixels,
        "too_large",
        f"{what} has {width} x {height} pixels; the limit is {limits.texture_pixels:,}",
    )
    require(
        vk_format == 0 and depth == 0 and layers <= 1 and faces == 1,
        "unsupported_texture",
        f"{what} is no plain Basis Universal image (format {vk_format}, depth {depth}, "
        f"{layers} layers, {faces} faces)",
    )
    require(levels <= _MOST_LEVELS, "bad_texture", f"{what} claims {levels} levels")
    # A block of 4 x 4 pixels takes at most 16 bytes in either payload.
    most = 16 * (-(-width // 4)) * (-(-height // 4)) + 4096
    for level in range(max(levels, 1)):
        place = start + _HEADER.size + level * _LEVEL.size
        require(len(data) >= place + _LEVEL.size, "bad_texture", f"{what} is cut off")
        offset, length, unpacked = _LEVEL.unpack_from(data, place)
        require(
            offset + length <= len(data) and unpacked <= most,
            "bad_texture",
            f"level {level} of {what} claims more than there is",
        )
    return width, height
