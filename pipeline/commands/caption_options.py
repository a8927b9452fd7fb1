"""Options about the texts of objects."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline.captions import SOURCES, CaptionOptions, parse_caption_file
from pipeline.common import InputError
from pipeline.console import TEXTS

CaptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--captions",
        metavar="[SOURCE=]FILE",
        help="Texts by uid from CSV, JSON, JSON lines or Parquet (repeatable): cap3d=Cap3D.csv.",
        rich_help_panel=TEXTS,
    ),
]
TextSourcesOption = Annotated[
    str | None,
    typer.Option(
        "--text-sources",
        help="Use only texts from these sources, e.g. name,tags,caption,cap3d.",
        rich_help_panel=TEXTS,
    ),
]
TextsPerSourceOption = Annotated[
    int | None,
    typer.Option(
        "--texts-per-source",
        min=1,
        help="Maximum number of texts per source.",
        rich_help_panel=TEXTS,
    ),
]
CaptionerOption = Annotated[
    str | None,
    typer.Option(
        "--captioner",
        help="Caption the views with this model: a folder or hub id (transformers).",
        rich_help_panel=TEXTS,
    ),
]
CaptionerViewsOption = Annotated[
    int,
    typer.Option(
        "--captioner-views", min=1, help="Views to caption per object.", rich_help_panel=TEXTS
    ),
]


def caption_options(
    captions: Sequence[str] | None,
    text_sources: str | None,
    texts_per_source: int | None,
    captioner: str | None,
    captioner_views: int,
) -> CaptionOptions:
    """The options as they stand on the command line; a captioner is looked at, not loaded.

    Raises ``InputError``.
    """
    files = tuple(parse_caption_file(spec) for spec in captions or ())
    sources = None
    if text_sources is not None:
        sources = tuple(name for part in text_sources.split(",") if (name := part.strip().lower()))
        if not sources:
            raise InputError("--text-sources: is empty; give some, e.g. name,tags,caption")
        known = {*SOURCES, *(file.source for file in files if file.source is not None)}
        for name in sources:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"use {', '.join(sorted(known))}"
                raise InputError(f"--text-sources {name}: unknown; {hint}")
    if captioner is not None:
        from pipeline.captioners import check_captioner

        check_captioner(captioner)
    return CaptionOptions(
        files=files,
        sources=sources,
        per_source=texts_per_source,
        captioner=captioner,
        captioner_views=captioner_views,
    )
