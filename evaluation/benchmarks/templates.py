"""Prompt templates by name: those of a shard set, the field's 64, the bare name, or a file."""

from __future__ import annotations

from pathlib import Path

from pipeline import templates as shared
from pipeline.common import InputError
from pipeline.shards import Manifest

FIELD = "field64"
MANIFEST = "manifest"
BARE = "bare"


def field_templates() -> list[str]:
    """The 64 templates of the field (``modelnet40_64``); origin and licence stand in the file."""
    return list(shared.field_templates())


def load_templates(choice: str, manifest: Manifest) -> list[str]:
    """Templates for ``manifest`` (those of the shards), ``field64``, ``bare``, or a text file.

    A file has one template per line, with ``{}`` where the name goes. Raises ``InputError`` when
    there is no such file or a line is not a template.
    """
    if choice == MANIFEST:
        return list(manifest.templates) or ["{}"]
    if choice == FIELD:
        return field_templates()
    if choice == BARE:
        return ["{}"]
    path = Path(choice)
    if not path.is_file():
        raise InputError(
            f"--templates {choice}: no such file; use {MANIFEST}, {FIELD}, {BARE} or a text file"
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{path}: not readable as UTF-8 text; write one template per line"
        ) from error
    templates = [line for line in lines if line]
    for template in templates:
        check_template(template, str(path))
    if not templates:
        raise InputError(f"{path}: holds no template; write one per line, with {{}} for the name")
    return templates


def check_template(template: str, where: str) -> None:
    """Raise ``InputError`` when ``template`` does not take exactly one name."""
    before, slot, after = template.partition("{}")
    if not slot or set("{}") & set(before + after):
        raise InputError(f"{where}: {template!r} is no template; write {{}} once for the name")
