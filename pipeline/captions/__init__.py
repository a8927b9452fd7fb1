"""Texts of an object: caption files, cleaning, prompt templates.

- ``clean``: raw names, tags and captions to texts that a text tower can use;
- ``texts``: what of a record is encoded, in order, with what was dropped counted;
- ``templates``: articles and the prompts that a name is encoded in;
- ``tokens``: how much of a text a teacher reads;
- ``files``, ``join``: captions by uid from CSV, JSON, JSON lines and Parquet, joined to records.
"""

from pipeline.captions.clean import (
    GENERIC_NAMES,
    NOISE_TAGS,
    clean_caption,
    clean_name,
    clean_tags,
    text_key,
)
from pipeline.captions.files import CaptionFile, parse_caption_file
from pipeline.captions.join import CaptionJoin
from pipeline.captions.templates import DEFAULT_TEMPLATES, NAME_SOURCES, article, expand, fill
from pipeline.captions.texts import (
    SOURCES,
    CaptionOptions,
    Texts,
    clean_text,
    collect_texts,
    texts_for,
)
from pipeline.captions.tokens import TokenCounter

__all__ = [
    "DEFAULT_TEMPLATES",
    "GENERIC_NAMES",
    "NAME_SOURCES",
    "NOISE_TAGS",
    "SOURCES",
    "CaptionFile",
    "CaptionJoin",
    "CaptionOptions",
    "Texts",
    "TokenCounter",
    "article",
    "clean_caption",
    "clean_name",
    "clean_tags",
    "clean_text",
    "collect_texts",
    "expand",
    "fill",
    "parse_caption_file",
    "text_key",
    "texts_for",
]
