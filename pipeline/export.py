"""Shard sets in other layouts: .npz files, WebDataset tars, OpenShape's archives.

    npz         shard-00000.npz ...: one array per column, texts of all objects after another.
                With one row per file: <uid>.npz
    webdataset  shard-00000.tar ...: <uid>.xyz.npy, .rgb.npy, .image.npy, .text.npy,
                .thumbnail.npy (where there is one), .json
    openshape   <dataset>/00000.tar.gz with .../<dataset>/<id>.npy, pickled dictionaries with
                OpenShape's keys, and meta_data/: `pipeline import openshape` reads it back

Clouds are float32 in the unit ball, +y up, and keep their farthest-point order; embeddings are
float16 (npz, webdataset) or float32 (openshape), normalised. The folder appears whole or not at
all; one row group at a time is in memory (npz: one file's rows).
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from pipeline.common import InputError, atomic_path, check_new, content_hash
from pipeline.console import ProgressBar, note
from pipeline.imports.exported import COLUMNS, KEY, MANIFEST_FILE, manifest_text, placed_texts
from pipeline.imports.exported import FORMAT as OPENSHAPE
from pipeline.shards import Manifest, Row, ShardSet, what_lacks

FORMATS = ("npz", "webdataset", "openshape")
FORMAT = "mrd3d-exported-shards"  # of manifest.json
_FOLDER = "objaverse-processed/merged_for_training_final"  # as in the release's archives
_LONGEST = 200  # bytes of a part of a uid; file systems take 255, with what follows
_METADATA = (
    "uid", "dataset", "source", "category", "split", "has_color", "sha256", "n_faces",
    "n_vertices", "n_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class ExportSummary:
    """What was written."""

    objects: int
    files: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def export(
    shards: str | Path,
    out: Path,
    layout: str,
    *,
    rows_per_file: int = 1000,
    overwrite: bool = False,
) -> ExportSummary:
    """Write the set at ``shards`` to the local folder ``out`` in one of ``FORMATS``.

    Raises ``InputError`` for an unknown format, an ``out`` that is there (without ``overwrite``, or
    that is no export), is a file or holds the set itself, and damaged sets.
    """
    writers: dict[str, Callable[..., None]] = {
        "npz": _npz,
        "webdataset": _webdataset,
        "openshape": _openshape,
    }
    if layout not in writers:
        raise InputError(f"--format {layout}: use one of {', '.join(FORMATS)}")
    source = ShardSet.open(shards)
    _check_out(source, out, overwrite)
    if lacking := what_lacks(shards):
        note(lacking)
    total = len(source)
    with (
        atomic_path(out) as folder,
        ProgressBar("export", total, "objects") as bar,
    ):
        folder.mkdir()
        # By its format nobody takes it for a shard set, which has no such files in it.
        told = {**json.loads(source.manifest.to_json()), "format": FORMAT}
        (folder / "manifest.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        writers[layout](_rows(source, bar), source.manifest, folder, rows_per_file)
        files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return ExportSummary(total, len(files), sum(files))


def _check_out(source: ShardSet, out: Path, overwrite: bool) -> None:
    if "://" in str(out) or str(out).startswith(("s3:/", "gs:/")):
        raise InputError(f"--out {out}: not a local folder; export to one and copy it")
    if source.storage.is_local:
        inner = Path(source.storage.path).resolve()
        if inner.is_relative_to(out.resolve()):
            raise InputError(f"--out {out}: holds the shard set itself; name another folder")
    marks = [("manifest.json", FORMAT), (f"meta_data/{MANIFEST_FILE}", OPENSHAPE)]
    check_new(out, "--out", overwrite, kind="an exported set", marks=marks)


def _rows(source: ShardSet, bar: ProgressBar) -> Iterator[Row]:
    for group in source.row_groups:
        rows = source.rows(group)
        yield from rows
        bar.advance(len(rows))


def _chunks(rows: Iterator[Row], size: int) -> Iterator[Iterator[Row]]:
    """Consecutive runs of at most ``size`` rows, each to be used up before the next."""
    for first in rows:
        chunk = chain([first], islice(rows, size - 1))
        yield chunk
        for _ in chunk:  # what was not used
            pass


def metadata(row: Row) -> dict[str, Any]:
    """The columns of a row that are no arrays, ready for JSON."""
    values = {name: getattr(row, name) for name in _METADATA}
    return {**values, "texts": list(row.texts), "text_sources": list(row.text_sources)}


def file_key(uid: str) -> str:
    """A uid as a relative path without dots: WebDataset cuts names at the first dot.

    Slashes stay; everything but letters, digits, ``_`` and ``-`` is percent-encoded. What is then
    too long for a file's name is cut, and a hash of the whole put behind it.
    """
    parts = [
        quote(part, safe="").replace(".", "%2E").replace("~", "%7E") for part in uid.split("/")
    ]
    parts = [
        part if len(part) <= _LONGEST else f"{part[:_LONGEST]}-{content_hash(part.encode())[:16]}"
        for part in parts
    ]
    return "/".join(part or "%" for part in parts)  # %: an empty part, which quoting never gives


def _npz(rows: Iterator[Row], manifest: Manifest, folder: Path, per_file: int) -> None:
    del manifest
    for number, chunk in enumerate(_chunks(rows, per_file)):
        if per_file == 1:
            row = next(chunk)
            path = folder / f"{file_key(row.uid)}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            _save_npz(path, [row])
        else:
            _save_npz(folder / f"shard-{number:05d}.npz", list(chunk))


def _save_npz(path: Path, rows: list[Row]) -> None:
    """One file: arrays of B objects; ``text_offsets`` (B + 1,) says whose texts are whose."""

    def stack(name: str) -> NDArray[Any]:
        return np.stack([np.asarray(getattr(row, name)) for row in rows])

    def strings(values: list[Any]) -> NDArray[np.str_]:
        return np.array(["" if value is None else str(value) for value in values], np.str_)

    counts = [len(row.texts) for row in rows]
    arrays: dict[str, NDArray[Any]] = {
        name: strings([getattr(row, name) for row in rows])
        for name in ("uid", "dataset", "source", "category", "split", "sha256")
    }
    arrays |= {
        "xyz": stack("xyz"),
        "rgb": stack("rgb"),
        "has_color": stack("has_color"),
        "image_embeds": stack("image_embeds"),
        "text_embeds": np.concatenate([row.text_embeds for row in rows]),
        "text_offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "texts": strings([text for row in rows for text in row.texts]),
        "text_sources": strings([source for row in rows for source in row.text_sources]),
    }
    if any(row.thumbnail_embed is not None for row in rows):
        none = np.zeros(rows[0].text_embeds.shape[1], np.float16)
        found = [row.thumbnail_embed for row in rows]
        arrays["thumbnail_embeds"] = np.stack([none if f is None else f for f in found])
        arrays["has_thumbnail"] = np.array([f is not None for f in found])
    arrays |= {name: stack(name) for name in ("n_faces", "n_vertices", "n_bytes")}
    # Not numpy.savez: it stamps the entries with the time, so that no two exports are equal.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(array))


def _webdataset(rows: Iterator[Row], manifest: Manifest, folder: Path, per_file: int) -> None:
    del manifest
    for number, chunk in enumerate(_chunks(rows, per_file)):
        with tarfile.open(folder / f"shard-{number:05d}.tar", "w") as archive:
            for row in chunk:
                key = file_key(row.uid)
                arrays: dict[str, NDArray[Any]] = {
                    "xyz": row.xyz,
                    "rgb": row.rgb,
                    "text": row.text_embeds,
                }
                if len(row.image_embeds):
                    arrays["image"] = row.image_embeds
                if row.thumbnail_embed is not None:
                    arrays["thumbnail"] = row.thumbnail_embed
                for name, array in arrays.items():
                    _add(archive, f"{key}.{name}.npy", _npy(array))
                text = json.dumps(metadata(row), ensure_ascii=False)
                _add(archive, f"{key}.json", text.encode())


def _openshape(rows: Iterator[Row], manifest: Manifest, folder: Path, per_file: int) -> None:
    meta = folder / "meta_data"
    (meta / "split").mkdir(parents=True)
    (meta / MANIFEST_FILE).write_text(manifest_text(manifest))
    (folder / "manifest.json").unlink()
    with ExitStack() as stack:
        lists = {name: _JsonList(stack, meta / "split" / f"{name}.json") for name in _LISTS}
        # One archive is open at a time for each dataset; a set may mix them.
        archives: dict[str, _Archives] = {}
        for row in rows:
            dataset = file_key(row.dataset).replace("/", "%2F") or "%"
            name = file_key(row.uid.removeprefix(f"{row.dataset}/")).replace("/", "%2F")
            if dataset not in archives:
                archives[dataset] = stack.enter_context(_Archives(folder / dataset, per_file))
            group, archive = archives[dataset].next()
            path = f"{_FOLDER}/{dataset}/{group}/{name}.npy"
            _add(archive, path, _npy(np.array(_openshape_object(row, dataset, group, name))))
            entry = {"dataset": dataset, "group": group, "id": name, "data_path": path}
            if row.split in (None, "train"):
                lists["train_all"].add(entry)
            if row.category is not None:
                del entry["id"]
                lists["lvis"].add({"uid": name, **entry, "category": row.category})


_LISTS = ("train_all", "lvis")


def _openshape_object(row: Row, dataset: str, group: str, name: str) -> dict[str, Any]:
    texts, places = placed_texts(row.texts, row.text_sources, np.asarray(row.text_embeds))
    own = {column: getattr(row, column) for column in COLUMNS}
    thumbnail = row.thumbnail_embed
    return {
        "dataset": dataset,
        "group": group,
        "id": name,
        "xyz": np.asarray(row.xyz, np.float32),
        "rgb": np.asarray(row.rgb, np.float32) / np.float32(255),
        "image_feat": np.asarray(row.image_embeds, np.float32),
        "thumbnail_feat": None if thumbnail is None else np.asarray(thumbnail, np.float32)[None],
        **texts,
        KEY: {**own, "texts": places},
    }


class _Archives:
    """The .tar.gz files of one dataset, of ``per_file`` objects each, one after another."""

    def __init__(self, folder: Path, per_file: int) -> None:
        folder.mkdir(parents=True)
        self._folder, self._per_file = folder, per_file
        self._count = 0
        self._stack = ExitStack()
        self._open: tarfile.TarFile | None = None

    def __enter__(self) -> _Archives:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def next(self) -> tuple[str, tarfile.TarFile]:
        """Group and archive of the next object."""
        number, within = divmod(self._count, self._per_file)
        group = f"{number:05d}"
        self._count += 1
        if within == 0 or self._open is None:
            self._stack.close()
            path = self._folder / f"{group}.tar.gz"
            file = self._stack.enter_context(path.open("wb"))
            # Level 1: embeddings hardly shrink, and more costs five times the time. No time
            # stamp and no name, so that equal sets give equal files.
            zipped = self._stack.enter_context(gzip.GzipFile("", "wb", 1, file, mtime=0))
            archive = tarfile.TarFile(fileobj=zipped, mode="w")
            self._open = self._stack.enter_context(archive)
        return group, self._open


class _JsonList:
    """A list in a JSON file, written item by item."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self._file: IO[str] = stack.enter_context(path.open("w", encoding="utf-8"))
        self._file.write("[")
        self._first = True
        stack.callback(self._file.write, "]\n")

    def add(self, item: dict[str, Any]) -> None:
        """Append one item."""
        self._file.write("" if self._first else ",\n")
        self._first = False
        json.dump(item, self._file, ensure_ascii=False)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=array.dtype == object)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
