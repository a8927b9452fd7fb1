"""What the generators of hostile files share: cases, seeded mutation of JSON, text and bytes."""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Files = dict[str, bytes]
Content = bytes | str | Callable[[], bytes | str]  # large ones are made when they are asked for
Kind = Literal["mesh", "cloud", "table", "captions"]


@dataclass(frozen=True)
class World:
    """What hostile references may point to: canaries that nothing may touch."""

    outside: str  # a folder with secret.png, secret.mtl ... that is above every asset
    port: int  # of a local server that counts connections


@dataclass(frozen=True)
class Case:
    """One hostile file, made when it is asked for.

    ``build`` yields files by name relative to the asset's folder; the first one is loaded. A value
    that begins with ``LINK`` is a symbolic link to what follows.
    """

    name: str
    kind: Kind
    build: Callable[[World], Files]


LINK = b"\0link:"


def rng_of(name: str) -> np.random.Generator:
    """A generator of its own for every case: cases can be left out without changing others."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def fixed(name: str, kind: Kind, file: str, content: Content, **others: Content) -> Case:
    """A case whose content does not depend on the world; ``a_png`` of ``others`` is a.png."""

    def build(_: World) -> Files:
        named = {file: content} | {key.replace("_", "."): value for key, value in others.items()}
        return {key: _encoded(value) for key, value in named.items()}

    return Case(name, kind, build)


def placed(name: str, kind: Kind, make: Callable[..., Files], *arguments: Any) -> Case:
    """A case of the files that ``make(world, *arguments)`` gives."""
    return Case(name, kind, lambda world: make(world, *arguments))


def _encoded(content: Content) -> bytes:
    value = content() if callable(content) else content
    return value.encode() if isinstance(value, str) else value


# --- JSON -------------------------------------------------------------------------------------

HOSTILE_VALUES: tuple[Any, ...] = (
    -1, 0, 1, 7, 255, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**53 + 1, 10**30, -(2**63), 0.5,
    1e308, -1e308, float("nan"), float("inf"), True, None, "", "x", "0", "../secret.bin",
    "\ud800", "x" * 5000, [], [0], [[]], [-1], [None], [10**12], ["x"], [1e300] * 16, {}, {"": 0},
    {"buffer": 0},
)  # fmt: skip


def paths_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a JSON document, the document itself left out."""
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:6]))
    for key, item in items:
        yield (*at, key)
        yield from paths_of(item, (*at, key))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    changed = copy.deepcopy(document)
    owner = changed
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = copy.deepcopy(value)
    return changed


def without(document: Any, path: tuple[Any, ...]) -> Any:
    """A copy without a place."""
    changed = copy.deepcopy(document)
    owner = changed
    for key in path[:-1]:
        owner = owner[key]
    del owner[path[-1]]
    return changed


def json_mutations(document: Any, name: str, count: int) -> Iterator[tuple[str, Any]]:
    """``count`` documents in which one value is hostile or missing, or two are exchanged."""
    rng = rng_of(name)
    places = list(paths_of(document))
    seen: set[tuple[int, int]] = set()
    while len(seen) < count:
        at, how = int(rng.integers(len(places))), int(rng.integers(len(HOSTILE_VALUES) + 4))
        if (at, how) in seen:
            continue
        seen.add((at, how))
        path = places[at]
        told = ".".join(map(str, path))
        if how < len(HOSTILE_VALUES):
            value = HOSTILE_VALUES[how]
            yield f"{told}={str(value)[:16]!r}", with_value(document, path, value)
        elif how == len(HOSTILE_VALUES):
            yield f"{told} missing", without(document, path)
        else:
            other = places[int(rng.integers(len(places)))]
            value = document
            for key in other:
                value = value[key]
            told = f"{told} from {'.'.join(map(str, other))} ({how})"
            yield told, with_value(document, path, value)


# --- text and bytes ---------------------------------------------------------------------------

HOSTILE_WORDS: tuple[bytes, ...] = (
    b"nan", b"-inf", b"inf", b"-1", b"0", b"1e400", b"1e308", b"-1e-320", b"4294967296",
    b"2147483648", b"99999999999999999999", b"9" * 5000, b"-9999999", b"", b"x", b"0x10", b"1_0",
    b"1,5", b"\xff\xfe", b"%s%n", b"a" * 100_000, b"\0", b"1 2 3 4 5 6 7 8 9", b"\n", b"#", b"/",
    b"1/2/3/4", b"\xd9\xa3",
)  # fmt: skip


def word_mutations(data: bytes, name: str, count: int) -> Iterator[tuple[str, bytes]]:
    """``count`` texts in which words are hostile, missing or doubled, or lines moved."""
    rng = rng_of(name)
    lines = data.split(b"\n")
    for turn in range(count):
        changed = [line.split(b" ") for line in lines]
        how = turn % 8
        for _ in range(1 + turn % 3):
            line = changed[int(rng.integers(len(changed)))]
            if not line:
                continue
            at = int(rng.integers(len(line)))
            if how < 5:
                word = HOSTILE_WORDS[int(rng.integers(len(HOSTILE_WORDS)))]
                line[at] = word
            elif how == 5:
                del line[at]
            elif how == 6:
                line.insert(at, line[at])
            else:
                changed.append(changed.pop(int(rng.integers(len(changed)))))
        yield f"words {turn}", b"\n".join(b" ".join(line) for line in changed)


def byte_mutations(data: bytes, name: str, count: int) -> Iterator[tuple[str, bytes]]:
    """``count`` variants of bytes: cut, changed, with extreme numbers, pieces doubled or zeroed."""
    rng = rng_of(name)
    size = len(data)
    extremes = (0, 1, 127, 128, 255, 256, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)
    for turn in range(count):
        broken = bytearray(data)
        # Headers hold what matters: half of the changes go there.
        place = int(rng.integers(min(size, 160) if turn % 2 else size))
        how = turn % 7
        if how == 0:
            broken = broken[:place]
        elif how in (1, 2):
            for _ in range(1 + turn % 4):
                broken[int(rng.integers(min(size, 160) if turn % 2 else size))] = int(
                    rng.integers(256)
                )
        elif how == 3:
            form = "<I" if turn % 3 else ">I"
            value = extremes[int(rng.integers(len(extremes)))]
            broken[place : place + 4] = struct.pack(form, value)
        elif how == 4:
            broken[place : place + 8] = struct.pack("<q", [-1, 2**62, 0, 2**40][turn % 4])
        elif how == 5:
            length = int(rng.integers(1, 64))
            broken[place:place] = broken[place : place + length] * int(rng.integers(1, 50))
        else:
            length = int(rng.integers(1, 64))
            broken[place : place + length] = (b"\0", b"\xff")[turn % 2] * length
        yield f"bytes {turn}", bytes(broken)
