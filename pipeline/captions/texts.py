"""What of a record is encoded: its texts cleaned, each once, in order, with what went counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.captions.clean import clean_caption, clean_name, clean_tags, text_key
from pipeline.captions.files import TEXT_KEYS, CaptionFile
from pipeline.captions.templates import NAME_SOURCES
from pipeline.common import InputError
from pipeline.datasets.base import Record

# Where texts come from: what the datasets say of their objects, what caption files call theirs.
# A file that is given as SOURCE=FILE adds its own.
SOURCES = frozenset(
    {
        *("name", "folder", "title", "tags", "description", "attributes", "category", "caption"),
        *(source for source in TEXT_KEYS.values() if source is not None),
    }
)


@dataclass(frozen=True)
class CaptionOptions:
    """Which texts an object gets. The default: all that its source says, nothing else."""

    files: tuple[CaptionFile, ...] = ()
    sources: tuple[str, ...] | None = None  # only texts of these; None: of all
    per_source: int | None = None  # at most that many texts of one source, the first ones
    captioner: str | None = None  # local folder or hub id, see pipeline.captioners
    captioner_views: int = 4  # views that are captioned, spread over those rendered

    def __post_init__(self) -> None:
        """Raises ``InputError`` for a number that cannot be."""
        if self.per_source is not None and self.per_source < 1:
            raise InputError(f"--texts-per-source {self.per_source}: give 1 or more")
        if self.captioner_views < 1:
            raise InputError(f"--captioner-views {self.captioner_views}: give 1 or more")

    def to_json(self) -> dict[str, Any]:
        """What the texts depend on, for the manifest: options that are set, files by their hash.

        Raises ``InputError`` where a file cannot be read.
        """
        found: dict[str, Any] = {}
        if self.files:
            found["files"] = [file.to_json() for file in self.files]
        if self.sources is not None:
            found["sources"] = list(self.sources)
        if self.per_source is not None:
            found["per_source"] = self.per_source
        if self.captioner is not None:
            from pipeline.captioners import identity

            found["captioner"] = {**identity(self.captioner), "views": self.captioner_views}
        return found


@dataclass(frozen=True)
class Texts:
    """Cleaned (text, source) pairs, and how many raw texts went where.

    ``counts`` holds ``texts_given``, ``texts_filtered`` (of a source not wanted),
    ``texts_empty`` (nothing left by cleaning; ``names_empty`` of them were names),
    ``texts_duplicate`` and ``texts_over_limit``; zeros are left out.
    """

    pairs: tuple[tuple[str, str], ...]
    counts: dict[str, int] = field(default_factory=dict)


def clean_text(raw: str, source: str) -> str:
    """``raw`` cleaned by the rules of its source: names, tags, or captions of any kind."""
    if source in NAME_SOURCES:
        return clean_name(raw)
    return clean_tags(raw) if source == "tags" else clean_caption(raw)


def collect_texts(record: Record, options: CaptionOptions | None = None) -> Texts:
    """The texts of a record as they are encoded.

    Equal texts (``text_key``) come once, under the source that came first. Where nothing is left,
    the category is the one text; without one there is none.
    """
    options = options or CaptionOptions()
    return _collect(zip(record.texts, record.text_sources, strict=True), record.category, options)


def _collect(
    raw_texts: Iterable[tuple[str, str]], category: str | None, options: CaptionOptions
) -> Texts:
    counts: Counter[str] = Counter()
    per_source: Counter[str] = Counter()
    found: dict[str, tuple[str, str]] = {}
    for raw, source in raw_texts:
        counts["texts_given"] += 1
        if options.sources is not None and source not in options.sources:
            counts["texts_filtered"] += 1
            continue
        text = clean_text(raw, source)
        key = text_key(text)
        if not text:
            counts["texts_empty"] += 1
            counts["names_empty"] += source in NAME_SOURCES
        elif key in found:
            counts["texts_duplicate"] += 1
        elif options.per_source is not None and per_source[source] >= options.per_source:
            counts["texts_over_limit"] += 1
        else:
            found[key] = (text, source)
            per_source[source] += 1
    if not found and category and (options.sources is None or "category" in options.sources):
        text = clean_name(category)
        if text:
            found[text] = (text, "category")
    return Texts(tuple(found.values()), {key: n for key, n in counts.items() if n})


def texts_for(record: Record, options: CaptionOptions | None = None) -> list[tuple[str, str]]:
    """Cleaned (text, source) pairs of a record, in order: ``collect_texts`` without its counts."""
    return list(collect_texts(record, options).pairs)
