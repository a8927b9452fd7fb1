"""Decoding base-colour images: checked before decoding, reduced to a bounded side."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, features

from pipeline.meshes.ktx2 import KTX1_MAGIC, KTX2_MAGIC, decode_ktx2
from pipeline.meshes.parts import Limits
from pipeline.scene import U8, MeshError

# Decoders that hostile bytes may reach. PIL would try every plug-in it has.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TGA", "GIF", "TIFF", "DDS", "PPM")
_AVIF_BRANDS = (b"ftypavif", b"ftypavis")


def decode_texture(data: bytes, limits: Limits, what: str) -> U8:
    """An encoded image as (H, W, 4) sRGB uint8 with alpha, row 0 at the top.

    Images larger than ``limits.max_texture_side`` are reduced by a whole factor (box filter; JPEG
    while decoding). Raises ``MeshError``: ``bad_texture`` for bytes that are no image,
    ``unsupported_texture`` for KTX containers that glTF does not know, ``needs_library`` where an
    optional decoder is not installed, ``too_large`` past ``limits.texture_pixels``.
    """
    if data.startswith(KTX1_MAGIC):
        raise MeshError("unsupported_texture", f"{what} is a KTX 1 texture; glTF has KTX 2 only")
    if data.startswith(KTX2_MAGIC):
        return _reduced(Image.fromarray(decode_ktx2(data, limits, what)), limits)
    formats: tuple[str, ...] = _FORMATS
    if data[4:12] in _AVIF_BRANDS:
        if not features.check("avif"):
            raise MeshError(
                "needs_library", f"{what} is AVIF: install pillow 11.3 or later, built with AVIF"
            )
        formats = ("AVIF",)
    if not data:
        raise MeshError("bad_texture", f"{what} is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of sizes that the check below refuses anyway
        try:
            with Image.open(io.BytesIO(data), formats=formats) as image:
                return _pixels(image, limits, what)
        except MeshError:
            raise
        except Image.DecompressionBombError:
            raise MeshError("too_large", f"{what} claims too many pixels") from None
        except MemoryError:
            raise MeshError("too_large", f"{what} does not fit into memory") from None
        except Exception as error:  # decoders raise anything on damaged bytes
            raise MeshError("bad_texture", f"{what} cannot be decoded: {error}") from None


def _pixels(image: Image.Image, limits: Limits, what: str) -> U8:
    """Check the claimed size, then decode and convert."""
    width, height = image.size
    if width < 1 or height < 1:
        raise MeshError("bad_texture", f"{what} has no pixels")
    if width * height > limits.texture_pixels:
        raise MeshError(
            "too_large",
            f"{what} has {width} x {height} pixels; the limit is {limits.texture_pixels:,}",
        )
    side = limits.max_texture_side
    if max(width, height) > side:
        # Decodes a JPEG at 1/2, 1/4 or 1/8, never below the size asked for; others ignore it.
        scale = side / max(width, height)
        image.draft("RGB", (int(np.ceil(width * scale)), int(np.ceil(height * scale))))
    decoded: Image.Image = image
    if image.mode.startswith("I"):  # 16 bit grey: convert() would clip instead of scale
        grey = np.asarray(image, np.int64) >> 8
        decoded = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8), "L")
    elif image.mode == "F":  # 0 to 1, which convert() would take for 0 to 255
        share = np.nan_to_num(np.asarray(image, np.float64))
        decoded = Image.fromarray(np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8), "L")
    return _reduced(decoded.convert("RGBA"), limits)


def _reduced(image: Image.Image, limits: Limits) -> U8:
    """Pixels of an RGBA image, its sides divided by a whole factor where they are too large."""
    factor = -(-max(image.size) // limits.max_texture_side)
    return np.asarray(image.reduce(factor) if factor > 1 else image, np.uint8)
