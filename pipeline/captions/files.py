"""Caption files: which object each text is for, from CSV, JSON, JSON lines and Parquet.

What is read, by suffix (each also with ``.gz``, Parquet aside):

- ``.csv``, ``.tsv`` with a header: columns recognised by name as in ``pipeline.datasets.tables``,
  and those of ``TEXT_KEYS``; without a header, as Cap3D is released: the identifier first, the
  text last (its ABO file has the kind of caption between them);
- ``.parquet``: the same columns;
- ``.json``: an object from identifier to text, list of texts, or record; or a list of records;
- ``.jsonl``, ``.ndjson``: one record per line.

A record is an object with an identifier and texts: plain ones, lists, the answers of Azure's image
analysis (``description.captions[].text``, ``captionResult.text``), of ``transformers``
(``generated_text``), and the fields of OpenShape's objects (``blip_caption``, ``msft_caption``,
``retrieval_text``), which say their own source.

Everything streams: of a JSON file one value at a time is held, of Parquet one batch of rows.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pipeline.captions.json_stream import json_items
from pipeline.common import InputError, file_hash
from pipeline.datasets.tables import (
    FIELD_LIMIT,
    ROLES,
    cell_texts,
    parquet_names,
    parquet_rows,
)

# Keys and columns of texts -> their source; None: of the file's own source ("caption" if unsaid).
TEXT_KEYS: dict[str, str | None] = {
    **dict.fromkeys(ROLES["caption"]),
    **dict.fromkeys(("generated_text", "captionresult", "prompt")),
    **dict.fromkeys(("blip_caption", "blip"), "blip"),
    **dict.fromkeys(("blip2_caption", "blip2"), "blip2"),
    **dict.fromkeys(("msft_caption", "azure_caption", "azure"), "azure"),
    **dict.fromkeys(
        ("retrieval_text", "retrieval_texts", "retrieved", "retrieved_texts"), "retrieved"
    ),
    "cap3d": "cap3d",
    "3dtopia": "3dtopia",
    **dict.fromkeys(ROLES["name"], "name"),
    **dict.fromkeys(ROLES["tags"], "tags"),
}
ID_KEYS = (
    *(*ROLES["id"], "obj_id", *ROLES["path"]),
    *("u", "key", "image", "image_id", "image_path", "name"),
)
_NESTED = ("captions", "caption", "text", "values", "generated_text", "description")
_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
_SOURCE = re.compile(r"([A-Za-z][A-Za-z0-9_-]{0,31})=(.+)", re.DOTALL)
_PROBE = 1 << 20  # characters of a first line
_LONGEST = 1 << 26  # characters of a line: a small .gz may unfold to one without end

Entry = tuple[str, str, str]  # identifier, source, raw text


@dataclass(frozen=True)
class CaptionFile:
    """A caption file and the source that its texts get; None: what the file says, or "caption"."""

    path: Path
    source: str | None = None

    def to_json(self) -> dict[str, Any]:
        """File name, source and hash. Raises ``InputError`` where it cannot be read."""
        try:
            digest = file_hash(self.path)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        return {"file": self.path.name, "source": self.source, "sha256": digest}

    def entries(self) -> Iterator[Entry]:
        """(identifier, source, raw text), as they stand in the file.

        Raises ``InputError`` where it cannot be read, is damaged, or says nothing that is
        understood.
        """
        found = False
        for key, source, text in _entries(self.path):
            override = self.source if source not in ("name", "tags") else None
            found = True
            yield key, override or source or "caption", text
        if not found:
            raise InputError(f"--captions {self.path}: holds no captions; give a file that does")


def parse_caption_file(spec: str) -> CaptionFile:
    """``FILE`` or ``SOURCE=FILE`` of ``--captions``.

    Raises ``InputError`` for a file that is not there or of an unknown kind.
    """
    path, source = Path(spec).expanduser(), None
    match = _SOURCE.fullmatch(spec)
    if match and not path.is_file():
        path, source = Path(match[2]).expanduser(), match[1].lower()
    if not path.is_file():
        raise InputError(f"--captions {spec}: {path} is not a file; give FILE or SOURCE=FILE")
    if _kind(path) not in _FORMATS:
        raise InputError(
            f"--captions {spec}: not a kind of file that is read; use {', '.join(_FORMATS)}"
        )
    return CaptionFile(path, source)


def _kind(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return "." + name.rpartition(".")[2]


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"--captions {path}: cannot be read ({error.strerror or error}); check the file"
    )


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The file as text, and what goes wrong while it is read as ``InputError``."""
    try:
        with (
            gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as raw,
            io.TextIOWrapper(raw, "utf-8-sig", newline="") as stream,
        ):
            yield stream
    except UnicodeDecodeError as error:
        raise InputError(
            f"--captions {path}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except (csv.Error, EOFError, zlib.error) as error:
        raise InputError(f"--captions {path}: damaged ({error}); fetch or write it again") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _entries(path: Path) -> Iterator[tuple[str, str | None, str]]:
    kind = _kind(path)
    if kind == ".parquet":
        yield from _parquet_entries(path)
        return
    with _opened(path) as stream:
        if kind in (".csv", ".tsv"):
            yield from _csv_entries(path, stream, "\t" if kind == ".tsv" else ",")
        elif kind == ".json" and not _is_lines(path):
            yield from _json_entries(path, stream)
        else:
            yield from _line_entries(path, stream)


def _lines(path: Path, stream: TextIO) -> Iterator[str]:
    while line := stream.readline(_LONGEST + 1):
        if len(line) > _LONGEST:
            raise InputError(
                f"--captions {path}: a line of over {_LONGEST >> 20} MiB; write one text a line"
            )
        yield line


def _csv_entries(
    path: Path, stream: TextIO, delimiter: str
) -> Iterator[tuple[str, str | None, str]]:
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(_lines(path, stream), delimiter=delimiter)
    header: list[str] | None = None
    for index, row in enumerate(reader):
        if index == 0:
            names = [cell.strip().lower() for cell in row]
            if _key_column(names) is not None and any(name in TEXT_KEYS for name in names):
                _check_columns(path, names)
                header = names
                continue
            if len(row) < 2:
                raise InputError(
                    f"--captions {path}: one column only; give a uid and a text, "
                    "with a comma between them"
                )
        if header is not None:
            yield from _record_entries(dict(zip(header, row, strict=False)))
        elif len(row) > 1 and row[0].strip():
            yield row[0].strip(), None, row[-1]


def _parquet_entries(path: Path) -> Iterator[tuple[str, str | None, str]]:
    try:
        names = parquet_names(path)
        _check_columns(path, [name.lower() for name in names])
        wanted = [name for name in names if name.lower() in TEXT_KEYS or name.lower() in ID_KEYS]
        for row in parquet_rows(path, wanted):
            yield from _record_entries({key.lower(): value for key, value in row.items()})
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith("--captions") else f"--captions {text}") from None


def _check_columns(path: Path, names: list[str]) -> None:
    key = _key_column(names)
    if key is None or not any(name in TEXT_KEYS for name in names if name != key):
        raise InputError(
            f"--captions {path}: columns {', '.join(names)[:200]}: name one 'uid' (or 'path') and "
            "one 'caption'"
        )


def _key_column(names: Iterable[str]) -> str | None:
    present = set(names)
    return next((name for name in ID_KEYS if name in present), None)


def _json_entries(path: Path, stream: TextIO) -> Iterator[tuple[str, str | None, str]]:
    for key, value in json_items(stream, f"--captions {path}"):
        if key is not None:
            for source, text in _texts_of(value, None):
                yield key, source, text
        elif isinstance(value, dict):
            yield from _record_entries({str(k).lower(): v for k, v in value.items()})
        elif isinstance(value, list) and len(value) >= 2 and isinstance(value[0], str):
            for source, text in _texts_of(value[1:], None):  # [uid, text]
                yield value[0], source, text


def _line_entries(path: Path, stream: TextIO) -> Iterator[tuple[str, str | None, str]]:
    for number, line in enumerate(_lines(path, stream), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"--captions {path}, line {number}: not JSON ({error}); fetch or write it again"
            ) from None
        if isinstance(value, dict):
            lowered = {str(k).lower(): v for k, v in value.items()}
            if _key_column(lowered) is None and len(value) == 1:  # {uid: text}
                key, said = next(iter(value.items()))
                for source, text in _texts_of(said, None):
                    yield str(key), source, text
            else:
                yield from _record_entries(lowered)
        elif isinstance(value, list) and len(value) >= 2 and isinstance(value[0], str):
            for source, text in _texts_of(value[1:], None):
                yield value[0], source, text


def _is_lines(path: Path) -> bool:
    """Whether a ``.json`` file holds one object per line, as some are released."""
    with _opened(path) as stream:
        first = stream.readline(_PROBE).strip()
        second = stream.readline(_PROBE).strip()
    if not (first.startswith("{") and second.startswith("{")):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _record_entries(record: dict[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    """Entries of a record with lower-case keys; none where it has no identifier."""
    key = next((name for name in ID_KEYS if _identifier(record.get(name))), None)
    if key is None:
        return
    identifier = _identifier(record[key])
    for name, source in TEXT_KEYS.items():
        if name == key or name not in record:
            continue
        if source == "tags":
            tags = [text for _, text in _texts_of(record[name], None)]
            if tags:
                yield identifier, "tags", ", ".join(tags)
            continue
        for own, text in _texts_of(record[name], source):
            yield identifier, own, text


def _identifier(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value).strip()


def _texts_of(value: Any, source: str | None, depth: int = 0) -> Iterator[tuple[str | None, str]]:
    """(source, text) of a value: a text, a list, or an object with texts somewhere in it."""
    if depth > 4 or value is None or isinstance(value, bool | int | float):
        return
    if isinstance(value, str):
        for text in _cell(value):
            yield source, text
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_of(item, source, depth + 1)
    elif isinstance(value, dict):
        lowered = {str(k).lower(): v for k, v in value.items()}
        if source is None and any(name in lowered for name in TEXT_KEYS):
            for name, own in TEXT_KEYS.items():
                if name in lowered:
                    yield from _tagged(lowered[name], own, depth)
            return
        for name in _NESTED:
            if name in lowered:
                yield from _texts_of(lowered[name], source, depth + 1)
                return


def _tagged(value: Any, source: str | None, depth: int) -> Iterator[tuple[str | None, str]]:
    found = list(_texts_of(value, source, depth + 1))
    if source == "tags" and found:
        yield source, ", ".join(text for _, text in found)
    else:
        yield from found


def _cell(value: str) -> list[str]:
    """A text, or the texts of a list written as text: JSON's way, or Python's."""
    if value.lstrip().startswith("['") or value.lstrip().startswith('["'):
        try:
            listed = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return cell_texts(value)
        return [str(item) for item in listed if item]
    return [value] if value.strip() else []
