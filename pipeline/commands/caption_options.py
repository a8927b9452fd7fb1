"""Options about the texts of objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline.captions import CaptionOptions, parse_caption_file
from pipeline.common import InputError

CaptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--captions",
        metavar="[SOURCE=]FILE",
        help="Texts by uid from CSV, JSON, JSON lines or Parquet (repeatable): cap3d=Cap3D.csv.",
    ),
]
TextSourcesOption = Annotated[
    str | None,
    typer.Option(
        "--text-sources", help="Only texts of these sources, e.g. name,tags,caption,cap3d."
    ),
]
TextsPerSourceOption = Annotated[
    int | None,
    typer.Option("--texts-per-source", min=1, help="At most that many texts of one source."),
]
CaptionerOption = Annotated[
    str | None,
    typer.Option(
        "--captioner", help="Caption views with this model: a folder or hub id (transformers)."
    ),
]
CaptionerViewsOption = Annotated[
    int, typer.Option("--captioner-views", min=1, help="Views per object that it captions.")
]


def caption_options(
    captions: Sequence[str] | None,
    text_sources: str | None,
    texts_per_source: int | None,
    captioner: str | None,
    captioner_views: int,
) -> CaptionOptions:
    """The options as they stand on the command line. Raises ``InputError``."""
    sources = None
    if text_sources is not None:
        sources = tuple(name for part in text_sources.split(",") if (name := part.strip().lower()))
        if not sources:
            raise InputError("--text-sources: names none; give some, e.g. name,tags,caption")
    return CaptionOptions(
        files=tuple(parse_caption_file(spec) for spec in captions or ()),
        sources=sources,
        per_source=texts_per_source,
        captioner=captioner,
        captioner_views=captioner_views,
    )
