"""A shard set made of rows of others: streamed row group by row group, visible as a whole only.

Rows are copied as they are stored, bit for bit, in the order in which they are read. Parts are
named by their number, so that reading the new set gives that order again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.common import InputError, atomic_path, check_new
from pipeline.console import ProgressBar, note
from pipeline.lock import exclusive
from pipeline.shards import (
    Failure,
    ImageSet,
    KeptImages,
    Manifest,
    ShardSet,
    record_contents,
    what_lacks,
    write_failures,
    write_table,
)
from pipeline.shards.manifest import FORMAT, MANIFEST
from pipeline.shards.storage import Storage, is_uri

ROWS_PER_PART = 256
_FAILURES_PER_FILE = 10_000

Mask = NDArray[np.bool_]
# Gets the rows of a row group that are kept and their numbers in the set; gives them changed.
Change = Callable[[pa.Table, NDArray[np.int64]], pa.Table]


@dataclass(frozen=True)
class Written:
    """What a new set holds."""

    rows: int
    parts: int
    failures: int

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def derived(manifest: Manifest, step: dict[str, Any]) -> Manifest:
    """The manifest of a set made from another by ``step``, which is added to its history.

    The history is part of ``dataset``: a run of ``pipeline embed`` must not add to such a set.
    """
    history = [*manifest.dataset.get("derived", []), step]
    return replace(manifest, dataset={**manifest.dataset, "derived": history})


class SetWriter:
    """Gathers rows of other sets and writes them as parts. Use ``new_set``."""

    def __init__(self, root: str | Path, manifest: Manifest, rows_per_part: int) -> None:
        self.root, self.manifest, self.rows_per_part = root, manifest, rows_per_part
        self.rows, self.parts, self.failures = 0, 0, 0
        self._tables: list[pa.Table] = []
        self._kept: list[KeptImages] = []
        self._waiting = 0

    def copy(
        self,
        source: ShardSet,
        bar: ProgressBar,
        keep: Mask | None = None,
        change: Change | None = None,
    ) -> None:
        """Add the rows of ``source`` that ``keep`` (one per row, in reading order) marks."""
        images = ImageSet(source) if self.manifest.kept_images is not None else None
        start = 0
        for group in source.row_groups:
            numbers = np.arange(start, start + group.n_rows)
            start += group.n_rows
            chosen = np.arange(group.n_rows) if keep is None else np.flatnonzero(keep[numbers])
            if len(chosen):
                table = source.table(group)
                if len(chosen) < group.n_rows:
                    table = table.take(pa.array(chosen))
                table = table if change is None else change(table, numbers[chosen])
                kept: list[KeptImages] = []
                if images is not None:
                    batch = images.read(group)
                    kept = [
                        KeptImages(batch.uid[i], batch.views[i], batch.thumbnails[i])
                        for i in chosen
                    ]
                self._add(table, kept)
            bar.advance(group.n_rows)

    def copy_failures(self, failures: Sequence[Failure]) -> None:
        """Add failures."""
        for at in range(0, len(failures), _FAILURES_PER_FILE):
            write_failures(self.root, failures[at : at + _FAILURES_PER_FILE])
        self.failures += len(failures)

    def finish(self) -> Written:
        """Write what waits; what was written in all."""
        self._write(self._waiting)
        record_contents(self.root)
        return Written(self.rows, self.parts, self.failures)

    def _add(self, table: pa.Table, kept: list[KeptImages]) -> None:
        self._tables.append(table.replace_schema_metadata(None))
        self._kept += kept
        self._waiting += table.num_rows
        while self._waiting >= self.rows_per_part:
            self._write(self.rows_per_part)

    def _write(self, count: int) -> None:
        if not count:
            return
        waiting = pa.concat_tables(self._tables)
        kept, self._kept = self._kept[:count], self._kept[count:]
        write_table(
            self.root,
            self.manifest,
            waiting.slice(0, count).combine_chunks(),
            f"{self.parts:06d}",
            None if self.manifest.kept_images is None else kept,
        )
        self._tables = [waiting.slice(count)]
        self._waiting -= count
        self.rows += count
        self.parts += 1


@contextmanager
def new_set(
    out: str | Path,
    manifest: Manifest,
    sources: Sequence[ShardSet],
    *,
    overwrite: bool = False,
    rows_per_part: int = ROWS_PER_PART,
) -> Iterator[SetWriter]:
    """A writer for a set at ``out``, which appears when the block ends and not when it raises.

    A local set is written beside ``out`` and renamed; in a remote store, which cannot rename, the
    manifest comes last, and without one a folder is no shard set.

    Raises ``InputError`` when ``out`` is there (``overwrite`` replaces a local folder), is a file,
    cannot be made, or holds one of the ``sources`` or lies in one.
    """
    storage = Storage.at(out)
    check_out(storage, sources, overwrite)
    for source in sources:
        if lacking := what_lacks(source.storage.root):
            note(lacking)
    if not storage.is_local:
        writer = SetWriter(out, manifest, rows_per_part)
        yield writer
        writer.finish()
        storage.write(MANIFEST, manifest.to_json().encode())
        return
    final = Path(storage.path)
    with ExitStack() as stack:
        if final.is_dir():
            stack.enter_context(exclusive(str(out)))
        folder = stack.enter_context(atomic_path(final))
        folder.mkdir()
        writer = SetWriter(folder, manifest, rows_per_part)
        yield writer
        writer.finish()
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def check_out(storage: Storage, sources: Sequence[ShardSet], overwrite: bool) -> None:
    """Raises ``InputError`` as ``new_set`` does."""
    show = f"--out {storage.root}"
    if not storage.is_local:
        if storage.sizes():
            raise InputError(f"{show}: holds files already; name another, or empty it first")
        return
    out = Path(storage.path)
    for source in sources:
        if source.storage.is_local:
            inner = Path(source.storage.path).resolve()
            if inner == out.resolve():
                raise InputError(f"{show}: is the shard set that is read; name another folder")
            if out.resolve().is_relative_to(inner):
                raise InputError(
                    f"{show}: lies in the shard set {source.storage.root}; name another folder"
                )
            if inner.is_relative_to(out.resolve()):
                raise InputError(
                    f"{show}: holds the shard set {source.storage.root}; name another folder"
                )
    named = out if is_uri(storage.root) else Path(storage.root)
    check_new(named, "--out", overwrite, kind="a shard set", marks=[(MANIFEST, FORMAT)])
