"""Rendered pictures on their way: is anything to be seen, at the teachers' sizes, kept as WebP."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.common import InputError
from pipeline.resize import shrink

# (side in pixels, "bicubic" or "bilinear") of a teacher; None: as rendered.
Size = tuple[int, str] | None
U8 = NDArray[np.uint8]

# A view shows the object where a channel differs from the background by 8 of 255 on at least one
# pixel in 1,000. Measured on 1,363 real assets in 12 views of 64 px on white with the default
# light: the least visible one differs by 8 on 27 pixels in 1,000 of its best view (by 32 on 10).
# What falls below is invisible indeed: black on black, white on white without diffuse light.
MIN_CONTRAST = 8
MIN_SHOWN = 1e-3

QUALITY = 90  # of WebP where none is given
LOSSLESS = "webp-lossless"


def shows_something(view: U8, background: tuple[int, int, int]) -> bool:
    """Whether an object can be told from the background in a picture (S, S, 4) uint8."""
    colour = np.array(background, np.int16)
    low, high = np.maximum(colour - MIN_CONTRAST, -1), np.minimum(colour + MIN_CONTRAST, 256)
    # Compared inclusively in 8 bits: the fourth channel, coverage, always lies inside.
    least = np.array([*(low + 1), 0], np.uint8)
    most = np.array([*(high - 1), 255], np.uint8)
    outside = (view < least) | (view > most)
    shown = int(np.count_nonzero(outside.view(np.uint32)))
    return shown >= max(1.0, MIN_SHOWN * (view.size // 4))


def at_sizes(images: U8, sizes: Iterable[Size]) -> dict[Size, U8]:
    """Pictures (V, S, S, 4) uint8 as (V, s, s, 3) by size: smaller as Pillow does it, or as is.

    A picture is never enlarged here: that is left to the teacher, so that less has to travel.
    """
    found: dict[Size, U8] = {}
    plain: U8 | None = None
    for size in sizes:
        if size is not None and images.shape[1] > size[0]:
            found[size] = shrink(images, *size)
            continue
        if plain is None:
            plain = np.ascontiguousarray(images[..., :3])
        found[size] = plain
    return found


def kept_format(text: str) -> str:
    """The format that ``webp``, ``webp-QUALITY`` or ``webp-lossless`` name, in full.

    Raises ``InputError`` for anything else.
    """
    if text == LOSSLESS:
        return text
    match = re.fullmatch(r"webp(?:-(\d{1,3}))?", text)
    quality = int(match[1] or QUALITY) if match else 0
    if not 1 <= quality <= 100:
        raise InputError(
            f"--keep-images {text}: not a format; use webp, webp-1 to webp-100 or {LOSSLESS}"
        )
    return f"webp-{quality}"


def encode_webp(image: U8, form: str) -> bytes:
    """A picture (S, S, 3) uint8 as WebP, ``form`` as ``kept_format`` gives it.

    The fastest effort: more of it saves a fifth of a lossy and a half of a lossless file for two
    and five times the time.
    """
    stream = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image))
    if form == LOSSLESS:
        picture.save(stream, "WEBP", lossless=True, quality=0, method=0)
    else:
        picture.save(stream, "WEBP", quality=int(form.removeprefix("webp-")), method=0)
    return stream.getvalue()


def decode_webp(data: bytes) -> U8:
    """The picture (S, S, 3) uint8 of WebP bytes. Raises ``ValueError`` when they are damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not a WebP picture ({error})") from error
