"""The members of a large JSON object or list, one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from pipeline.common import InputError

_BLANKS = re.compile(r"[ \t\r\n]+")
_CHUNK = 1 << 20  # characters read at once
_AFTER_NUMBER = frozenset(" \t\r\n,]}")
_MOST = 1 << 28  # characters of one value


def json_items(stream: TextIO, name: str) -> Iterator[tuple[str | None, Any]]:
    """(key, value) of the members of an object, (None, value) of those of a list.

    Holds one value and a buffer of a megabyte. ``name`` begins the message of the ``InputError``
    that is raised for text that is not JSON, ends early, or has neither at its top.
    """
    reader = _Reader(stream, name)
    opening = reader.sign()
    if opening not in ("{", "["):
        raise InputError(f"{name}: neither a JSON object nor a list; check the file")
    closing = "}" if opening == "{" else "]"
    if reader.peek() == closing:
        return
    while True:
        key = None
        if opening == "{":
            key = reader.value()
            if not isinstance(key, str) or reader.sign() != ":":
                raise reader.damaged()
        yield key, reader.value()
        sign = reader.sign()
        if sign == closing:
            return
        if sign != ",":
            raise reader.damaged()


class _Reader:
    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._decoder = json.JSONDecoder()
        self._buffer, self._at, self._ended, self._before = "", 0, False, 0

    def peek(self) -> str:
        """The next sign that is not blank; empty at the end."""
        while True:
            blanks = _BLANKS.match(self._buffer, self._at)
            self._at = blanks.end() if blanks else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def sign(self) -> str:
        """The next sign that is not blank, taken."""
        found = self.peek()
        self._at += len(found)
        return found

    def value(self) -> Any:
        """The next value, taken."""
        self.peek()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._buffer, self._at)
            except RecursionError:
                raise InputError(f"{self._name}: nested too deeply; check the file") from None
            except ValueError as error:
                if not self._more():
                    at = getattr(error, "pos", self._at)
                    early = at >= len(self._buffer) or "Unterminated" in str(error)
                    raise self.damaged(at + 1, early) from None
                continue
            # A number goes on until a sign that is not of it has been read: "1" may be "1.5e3".
            is_number = isinstance(found, int | float) and not isinstance(found, bool)
            if is_number and self._buffer[end : end + 1] not in _AFTER_NUMBER and self._more():
                continue
            self._at = end
            return found

    def damaged(self, place: int | None = None, early: bool = False) -> InputError:
        """The error for what stands at ``place``, or for the sign that was taken last."""
        early = early or (place is None and self._ended and self._at >= len(self._buffer))
        place = self._before + (self._at if place is None else place)
        what = "ends too early" if early else f"not JSON at sign {place}"
        return InputError(f"{self._name}: {what}; fetch or write the file again")

    def _more(self) -> bool:
        """Read on. Keeps what is not yet taken; each time at least as much again is read."""
        if self._ended:
            return False
        left = self._buffer[self._at :]
        if len(left) > _MOST:
            raise InputError(
                f"{self._name}: a value of over {_MOST >> 20} MiB at sign {self._before}, or not "
                "JSON; write it as JSON lines"
            )
        new = self._stream.read(max(_CHUNK, len(left)))
        self._ended = not new
        self._before += self._at
        self._buffer, self._at = left + new, 0
        return bool(new)
