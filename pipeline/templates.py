"""The 64 prompt templates that 3D zero-shot papers share."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files


@cache
def field_templates() -> tuple[str, ...]:
    """The 64 templates (``modelnet40_64``); their origin and licence stand in the file."""
    resource = files("pipeline") / "data" / "field_templates.json"
    return tuple(str(item) for item in json.loads(resource.read_text())["templates"])
