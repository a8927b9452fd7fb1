"""Decoding of buffer views compressed with EXT_meshopt_compression or KHR_meshopt_compression.

Written after the bitstream of the KHR extension's appendices A (the three modes) and B (filters),
whose version 0 is that of the EXT extension. Every read is checked against the end of the data,
and the caller says how much memory the result may take before any is taken.
"""
# Kernels take their types from numba, at the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.jit import jit, jit_inline
from pipeline.meshes.parts import require
from pipeline.scene import MeshError

Bytes = NDArray[np.uint8]


def decode_view(data: bytes, mode: Any, filter_name: Any, count: int, stride: int) -> bytes:
    """The ``count * stride`` bytes of a compressed view.

    Args:
        data: the compressed bytes, exactly.
        mode: ``ATTRIBUTES``, ``TRIANGLES`` or ``INDICES``.
        filter_name: ``NONE``, ``OCTAHEDRAL``, ``QUATERNION``, ``EXPONENTIAL`` or ``COLOR``.
        count: elements; checked by the caller against its limits.
        stride: bytes of an element.

    Raises:
        MeshError: ``bad_header`` for settings that the extension forbids, ``undecoded`` for data
            that is cut off, too long or no such stream.
    """
    _check(mode, filter_name, count, stride)
    source = np.frombuffer(data, np.uint8)
    out = np.zeros(count * stride, np.uint8)
    if mode == "ATTRIBUTES":
        whole = _attributes(source, count, stride, out)
    elif mode == "TRIANGLES":
        whole = _triangles(source, count, stride, out)
    else:
        whole = _indices(source, count, stride, out)
    require(bool(whole), "undecoded", f"damaged meshopt data ({mode.lower()}, {len(data):,} bytes)")
    if filter_name != "NONE":
        with np.errstate(all="ignore"):
            _FILTERS[filter_name][1](out, stride)
    return out.tobytes()


def compile_cached() -> None:
    """Compile the decoders, or load them from numba's cache, before workers fan out."""
    decode_view(b"\xa0" + b"\0" * 32, "ATTRIBUTES", "NONE", 0, 4)
    decode_view(b"\xe1" + b"\0" * 16, "TRIANGLES", "NONE", 0, 4)
    decode_view(b"\xd1" + b"\0" * 4, "INDICES", "NONE", 0, 4)


def _check(mode: Any, filter_name: Any, count: int, stride: int) -> None:
    """What the extension demands of its settings."""
    if mode == "ATTRIBUTES":
        good = stride % 4 == 0 and 4 <= stride <= 256
    elif mode == "TRIANGLES":
        good = stride in (2, 4) and count % 3 == 0
    elif mode == "INDICES":
        good = stride in (2, 4)
    else:
        raise MeshError("bad_header", f"meshopt mode {str(mode)[:40]!r} does not exist")
    if filter_name != "NONE":
        if not isinstance(filter_name, str) or filter_name not in _FILTERS:
            raise MeshError("bad_header", f"meshopt filter {str(filter_name)[:40]!r} is unknown")
        strides = _FILTERS[filter_name][0]
        good = good and mode == "ATTRIBUTES" and (not strides or stride in strides)
    require(good, "bad_header", f"meshopt {mode} of stride {stride}, count {count}, {filter_name}")


# -- bitstreams ----------------------------------------------------------------------------------


@jit_inline
def _width(version, control, bits):
    """Bits of a delta by the stream's version, the control mode and the group's two header bits."""
    if version == 0:
        return 0 if bits == 0 else 1 << bits  # 0, 2, 4, 8
    if control == 0:
        return 0 if bits == 0 else 1 << (bits - 1)  # 0, 1, 2, 4
    return 1 << bits  # 1, 2, 4, 8


@jit
def _groups(source, pos, end, version, control, n_groups, out):
    """Deltas of one byte position into ``out`` (256,). Returns the new position, -1 for damage."""
    header = pos
    pos += (n_groups + 3) // 4
    if pos > end:
        return -1
    for group in range(n_groups):
        bits = (source[header + group // 4] >> (2 * (group % 4))) & 3
        width = _width(version, control, np.int64(bits))
        first = group * 16
        if width == 0:
            out[first : first + 16] = 0
        elif width == 8:
            if pos + 16 > end:
                return -1
            out[first : first + 16] = source[pos : pos + 16]
            pos += 16
        else:
            packed = pos
            pos += 2 * width
            if pos > end:
                return -1
            per_byte = 8 // width
            sentinel = (1 << width) - 1
            for i in range(16):
                byte = np.int64(source[packed + i // per_byte])
                place = i % per_byte
                # From the top bits down, but single bits from the bottom up.
                shift = place if width == 1 else 8 - width * (place + 1)
                value = (byte >> shift) & sentinel
                if value == sentinel:
                    if pos >= end:
                        return -1
                    value = np.int64(source[pos])
                    pos += 1
                out[first + i] = value
    return pos


@jit
def _attributes(source, count, stride, out):
    """Mode 0. Returns whether the stream was whole."""
    size = len(source)
    if size < 1 or (source[0] != 0xA0 and source[0] != 0xA1):
        return False
    version = np.int64(source[0] & 1)
    tail = stride + (stride // 4 if version else 0)
    end = size - max(tail, 24 if version else 32)
    if end < 1:
        return False
    channels = np.zeros(stride // 4, np.int64)
    last = np.zeros(stride, np.int64)
    for k in range(stride):
        last[k] = source[size - tail + k]
    if version:
        for k in range(stride // 4):
            channels[k] = source[size - stride // 4 + k]
            kind = channels[k] & 15
            if kind > 2 or (kind < 2 and channels[k] > 15):
                return False
    deltas = np.zeros((4, 256), np.uint8)
    most = min((8192 // stride) & ~15, 256)
    pos = 1
    done = 0
    while done < count:
        block = min(count - done, most)
        control = pos
        if version:
            pos += stride // 4
            if pos > end:
                return False
        for channel in range(stride // 4):
            for j in range(4):
                mode = np.int64(0)
                if version:
                    mode = (np.int64(source[control + channel]) >> (2 * j)) & 3
                if mode == 2:
                    deltas[j, :block] = 0
                elif mode == 3:
                    if pos + block > end:
                        return False
                    deltas[j, :block] = source[pos : pos + block]
                    pos += block
                else:
                    pos = _groups(source, pos, end, version, mode, (block + 15) // 16, deltas[j])
                    if pos < 0:
                        return False
            _undo_deltas(deltas, channels[channel], channel * 4, done, block, stride, last, out)
        done += block
    return pos == end


@jit
def _undo_deltas(deltas, channel, k, done, block, stride, last, out):
    """Four byte positions of a block, from ``k``: differences to values."""
    kind, turn = channel & 15, channel >> 4
    for i in range(block):
        at = (done + i) * stride + k
        if kind == 0:
            for j in range(4):
                d = np.int64(deltas[j, i])
                d = (d >> 1) ^ -(d & 1)
                last[k + j] = (last[k + j] + d) & 0xFF
        elif kind == 1:
            for j in range(0, 4, 2):
                d = np.int64(deltas[j, i]) | np.int64(deltas[j + 1, i]) << 8
                d = (d >> 1) ^ -(d & 1)
                v = ((last[k + j] | last[k + j + 1] << 8) + d) & 0xFFFF
                last[k + j], last[k + j + 1] = v & 0xFF, v >> 8
        else:
            d = np.int64(0)
            for j in range(4):
                d |= np.int64(deltas[j, i]) << (8 * j)
            d = (d >> turn) | (d << (32 - turn)) & 0xFFFFFFFF  # the encoder turns left
            for j in range(4):
                last[k + j] ^= (d >> (8 * j)) & 0xFF
        for j in range(4):
            out[at + j] = last[k + j]


@jit
def _varint(source, pos, end):
    """Unsigned LEB128 of at most 5 bytes: value and new position (-1 for damage)."""
    value = np.int64(0)
    for i in range(5):
        if pos >= end:
            return value, -1
        byte = np.int64(source[pos])
        pos += 1
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value & 0xFFFFFFFF, pos
    return value, -1


@jit_inline
def _unzigzag(v):
    return (v >> 1) ^ -(v & 1)


@jit_inline
def _write_index(out, i, stride, value):
    for j in range(stride):
        out[i * stride + j] = (value >> (8 * j)) & 0xFF


@jit
def _triangles(source, count, stride, out):
    """Mode 1. Returns whether the stream was whole."""
    n = count // 3
    size = len(source)
    if size < 1 + n + 16 or source[0] != 0xE1:
        return False
    end = size - 16
    pos = 1 + n
    edges = np.zeros((16, 2), np.int64)
    vertices = np.zeros(16, np.int64)
    n_edges = n_vertices = np.int64(0)  # pushed so far
    following = last = np.int64(0)
    for t in range(n):
        code = np.int64(source[1 + t])
        if code < 0xF0:
            back, y = code >> 4, code & 15
            if back >= n_edges:
                return False
            a, b = edges[(n_edges - 1 - back) & 15]
            fresh = True
            if y == 0:
                c = following
                following = (following + 1) & 0xFFFFFFFF
            elif y < 13:
                if y >= n_vertices:
                    return False
                c = vertices[(n_vertices - 1 - y) & 15]
                fresh = False
            elif y < 15:
                c = last = (last + (1 if y == 14 else -1)) & 0xFFFFFFFF
            else:
                value, pos = _varint(source, pos, end)
                if pos < 0:
                    return False
                c = last = (last + _unzigzag(value)) & 0xFFFFFFFF
            if fresh:
                vertices[n_vertices & 15] = c
                n_vertices += 1
        else:
            y = code & 15
            explicit = y >= 14
            if explicit:
                if pos >= end:
                    return False
                zw = np.int64(source[pos])
                pos += 1
                if zw == 0:
                    following = np.int64(0)
            else:
                zw = np.int64(source[size - 16 + y])
            z, w = zw >> 4, zw & 15
            if not explicit and (z == 15 or w == 15):
                return False
            if y == 15:
                value, pos = _varint(source, pos, end)
                if pos < 0:
                    return False
                a = last = (last + _unzigzag(value)) & 0xFFFFFFFF
            else:
                a = following
                following = (following + 1) & 0xFFFFFFFF
            b = c = np.int64(0)
            for corner in range(2):
                back = z if corner == 0 else w
                if back == 0:
                    value = following
                    following = (following + 1) & 0xFFFFFFFF
                elif back < 15:
                    if back > n_vertices:
                        return False
                    value = vertices[(n_vertices - back) & 15]
                else:
                    value, pos = _varint(source, pos, end)
                    if pos < 0:
                        return False
                    value = last = (last + _unzigzag(value)) & 0xFFFFFFFF
                if corner == 0:
                    b = value
                else:
                    c = value
            edges[n_edges & 15, 0], edges[n_edges & 15, 1] = b, a
            n_edges += 1
            vertices[n_vertices & 15] = a
            n_vertices += 1
            if z == 0 or z == 15:
                vertices[n_vertices & 15] = b
                n_vertices += 1
            if w == 0 or w == 15:
                vertices[n_vertices & 15] = c
                n_vertices += 1
        edges[n_edges & 15, 0], edges[n_edges & 15, 1] = c, b
        n_edges += 1
        edges[n_edges & 15, 0], edges[n_edges & 15, 1] = a, c
        n_edges += 1
        _write_index(out, 3 * t, stride, a)
        _write_index(out, 3 * t + 1, stride, b)
        _write_index(out, 3 * t + 2, stride, c)
    return pos == end


@jit
def _indices(source, count, stride, out):
    """Mode 2. Returns whether the stream was whole."""
    size = len(source)
    if size < 1 + 4 or source[0] != 0xD1:
        return False
    end = size - 4
    pos = 1
    last = np.zeros(2, np.int64)
    for i in range(count):
        value, pos = _varint(source, pos, end)
        if pos < 0:
            return False
        baseline = value & 1
        last[baseline] = (last[baseline] + _unzigzag(value >> 1)) & 0xFFFFFFFF
        _write_index(out, i, stride, last[baseline])
    return pos == end


# -- filters, in place ---------------------------------------------------------------------------


def _rounded(values: NDArray[np.floating], dtype: str) -> NDArray[Any]:
    """Nearest integers, halves away from zero; what is no number becomes 0."""
    limits = np.iinfo(dtype)
    whole = np.copysign(np.floor(np.abs(values) + 0.5), values)
    bounded: NDArray[Any] = np.clip(np.nan_to_num(whole, nan=0.0), limits.min, limits.max)
    return bounded.astype(dtype)


def _octahedral(out: Bytes, stride: int) -> None:
    dtype = "<i1" if stride == 4 else "<i2"
    values = out.view(dtype).reshape(-1, 4)
    x, y, one = (values[:, k].astype(np.float32) for k in range(3))
    x, y = x / one, y / one
    z = 1 - np.abs(x) - np.abs(y)
    t = np.minimum(z, 0)
    x, y = x - np.copysign(t, x), y - np.copysign(t, y)
    scale = np.float32(np.iinfo(dtype).max) / np.sqrt(x * x + y * y + z * z)
    values[:, :3] = _rounded(np.stack([x, y, z], axis=1) * scale[:, None], dtype)


def _quaternion(out: Bytes, _: int) -> None:
    values = out.view("<i2").reshape(-1, 4)
    largest = values[:, 3] & 3
    one = (values[:, 3] | 3).astype(np.float32)
    others = values[:, :3].astype(np.float32) / one[:, None] * np.float32(np.sqrt(0.5))
    rest = np.sqrt(np.maximum(0, 1 - (others * others).sum(1)))
    codes = _rounded(np.column_stack([rest, others]) * np.float32(32767), "<i2")
    rows = np.arange(len(values))
    for k in range(4):
        values[rows, (largest + k) % 4] = codes[:, k]


def _exponential(out: Bytes, _: int) -> None:
    codes = out.view("<i4")
    mantissa = (codes << 8) >> 8
    out.view("<f4")[:] = np.ldexp(mantissa.astype(np.float32), codes >> 24)


def _color(out: Bytes, stride: int) -> None:
    dtype = "<u1" if stride == 4 else "<u2"
    values = out.view(dtype).reshape(-1, 4)
    signed = values.view("<i1" if stride == 4 else "<i2").astype(np.int32)
    luma, orange, green = values[:, 0].astype(np.int32), signed[:, 1], signed[:, 2]
    top = values[:, 3].astype(np.int32)
    # All bits below the highest one of alpha, which tells the precision.
    full = np.where(top > 0, (1 << (np.frexp(np.maximum(top, 1))[1])) - 1, 0)
    alpha = top & (full >> 1)
    alpha = (alpha << 1) | (alpha & 1)
    rgba = np.stack([luma + orange - green, luma + green, luma - orange - green, alpha], axis=1)
    scale = np.float32(np.iinfo(dtype).max) / full.astype(np.float32)
    values[:] = _rounded(rgba.astype(np.float32) * scale[:, None], dtype)


# Name to the strides that it is made for (none: any) and what undoes it.
_FILTERS: dict[str, tuple[tuple[int, ...], Callable[[Bytes, int], None]]] = {
    "OCTAHEDRAL": ((4, 8), _octahedral),
    "QUATERNION": ((8,), _quaternion),
    "EXPONENTIAL": ((), _exponential),
    "COLOR": ((4, 8), _color),
}
