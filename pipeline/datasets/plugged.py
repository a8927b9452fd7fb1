"""Sources outside the package: ``--dataset my_source.py`` names a file with a ``SOURCE``.

The dataset carries the file's text, so that workers on other machines need no copy of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.common import InputError, content_hash
from pipeline.datasets.base import Asset, Dataset, Record
from pipeline.datasets.sources import Source, SourceOptions


@dataclass(frozen=True)
class PluggedDataset:
    """The dataset that the source in a file builds. Equal texts and options give equal objects."""

    file: str  # its name alone
    code: str
    source_options: SourceOptions

    @property
    def name(self) -> str:
        """The source's name."""
        return self._dataset.name

    @property
    def options(self) -> dict[str, Any]:
        """Those of the dataset, and the file that reads it."""
        code = {"file": self.file, "sha256": content_hash(self.code.encode())}
        return {**self._dataset.options, "source_file": code}

    def records(self) -> Iterator[Record]:
        """Those of the dataset."""
        return self._dataset.records()

    def count(self) -> int | None:
        """As the dataset says."""
        return self._dataset.count()

    def load(self, record: Record) -> Asset:
        """As the dataset loads it."""
        return self._dataset.load(record)

    @property
    def _dataset(self) -> Dataset:
        return _built(self.file, self.code, self.source_options)


def read_source(path: Path) -> tuple[Source, str]:
    """The ``SOURCE`` of a file, and the file's text.

    Raises ``InputError`` for a file that is not there, does not run, or has none.
    """
    try:
        code = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--dataset {path}: cannot be read ({error}); check the path") from None
    return _source(path.name, code), code


@lru_cache(maxsize=8)
def _built(file: str, code: str, options: SourceOptions) -> Dataset:
    return _source(file, code).build(options)


@lru_cache(maxsize=8)
def _source(file: str, code: str) -> Source:
    module = ModuleType(f"mrd3d_source_{content_hash(code.encode())[:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(code, file, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"--dataset {file}: does not run ({told}); correct the file") from error
    source = getattr(module, "SOURCE", None)
    if not isinstance(source, Source):
        raise InputError(
            f"--dataset {file}: has no SOURCE of type pipeline.datasets.sources.Source; add one"
        )
    return source
