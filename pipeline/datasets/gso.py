"""Dataset ``gso``: Google Scanned Objects, as unpacked from Gazebo Fuel.

``<name>/meshes/model.obj`` (+z up) with ``meshes/model.mtl``, ``materials/textures/texture.png``,
``thumbnails/<n>.jpg`` and ``metadata.pbtxt``, a message ``gz.msgs.FuelMetadata`` in the text format
of protocol buffers: ``name``, ``description``, ``tags`` and ``categories { first second }``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.datasets.layouts import LayoutDataset, Texts, as_words, make_record, names_in
from pipeline.datasets.sources import Source, SourceOptions
from pipeline.meshes.files import read_file
from pipeline.scene import MeshError

_MESH = "meshes/model.obj"
_METADATA = "metadata.pbtxt"
_METADATA_BYTES = 2**20
_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
    r"|(?P<word>[A-Za-z0-9_.+\-\[\]/]+)|(?P<mark>[{}<>:;,])|(?P<other>.)",
    re.DOTALL,
)
_ESCAPE = re.compile(rb"""\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|[abfnrtv\\'"?])""")
_PLAIN = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f"}
_PLAIN[b"v"] = b"\v"


@dataclass(frozen=True)
class GsoDataset(LayoutDataset):
    """Scans by name. ``uid`` is ``gso/<name>``.

    Texts: the name, the description and the tags of the metadata, and the category, where it has
    one; without the file the name alone.
    """

    NAME: ClassVar[str] = "gso"
    UP: ClassVar[str] = "+z"
    EXPECTED: ClassVar[str] = (
        f"folders <name>/ with {_MESH}, materials/textures/texture.png and {_METADATA}"
    )
    GET: ClassVar[str] = (
        "download the collection Scanned Objects by Google Research of GoogleResearch from "
        "app.gazebosim.org, unzip every model into a folder of its name, and give the folder that "
        "holds them as --root"
    )

    def _objects(self) -> Iterator[Record]:
        found = False
        for name in names_in(self.root):
            folder = self.root / name
            if not (folder / "meshes").is_dir() and not (folder / _METADATA).is_file():
                continue
            found = True
            category, texts = self._told(folder)
            yield make_record(
                self.NAME, name, name, _MESH, category=category, texts=[(name, "name"), *texts]
            )
        if not found:
            raise self._wrong_layout(self.root)

    def _told(self, folder: Path) -> tuple[str, Texts]:
        """The category and the texts of one object's metadata."""
        path = folder / _METADATA
        if not path.exists():
            return "", []
        try:
            fields = read_pbtxt(read_file(path, _METADATA_BYTES, _METADATA).decode())
        except (MeshError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}); fetch the model again") from None
        category = as_words(next(iter(fields.get("categories.first", ())), ""))
        texts: Texts = [(text, "description") for text in fields.get("description", ())]
        texts.append((", ".join(fields.get("tags", ())), "tags"))
        texts.append((category, "category"))
        return category, texts


def read_pbtxt(text: str) -> dict[str, list[str]]:
    """Fields of a text-format protocol buffer by dotted path, scalars as text, in order.

    Raises ``ValueError`` for a text that is not of this form. Extensions and ``Any`` are not read.
    """
    fields: dict[str, list[str]] = {}
    path: list[str] = []
    name = ""
    valued = False  # the field has a value already: what follows is the next field, or more text
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match.group()
        if kind is None:
            continue
        if kind == "other":
            raise ValueError(f"unexpected {token[:1]!r} at character {match.start()}")
        if token in ("{", "<"):
            if not name:
                raise ValueError("a block without a name")
            path.append(name)
            name, valued = "", False
        elif token in ("}", ">"):
            if not path:
                raise ValueError("a block is closed that was not opened")
            path.pop()
            name, valued = "", False
        elif kind == "mark":
            if token == ":" and valued:
                raise ValueError("a field has two values")
        elif kind == "text" and name:
            values = fields.setdefault(".".join([*path, name]), [])
            if valued and values:  # neighbouring texts are one
                values[-1] += _unescape(token)
            else:
                values.append(_unescape(token))
            valued = True
        elif kind == "word" and (valued or not name):
            name, valued = token, False
        elif kind == "word":
            fields.setdefault(".".join([*path, name]), []).append(token)
            valued = True
        else:
            raise ValueError("a text without a field")
    if path:
        raise ValueError("a block is not closed: the file is cut short")
    return fields


def _unescape(quoted: str) -> str:
    """A quoted text as it reads: escapes are those of C, of bytes of UTF-8."""

    def byte(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code[:1] == b"x":
            return bytes([int(code[1:], 16)])
        if code.isdigit():
            return bytes([int(code, 8) & 255])
        return _PLAIN.get(code, code)

    return _ESCAPE.sub(byte, quoted[1:-1].encode()).decode(errors="replace")


def _build(options: SourceOptions) -> GsoDataset:
    assert options.root is not None
    return GsoDataset(options.root, up_axis=options.up_axis or "auto")


SOURCE = Source(
    name="gso",
    summary="Google Scanned Objects: textured scans of household items with names",
    licence="CC BY 4.0",
    size="1,033 scans; 13 GB packed",
    get=GsoDataset.GET,
    layout=GsoDataset.EXPECTED,
    options=("root", "up_axis"),
    required=("root",),
    build=_build,
)
