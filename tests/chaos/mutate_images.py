"""Hostile images: bombs, cut off, changed, of another type than they say."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from PIL import Image

from tests.chaos.mutate import Case, byte_mutations, fixed
from tests.pipeline.gltf_encoders import ktx2_uastc
from tests.pipeline.gltf_files import png, quad_glb
from tests.pipeline.test_mesh_hostile import image_bomb

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "TGA", "DDS", "PPM")


def picture(form: str, size: tuple[int, int] = (24, 20)) -> bytes:
    """A small picture in a format of PIL."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def flat(form: str, side: int, **options: object) -> bytes:
    """A picture of one colour, many pixels in few bytes."""
    stream = io.BytesIO()
    Image.new("L" if form in ("PNG", "TIFF", "GIF") else "RGB", (side, side)).save(
        stream, form, **options
    )
    return stream.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(kind: bytes, data: bytes) -> bytes:
    """A good PNG with one more chunk after its header."""
    whole = png(np.zeros((4, 4, 3), np.uint8))
    return whole[:33] + _chunk(kind, data) + whole[33:]


def png_of_other_length(size: int) -> bytes:
    """A PNG of 8 x 8 whose pixel data inflate to ``size`` bytes."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * size, 9))
    return b"\x89PNG\r\n\x1a\n" + body + _chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header claims a size."""
    data = bytearray(picture("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP whose canvas claims a size, with one small frame."""
    small = picture("WEBP")[12:]
    frame = struct.pack(
        "<3s3s3s3s3sB", b"\0" * 3, b"\0" * 3, b"\x17\0\0", b"\x13\0\0", b"\1\0\0", 0
    )
    frame += small
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, 2) + canvas
    body += b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_lossless(width: int, height: int) -> bytes:
    """A lossless WebP whose header claims a size."""
    stream = io.BytesIO()
    Image.new("RGB", (24, 20)).save(stream, "WEBP", lossless=True)
    data = bytearray(stream.getvalue())
    at = data.index(b"VP8L") + 9
    data[at : at + 4] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


def bmp_of(width: int, height: int, bits: int = 24) -> bytes:
    """A BMP whose header claims a size."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def tga_of(width: int, height: int) -> bytes:
    """A run-length TGA whose header claims a size."""
    return (
        struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, width, height, 24, 0) + b"\xff\0\0\0"
    )


def gif_of(width: int, height: int) -> bytes:
    """A GIF whose screen and frame claim a size."""
    data = bytearray(picture("GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    at = data.index(b",", 13)
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def tiff_tag(tag: int, value: int, count: int = 1) -> bytes:
    """A TIFF in which an entry of the directory says something else."""
    data = bytearray(picture("TIFF"))
    at = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, at)[0]):
        place = at + 2 + 12 * entry
        if struct.unpack_from("<H", data, place)[0] == tag:
            struct.pack_into("<HII", data, place + 2, 4, count, value)
    return bytes(data)


_BOMBS: dict[str, Callable[[], bytes]] = {
    "png of 10 gigapixels": lambda: image_bomb(100_000, 100_000),
    "png of 2^31 x 2^31": lambda: image_bomb(2**31 - 1, 2**31 - 1),
    "png of 0 x 5": lambda: image_bomb(0, 5),
    "png of 64 megapixels": lambda: flat("PNG", 8000),
    "png of 81 megapixels": lambda: flat("PNG", 9000),
    "png text that inflates": lambda: png_with(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 10**8)),
    "png profile that inflates": lambda: png_with(b"iCCP", b"a\0\0" + zlib.compress(b"a" * 10**8)),
    "png international text that inflates": lambda: png_with(
        b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"a" * 10**8)
    ),
    "png of 10,000 texts": lambda: (
        png_with(b"tEXt", b"a\0b")[:33]
        + _chunk(b"tEXt", b"a\0" + b"b" * 5000) * 3000
        + png(np.zeros((4, 4, 3), np.uint8))[33:]
    ),
    "png of too few pixels": lambda: png_of_other_length(3),
    "png of far too many pixels": lambda: png_of_other_length(10**8),
    "png chunk of negative length": lambda: png(np.zeros((4, 4, 3), np.uint8)).replace(
        b"IDAT", b"\xff\xff\xff\xffIDAT"
    ),
    "png animated with 2^31 frames": lambda: png_with(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
    "jpeg of 65,500 x 65,500": lambda: jpeg_of(65_500, 65_500),
    "jpeg of 0 x 0": lambda: jpeg_of(0, 0),
    "jpeg of 8,000 x 8,000, cut off": lambda: jpeg_of(8000, 8000),
    "jpeg of 36 megapixels": lambda: flat("JPEG", 6000),
    "jpeg, progressive, of 16 megapixels": lambda: flat("JPEG", 4000, progressive=True),
    "webp of 268 megapixels": lambda: webp_lossless(16_384, 16_384),
    "webp of 64 megapixels, cut off": lambda: webp_lossless(8000, 8000),
    "webp canvas of 2^24 x 128": lambda: webp_canvas(2**24, 128),
    "webp canvas of 60,000 x 60,000": lambda: webp_canvas(60_000, 60_000),
    "webp canvas of 30,000 x 30,000": lambda: webp_canvas(30_000, 30_000),
    "webp canvas of 8,000 x 8,000": lambda: webp_canvas(8000, 8000),
    "bmp of 2^31 x 2^31": lambda: bmp_of(2**31 - 1, 2**31 - 1),
    "bmp of negative height": lambda: bmp_of(10, -(2**31)),
    "bmp of 0 bits": lambda: bmp_of(10, 10, 0),
    "tga of 65,535 x 65,535": lambda: tga_of(65_535, 65_535),
    "tga of 8,000 x 8,000, cut off": lambda: tga_of(8000, 8000),
    "gif of 65,535 x 65,535": lambda: gif_of(65_535, 65_535),
    "gif of 8,000 x 8,000, cut off": lambda: gif_of(8000, 8000),
    "ppm of 4 G pixels": lambda: b"P6 65536 65536 255\n\0",
    "ppm of a size without end": lambda: b"P6 " + b"9" * 100_000,
    "ppm, plain, of a comment without end": lambda: b"P3\n#" + b"x" * 1_000_000,
    "pam of 4 G pixels": lambda: b"P7\nWIDTH 65536\nHEIGHT 65536\nDEPTH 3\nMAXVAL 255\nENDHDR\n",
    "tiff of 2^31 columns": lambda: tiff_tag(256, 2**31),
    "tiff of 2^32 strips": lambda: tiff_tag(273, 8, 2**32 - 1),
    "tiff of strips of 4 GB": lambda: tiff_tag(279, 2**32 - 1),
    "tiff whose directory is its own next": lambda: picture("TIFF")[:-4] + b"\x08\0\0\0",
    "tiff of a strip at 4 GB": lambda: tiff_tag(273, 2**32 - 1),
    "dds of 4 G pixels": lambda: (
        picture("DDS")[:12] + struct.pack("<II", 65_536, 65_536) + picture("DDS")[20:]
    ),
    "gzip": lambda: zlib.compress(b"\0" * 10**6, wbits=31),
    "svg of an outside entity": lambda: (
        b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM '
        b'"file:///etc/hostname">]><svg>&x;</svg>'
    ),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/hostname) run\n",
    "xbm": lambda: b"#define a_width 99999\n#define a_height 99999\nstatic char a[] = {0};",
    "pdf": lambda: b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n",
    "html": lambda: b"<html><body>404 not found</body></html>",
    "avif without a body": lambda: b"\0\0\0\x20ftypavif" + b"\0" * 40,
    "ktx 1": lambda: b"\xabKTX 11\xbb\r\n\x1a\n" + b"\0" * 60,
    "ktx 2 of 4 G pixels": lambda: ktx2_uastc(
        np.zeros((2, 2, 4), np.uint8), width=65_536, height=65_535
    ),
}


def image_cases() -> Iterator[Case]:
    """Every image as the base colour of a quad; some beside an OBJ file."""
    images: dict[str, Callable[[], bytes]] = dict(_BOMBS)
    ktx = ktx2_uastc(np.random.default_rng(1).integers(0, 256, (4, 4, 4)).astype(np.uint8))
    whole = {form: picture(form) for form in _FORMATS} | {"KTX2": ktx, "AVIF": _avif()}
    for form, data in whole.items():
        for told, broken in byte_mutations(data, f"image {form}", 17):
            images[f"{form.lower()} {told}"] = partial(bytes, broken)
    for name, make in images.items():
        yield fixed(f"image/{name}", "mesh", "a.glb", partial(_on_quad, make))
    for name, make in list(_BOMBS.items())[::3]:
        obj = "mtllib a.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/1\n"
        mtl = "newmtl m\nmap_Kd a.png\nmap_d a.png\n"
        yield fixed(f"image/obj, {name}", "mesh", "a.obj", obj, a_mtl=mtl, a_png=make)
    many = [_chunk(b"IDAT", b"")] * 20_000
    small = png(np.zeros((4, 4, 3), np.uint8))
    yield fixed(
        "image/png of 20,000 empty chunks",
        "mesh",
        "a.glb",
        quad_glb(small[:33] + b"".join(many) + small[33:])[1],
    )


def _on_quad(make: Callable[[], bytes]) -> bytes:
    return quad_glb(make())[1]


def _avif() -> bytes:
    try:
        return picture("AVIF")
    except (OSError, KeyError):  # a Pillow without it
        return b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + b"\0" * 300
