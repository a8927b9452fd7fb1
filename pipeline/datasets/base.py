"""The protocol that every source of objects follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.scene import Cloud, Mesh


@dataclass(frozen=True)
class Record:
    """One object before it is fetched: light, picklable, made lazily.

    ``texts`` and ``text_sources`` run in parallel: the raw captions, uncleaned, and where each
    came from (``name``, ``tags``, ``caption``, ``template`` ...). ``key`` is what the dataset
    needs to fetch the object on any worker (a path, an index).
    """

    uid: str  # "dataset/native-id", unique in the set
    dataset: str
    source: str  # path or URL relative to the source's root
    key: str
    category: str | None = None
    split: str | None = None
    texts: tuple[str, ...] = ()
    text_sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asset:
    """One fetched object: its mesh (+y up, normalised) and its provenance.

    Where the source has points only, ``cloud`` holds them, and ``mesh`` is what is drawn of them
    (see ``pipeline.clouds``).
    """

    mesh: Mesh
    sha256: str  # of the file's bytes, or of the generating parameters
    n_bytes: int  # of the file; 0 for generated objects
    cloud: Cloud | None = None


class Dataset(Protocol):
    """A source of objects. Instances are picklable and hold options only, never data."""

    @property
    def name(self) -> str:
        """Short name, the first part of every uid."""

    @property
    def options(self) -> dict[str, Any]:
        """JSON-ready options for the manifest; equal options give equal objects."""

    def records(self) -> Iterator[Record]:
        """All records, lazily, in a fixed order, with unique uids.

        Raises ``pipeline.common.InputError`` when the source is not there or not readable.
        """

    def count(self) -> int | None:
        """How many records there are, when that is known without listing them all."""

    def load(self, record: Record) -> Asset:
        """Fetch one object. Raises ``pipeline.scene.MeshError`` when it cannot become a row."""
