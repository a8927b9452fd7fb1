"""Reading ``.npy`` files that hold pickled dictionaries, without running anything of theirs.

A pickle is a program; ``numpy.load(allow_pickle=True)`` runs it with every function of the
process at its disposal. Here it runs on a machine of our own that knows numbers, text, bytes,
lists, tuples, dictionaries and sets, and numpy arrays, scalars and dtypes (under the names of
numpy 1 and 2) - nothing else. What it asks for besides is refused by name (``UnsafePickleError``).

Memory is bounded by the file: arrays are read-only views of its bytes, claimed lengths are
compared with what is there, memo entries live in a dictionary, keys are plain values, steps are
counted, and whatever is made by copying draws on a budget. Opcodes: those of protocols 2 to 5
that ``numpy.save`` writes (PEP 307, 3154, 574; the standard library's ``pickletools``).
"""

from __future__ import annotations

import enum
import io
import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_STEPS = 200_000  # opcodes of one object of the releases: some thousands
_MAX_HEADER = 10_000  # characters of an .npy header; numpy's own limit
_VIEW_FROM = 4096  # bytes: from here on byte strings are views of the file
_MAX_DIMENSIONS = 32
_MAX_INT_BYTES = 16
_MAX_GLOBAL = 255  # characters of a module's or function's name

_PLAIN_DTYPE = re.compile(r"(b1|[biu][1248]|f[248]|f16|c8|c16|O8?|[SU]\d{1,6})")


class BadPickleError(ValueError):
    """The file is truncated or not what ``numpy.save`` writes."""


class UnsafePickleError(ValueError):
    """The file asks for something that a file of plain values has no use for.

    ``name`` says what, such as ``os.system``.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Global(enum.Enum):
    RECONSTRUCT = enum.auto()
    SCALAR = enum.auto()
    FROM_BUFFER = enum.auto()
    NDARRAY = enum.auto()
    DTYPE = enum.auto()
    ENCODE = enum.auto()
    ORDERED_DICT = enum.auto()
    BYTES = enum.auto()
    SET = enum.auto()


_GLOBALS: dict[tuple[str, str], _Global] = {
    ("numpy", "ndarray"): _Global.NDARRAY,
    ("numpy", "dtype"): _Global.DTYPE,
    ("_codecs", "encode"): _Global.ENCODE,
    ("collections", "OrderedDict"): _Global.ORDERED_DICT,
}
for _module in ("builtins", "__builtin__"):  # how early protocols write empty bytes, and sets
    _GLOBALS[_module, "bytes"] = _Global.BYTES
    _GLOBALS[_module, "set"] = _GLOBALS[_module, "frozenset"] = _Global.SET
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _Global.RECONSTRUCT
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _Global.SCALAR
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _Global.FROM_BUFFER


class _Unbuilt:
    """An array or a dtype between its construction and its state."""

    __slots__ = ("number", "spec")

    def __init__(self, spec: str | None) -> None:
        self.spec = spec  # of a dtype; None: an array
        self.number: int | None = None  # in the memo


def load_npy(data: bytes | bytearray | memoryview, max_steps: int = MAX_STEPS) -> Any:
    """The value in the bytes of an ``.npy`` file: an array, or the object of a 0-d object array.

    Arrays are read-only views of ``data``. Raises ``BadPickleError`` for anything that is not such
    a file and ``UnsafePickleError`` for one that holds more than plain values and arrays.
    """
    view = memoryview(data).toreadonly()
    head = io.BytesIO(bytes(view[: _MAX_HEADER + 16]))
    try:
        version = np.lib.format.read_magic(head)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(head, max_header_size=_MAX_HEADER)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(head, max_header_size=_MAX_HEADER)
        else:
            raise BadPickleError(
                f"version {version[0]}.{version[1]} of the .npy format is not read"
            )
    except BadPickleError:
        raise
    except Exception as error:  # the header is a Python literal: its parser raises many kinds
        raise BadPickleError(f"not an .npy file ({_first_line(error)})") from error
    shape, fortran, dtype = header
    rest = view[head.tell() :]
    if not dtype.hasobject:
        if dtype.kind not in "biufcSU":
            raise UnsafePickleError(f"dtype {dtype}")
        size = _count(shape) * dtype.itemsize
        if len(rest) < size:
            raise BadPickleError(f"truncated: {len(rest)} of {size} bytes")
        return _array(rest[:size], dtype, shape, bool(fortran))
    if dtype.fields is not None or dtype.subdtype is not None:
        raise UnsafePickleError(f"dtype {dtype}")
    value = unpickle(rest, max_steps)
    if not isinstance(value, np.ndarray) or value.shape != shape:
        raise BadPickleError("the pickle is not the array that the header tells of")
    return value.item() if value.shape == () else value


def unpickle(data: bytes | bytearray | memoryview, max_steps: int = MAX_STEPS) -> Any:
    """The value of a pickle of plain values and numpy arrays. Raises as ``load_npy`` does.

    Byte strings of 4 kB and more come as read-only memoryviews.
    """
    machine = _Machine(memoryview(data).toreadonly())
    try:
        return machine.run(max_steps)
    except (BadPickleError, UnsafePickleError):
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        # An empty stack, a memo entry never made, arguments of other kinds.
        raise BadPickleError(f"not a valid pickle ({type(error).__name__})") from error


class _Machine:
    __slots__ = ("at", "budget", "data", "marks", "memo", "stack")

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.budget = (1 << 20) + 16 * len(data)

    def run(self, max_steps: int) -> Any:
        data, handlers = self.data, _HANDLERS
        for _ in range(max_steps):
            if self.at >= len(data):
                raise BadPickleError("truncated")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.pop()
            handler = handlers.get(code)
            if handler is None:
                raise UnsafePickleError(f"opcode {_opcode_name(code)}")
            handler(self)
        raise BadPickleError(f"more than {max_steps} steps")

    def take(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self.data):
            raise BadPickleError("truncated")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise BadPickleError("an opcode reaches beyond a mark")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise BadPickleError("an opcode reaches beyond a mark")
        return self.stack[-1]

    def spend(self, count: int) -> None:
        """Account for memory that is not a view of the file."""
        self.budget -= count
        if self.budget < 0:
            raise BadPickleError("makes far more data than the file holds")

    def line(self) -> str:
        piece = bytes(self.data[self.at : self.at + _MAX_GLOBAL + 1])
        end = piece.find(b"\n")
        if end < 0:
            raise BadPickleError("a name without an end")
        self.at += end + 1
        return piece[:end].decode("utf-8", "backslashreplace")

    # Values

    def push_bytes(self, count: int) -> None:
        piece = self.take(count)
        self.stack.append(piece if count >= _VIEW_FROM else bytes(piece))

    def push_text(self, count: int) -> None:
        self.stack.append(str(self.take(count), "utf-8", "backslashreplace"))

    def push_long(self, count: int) -> None:
        if not 0 <= count <= _MAX_INT_BYTES:
            raise BadPickleError(f"a number of {count} bytes")
        self.stack.append(int.from_bytes(self.take(count), "little", signed=True))

    # Containers

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise BadPickleError("items for something that is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise BadPickleError("items for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_plain(key)] = value

    def pop_pair(self) -> list[Any]:
        value = self.pop()
        return [self.pop(), value]

    def add_items(self) -> None:
        items = self.pop_mark()
        target = self.top()
        if not isinstance(target, set):
            raise BadPickleError("items for something that is no set")
        target.update(_plain(item) for item in items)

    def push_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def push_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_items(items)

    # Functions of numpy, by name

    def push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise BadPickleError("a name that is no text")
        found = _GLOBALS.get((module, name))
        if found is None:
            raise UnsafePickleError(f"{module}.{name}"[:_MAX_GLOBAL])
        self.stack.append(found)

    def stack_global(self) -> None:
        name = self.pop()
        self.push_global(self.pop(), name)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise BadPickleError("a call of something that is no function")
        match function, arguments:
            case _Global.RECONSTRUCT, (_Global.NDARRAY, (0,), bytes() | str()):
                self.stack.append(_Unbuilt(None))
            case _Global.DTYPE, (str() as spec, bool() | int(), bool() | int()):
                if not _PLAIN_DTYPE.fullmatch(spec):
                    raise UnsafePickleError(f"dtype {spec[:40]}")
                self.stack.append(_Unbuilt(spec))
            case _Global.SCALAR, (np.dtype() as dtype, bytes() | memoryview() as raw):
                if dtype.hasobject or len(raw) != dtype.itemsize or not dtype.itemsize:
                    raise BadPickleError("a numpy scalar of another size")
                self.stack.append(np.frombuffer(raw, dtype)[0])
            case _Global.FROM_BUFFER, (
                raw,
                np.dtype() as dtype,
                tuple() as shape,
                ("C" | "F") as o,
            ):
                self.stack.append(_array(raw, dtype, shape, o == "F"))
            case _Global.ENCODE, (str() as text, "latin1" | "latin-1"):
                self.spend(len(text))
                try:
                    self.stack.append(text.encode("latin1"))
                except UnicodeEncodeError as error:
                    raise BadPickleError("text that is not latin1") from error
            case _Global.ORDERED_DICT, ():
                self.stack.append({})
            case _Global.BYTES, ():
                self.stack.append(b"")
            case _Global.SET, (list() as items,):
                self.spend(64 * len(items))
                self.stack.append({_plain(item) for item in items})
            case _:
                raise BadPickleError(f"a call of {function.name.lower()} with other arguments")

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if not isinstance(target, _Unbuilt):
            raise BadPickleError("a state for something that has none")
        value = self._dtype(target.spec, state) if target.spec else self._ndarray(state)
        number = target.number
        if number is not None and self.memo.get(number) is target:
            self.memo[number] = value  # for later references to it
        self.stack.append(value)

    def _dtype(self, spec: str, state: Any) -> np.dtype[Any]:
        match state:
            case (int(), ("<" | ">" | "=" | "|") as order, None, None, None, int(), int(), *_):
                dtype = np.dtype(spec)
                return dtype.newbyteorder(order) if order in "<>" else dtype
        raise UnsafePickleError(f"dtype {spec} with parts")

    def _ndarray(self, state: Any) -> NDArray[Any]:
        match state:
            case (int(), tuple() as shape, np.dtype() as dtype, bool() | int() as fortran, raw):
                if not dtype.hasobject:
                    return _array(raw, dtype, shape, bool(fortran))
                if not isinstance(raw, list) or len(raw) != _count(shape):
                    raise BadPickleError("an object array with another number of items")
                self.spend(8 * len(raw))
                values = np.empty(len(raw), object)
                for place, item in enumerate(raw):
                    values[place] = item
                return values.reshape(shape, order="F" if fortran else "C")
        raise BadPickleError("the state of an array is not as numpy writes it")

    # Memo

    def put(self, number: int) -> None:
        value = self.top()
        if isinstance(value, _Unbuilt):
            value.number = number
        self.memo[number] = value


def _count(shape: Any) -> int:
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MAX_DIMENSIONS
        or any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in shape)
    ):
        raise BadPickleError(f"a shape of {shape!r}"[:80])
    return math.prod(shape)


def _array(raw: Any, dtype: np.dtype[Any], shape: Any, fortran: bool) -> NDArray[Any]:
    """A view of ``raw`` as an array; nothing is allocated that is not there."""
    if not isinstance(raw, bytes | memoryview) or dtype.hasobject:
        raise BadPickleError("an array whose data is not bytes")
    if len(raw) != _count(shape) * dtype.itemsize:
        raise BadPickleError(f"an array of shape {shape} in {len(raw)} bytes"[:120])
    try:
        flat = np.frombuffer(raw, dtype) if len(raw) else np.zeros(0, dtype)
        return flat.reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # no items, but dimensions beyond what numpy counts
        raise BadPickleError(f"an array of shape {shape}"[:120]) from error


def _plain(key: Any) -> Any:
    """A key whose hash costs little: tuples of tuples would cost as much as an attacker likes."""
    if not isinstance(key, str | bytes | int | float | None):
        raise BadPickleError(f"a key of type {type(key).__name__}")
    return key


def _opcode_name(code: int) -> str:
    known = {ord(op.code): op.name for op in pickletools.opcodes}
    return known.get(code, f"0x{code:02x}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


_U1, _U2, _I4, _U4, _U8 = (struct.Struct(form) for form in ("<B", "<H", "<i", "<I", "<Q"))
_F8 = struct.Struct(">d")
_STOP = pickle.STOP[0]

_Handler = Callable[[_Machine], object]
_HANDLERS: dict[int, _Handler] = {
    code[0]: handler
    for code, handler in {
        pickle.PROTO: lambda m: m.take(1),
        pickle.FRAME: lambda m: m.take(8),
        pickle.MARK: lambda m: m.marks.append(len(m.stack)),
        pickle.POP: lambda m: m.pop(),
        pickle.POP_MARK: lambda m: m.pop_mark(),
        pickle.NONE: lambda m: m.stack.append(None),
        pickle.NEWTRUE: lambda m: m.stack.append(True),
        pickle.NEWFALSE: lambda m: m.stack.append(False),
        pickle.BININT: lambda m: m.stack.append(m.number(_I4)),
        pickle.BININT1: lambda m: m.stack.append(m.number(_U1)),
        pickle.BININT2: lambda m: m.stack.append(m.number(_U2)),
        pickle.LONG1: lambda m: m.push_long(m.number(_U1)),
        pickle.LONG4: lambda m: m.push_long(m.number(_I4)),
        pickle.BINFLOAT: lambda m: m.stack.append(m.number(_F8)),
        pickle.SHORT_BINUNICODE: lambda m: m.push_text(m.number(_U1)),
        pickle.BINUNICODE: lambda m: m.push_text(m.number(_U4)),
        pickle.BINUNICODE8: lambda m: m.push_text(m.number(_U8)),
        pickle.SHORT_BINBYTES: lambda m: m.push_bytes(m.number(_U1)),
        pickle.BINBYTES: lambda m: m.push_bytes(m.number(_U4)),
        pickle.BINBYTES8: lambda m: m.push_bytes(m.number(_U8)),
        pickle.BYTEARRAY8: lambda m: m.push_bytes(m.number(_U8)),
        pickle.EMPTY_LIST: lambda m: m.stack.append([]),
        pickle.LIST: lambda m: m.stack.append(m.pop_mark()),
        pickle.APPEND: lambda m: m.append([m.pop()]),
        pickle.APPENDS: lambda m: m.append(m.pop_mark()),
        pickle.EMPTY_TUPLE: lambda m: m.stack.append(()),
        pickle.TUPLE: lambda m: m.stack.append(tuple(m.pop_mark())),
        pickle.TUPLE1: lambda m: m.push_tuple(1),
        pickle.TUPLE2: lambda m: m.push_tuple(2),
        pickle.TUPLE3: lambda m: m.push_tuple(3),
        pickle.EMPTY_DICT: lambda m: m.stack.append({}),
        pickle.DICT: lambda m: m.push_dict(),
        pickle.SETITEM: lambda m: m.set_items(m.pop_pair()),
        pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
        pickle.EMPTY_SET: lambda m: m.stack.append(set()),
        pickle.ADDITEMS: lambda m: m.add_items(),
        pickle.FROZENSET: lambda m: m.stack.append(frozenset(map(_plain, m.pop_mark()))),
        pickle.PUT: lambda m: m.put(int(m.line())),
        pickle.GET: lambda m: m.stack.append(m.memo[int(m.line())]),
        pickle.BINPUT: lambda m: m.put(m.number(_U1)),
        pickle.LONG_BINPUT: lambda m: m.put(m.number(_U4)),
        pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
        pickle.BINGET: lambda m: m.stack.append(m.memo[m.number(_U1)]),
        pickle.LONG_BINGET: lambda m: m.stack.append(m.memo[m.number(_U4)]),
        pickle.GLOBAL: lambda m: m.push_global(m.line(), m.line()),
        pickle.STACK_GLOBAL: lambda m: m.stack_global(),
        pickle.REDUCE: lambda m: m.call(),
        pickle.BUILD: lambda m: m.build(),
    }.items()
}
