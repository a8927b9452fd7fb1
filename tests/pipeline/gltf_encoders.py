"""Encoders of what glTF files hold compressed, for the tests of the decoders.

They make valid streams, not small ones, and take every freedom that the format leaves from a random
generator. Written after the specifications, without regard to how the decoders go about it.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

# -- meshopt -------------------------------------------------------------------------------------


def _zigzag(delta: int, bits: int) -> int:
    delta &= (1 << bits) - 1
    sign = -(delta >> (bits - 1)) & ((1 << bits) - 1)
    return ((delta << 1) & ((1 << bits) - 1)) ^ sign


def _packed(deltas: list[int], width: int) -> bytes:
    """16 deltas in ``width`` bits each, sentinels for those that do not fit."""
    if width == 8:
        return bytes(deltas)
    sentinel = (1 << width) - 1
    small = [min(delta, sentinel) for delta in deltas]
    per_byte = 8 // width
    head = []
    for start in range(0, 16, per_byte):
        row = small[start : start + per_byte]
        if width > 1:  # the first delta lies in the top bits, single bits the other way round
            row = row[::-1]
        head.append(sum(value << (width * place) for place, value in enumerate(row)))
    return bytes(head) + bytes(delta for delta in deltas if delta >= sentinel)


def meshopt_attributes(rows: NDArray[Any], version: int, rng: np.random.Generator) -> bytes:
    """Mode ATTRIBUTES of the bytes of ``rows`` (count, ...)."""
    count = len(rows)
    stride = rows.itemsize * int(np.prod(rows.shape[1:]))
    table = np.frombuffer(rows.tobytes(), np.uint8).reshape(count, stride).astype(int)
    baseline = rng.integers(0, 256, stride) if count else np.zeros(stride, int)
    kinds = rng.integers(0, 3, stride // 4) if version else np.zeros(stride // 4, int)
    turns = np.where(kinds == 2, rng.integers(0, 16, stride // 4), 0)
    before = np.concatenate([baseline[None], table])[:-1] if count else table
    deltas = np.zeros_like(table)
    for k in range(0, stride, 4):
        kind, turn = kinds[k // 4], int(turns[k // 4])
        for i in range(count):
            new, old = table[i, k : k + 4], before[i, k : k + 4]
            if kind == 0:
                deltas[i, k : k + 4] = [
                    _zigzag(int(n - o), 8) for n, o in zip(new, old, strict=True)
                ]
            elif kind == 1:
                for j in (0, 2):
                    value = int(new[j] - old[j] + 256 * (new[j + 1] - old[j + 1]))
                    value = _zigzag(value, 16)
                    deltas[i, k + j], deltas[i, k + j + 1] = value & 255, value >> 8
            else:
                value = int.from_bytes(bytes((new ^ old).tolist()), "little")
                value = (value << turn | value >> (32 - turn)) & 0xFFFFFFFF
                deltas[i, k : k + 4] = list(value.to_bytes(4, "little"))
    out = bytes([0xA0 | version])
    most = min((8192 // stride) & ~15, 256)
    for start in range(0, count, most):
        block = deltas[start : start + most]
        controls, body = [], b""
        for k in range(stride):
            column = [int(value) for value in block[:, k]]
            control = int(rng.integers(0, 4))
            if not version:
                widths = [0, 2, 4, 8]
            elif control == 2 and any(column):
                control = 3
            if version:
                widths = [[0, 1, 2, 4], [1, 2, 4, 8]][control] if control < 2 else []
            controls.append(control)
            if version and control == 2:
                continue
            if version and control == 3:
                body += bytes(column)
                continue
            column += [0] * (-len(column) % 16)
            header, data = [], b""
            for group in range(0, len(column), 16):
                sixteen = column[group : group + 16]
                choice = int(rng.integers(0, 4))
                if widths[choice] == 0 and any(sixteen):
                    choice = 3
                header.append(choice)
                data += _packed(sixteen, widths[choice]) if widths[choice] else b""
            header += [0] * (-len(header) % 4)
            body += bytes(
                sum(bits << (2 * place) for place, bits in enumerate(header[at : at + 4]))
                for at in range(0, len(header), 4)
            )
            body += data
        if version:
            out += bytes(
                sum(bits << (2 * place) for place, bits in enumerate(controls[at : at + 4]))
                for at in range(0, stride, 4)
            )
        out += body
    tail = bytes(baseline.tolist())
    if version:
        tail += bytes((kinds | turns << 4).tolist())
    return out + b"\0" * max(0, (24 if version else 32) - len(tail)) + tail


def _leb(value: int) -> bytes:
    value &= 0xFFFFFFFF
    out = []
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def meshopt_indices(indices: NDArray[np.integer], rng: np.random.Generator) -> bytes:
    """Mode INDICES."""
    last = [0, 0]
    out = b"\xd1"
    for value in indices.ravel().tolist():
        baseline = int(rng.integers(0, 2))
        out += _leb(_zigzag(value - last[baseline], 31) << 1 | baseline)
        last[baseline] = value
    return out + b"\0" * 4


def meshopt_triangles(faces: NDArray[np.integer]) -> tuple[bytes, NDArray[np.uint32]]:
    """Mode TRIANGLES, and the faces as they come out: their corners may be turned."""
    codes, data, table = b"", b"", [0x00, 0x01, 0x10, 0x21, *[0] * 12]
    edges: list[tuple[int, int]] = []
    vertices: list[int] = []
    out: list[tuple[int, int, int]] = []
    following = last = 0
    for a, b, c in faces.tolist():
        recent_edges = edges[:-16:-1]
        turned = [
            (recent_edges.index((p, q)), p, q, r)
            for p, q, r in ((a, b, c), (b, c, a), (c, a, b))
            if (p, q) in recent_edges
        ]
        recent = vertices[::-1]
        if turned:
            back, a, b, c = turned[0]
            fresh = True
            if c == following:
                low, following = 0, following + 1
            elif c in recent[1:13]:
                low, fresh = 1 + recent[1:13].index(c), False
            elif c in (last - 1, last + 1):
                low, last = (13 if c == last - 1 else 14), c
            else:
                low, last, data = 15, c, data + _leb(_zigzag(c - last, 32))
            codes += bytes([back << 4 | low])
            vertices += [c] if fresh else []
        else:
            explicit = b""
            is_next = a == following
            if is_next:
                following += 1
            else:
                explicit, last = _leb(_zigzag(a - last, 32)), a
            marks: list[int] = []
            for corner in (b, c):
                # 0x00 after an explicit corner would start the count of new vertices again.
                if corner == following and (is_next or marks):
                    marks.append(0)
                    following += 1
                elif corner in recent[:14]:
                    marks.append(1 + recent[:14].index(corner))
                else:
                    marks.append(15)
                    explicit, last = explicit + _leb(_zigzag(corner - last, 32)), corner
            mark = marks[0] << 4 | marks[1]
            if is_next and mark in table[:4]:
                codes += bytes([0xF0 | table.index(mark)])
            else:
                codes += b"\xfe" if is_next else b"\xff"
                data += bytes([mark]) + explicit
            edges.append((b, a))
            vertices += [a, *(v for v, m in zip((b, c), marks, strict=True) if m in (0, 15))]
        edges += [(c, b), (a, c)]
        out.append((a, b, c))
    return b"\xe1" + codes + data + bytes(table), np.array(out, np.uint32).reshape(-1, 3)


# -- KTX 2 ---------------------------------------------------------------------------------------


def ktx2_uastc(blocks: NDArray[np.uint8], **header: int) -> bytes:
    """A KTX 2 image in UASTC of 4 x 4 pixel blocks of one colour each, (rows, columns, 4) RGBA.

    ``header`` overrides fields of the header.
    """
    rows, columns = blocks.shape[:2]
    payload = b""
    for color in blocks.reshape(-1, 4).tolist():
        # Mode 8, one colour: 5 bits of mode, then 8 bits each of R, G, B and A, from the lowest bit
        # up (Khronos Data Format Specification, UASTC). The hints that follow stay 0.
        bits = 0b10111
        for place, value in enumerate(color):
            bits |= value << (5 + 8 * place)
        payload += bits.to_bytes(16, "little")
    # A basic data format descriptor: model UASTC (166), sRGB transfer, 4 x 4 blocks of 16 bytes.
    sample = struct.pack("<HBB4BII", 0, 127, 3, 0, 0, 0, 0, 0, 0xFFFFFFFF)
    block = struct.pack("<HHHHBBBB4B8B", 0, 0, 2, 40, 166, 1, 2, 0, 3, 3, 0, 0, 16, *[0] * 7)
    descriptor = struct.pack("<I", 4 + 40) + block + sample
    fields = {
        "vk_format": 0,
        "type_size": 1,
        "width": 4 * columns,
        "height": 4 * rows,
        "depth": 0,
        "layers": 0,
        "faces": 1,
        "levels": 1,
        "scheme": 0,
    }
    fields |= {name: value for name, value in header.items() if name in fields}
    start = 12 + 68 + 24
    offset = start + len(descriptor) + (-(start + len(descriptor)) % 16)
    level = (
        header.get("offset", offset),
        header.get("length", len(payload)),
        header.get("unpacked", len(payload)),
    )
    head = b"\xabKTX 20\xbb\r\n\x1a\n" + struct.pack("<9I", *fields.values())
    head += struct.pack("<4I2Q", start, len(descriptor), 0, 0, 0, 0) + struct.pack("<3Q", *level)
    return (head + descriptor).ljust(offset, b"\0") + payload
