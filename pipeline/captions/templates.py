"""Prompt templates: what a name is encoded in, with the article that fits."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Texts from these sources are names: cleaned as file names are, and put into templates.
NAME_SOURCES = frozenset({"name", "folder", "category"})
# What a name is encoded in, unless a run says otherwise: few and plain, so that any teacher knows
# the form. The field's 64 templates are an option of the evaluation.
DEFAULT_TEMPLATES = ("a {}", "a 3D model of a {}", "a picture of a {}", "a rendering of a {}")

# Vowels that sound like consonants, silent h, and letters and numbers by their spoken name.
_A_DESPITE_VOWEL = re.compile(
    r"(uni(?!n|m)|us([aeiu]|b\b)|ut[ei]|eu|ewe|ufo\b|ukulele|urin|ura|one\b|once\b|u\b)", re.I
)
_AN_DESPITE_CONSONANT = re.compile(
    r"(hour|honest|honou?r|heir|8|11\b|18\b|[fhlmnrsx]\b|x[ -]?ray)", re.I
)


def article(name: str) -> str:
    """``a`` or ``an``, by the sound that the name begins with."""
    start = name.lstrip("\"'( ")
    if _A_DESPITE_VOWEL.match(start):
        return "a"
    if _AN_DESPITE_CONSONANT.match(start):
        return "an"
    return "an" if start[:1].lower() in set("aeiou") else "a"


_SLOT = re.compile(r"(?:\b(an?)(\s+))?\{\}", re.IGNORECASE)


def fill(template: str, name: str) -> str:
    """The template with the name for ``{}``; an article before it is made to fit."""

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return name
        fitting = article(name)
        return (fitting.capitalize() if match[1][0].isupper() else fitting) + match[2] + name

    return _SLOT.sub(replace, template)


def expand(text: str, source: str, templates: Sequence[str]) -> list[str]:
    """The prompts by which a text is encoded: a name in every template, any other text as is.

    A template without ``{}`` is a ``ValueError``. Equal prompts come once.
    """
    if source not in NAME_SOURCES or not templates:
        return [text]
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the name")
    return list(dict.fromkeys(fill(template, text) for template in templates))
