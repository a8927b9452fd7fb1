"""The character level of cleaning: encoding damage, entities, pictographs, invisible signs."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable

# A raw text is read this far, and no further: what follows would be cut anyway.
_READ = 4000
_ROUNDS = 12

_REPEATED_AMP = re.compile(r"&(?:amp;)+", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>|<!--.{0,200}?-->", re.DOTALL)
# Arrows, technical signs, geometric shapes, dingbats: drawn, not said, whatever their category.
_DRAWN = (
    *((0x2190, 0x21FF), (0x2300, 0x23FF), (0x25A0, 0x27BF), (0x2900, 0x297F), (0x2B00, 0x2BFF)),
    *((0x1F000, 0x1FAFF), (0x1F3FB, 0x1F3FF)),
)
# Variation selectors, the keycap frame, tag characters of flags: parts of pictographs.
_ATTACHED = ((0xFE00, 0xFE0F), (0x20E3, 0x20E3), (0xE0000, 0xE01EF))
_ZERO_WIDTH_SPACE, _DEGREE = 0x200B, 0x00B0


class _Signs(dict[int, str]):
    """Code point -> what stands for it, for ``str.translate``; filled as code points are met."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _sign(code)
        return found


def _sign(code: int) -> str:
    if any(first <= code <= last for first, last in _ATTACHED):
        return ""
    if any(first <= code <= last for first, last in _DRAWN):
        return " "
    sign = chr(code)
    category = unicodedata.category(sign)
    if category == "Cf" and code != _ZERO_WIDTH_SPACE:
        return ""  # joiners, direction marks, soft hyphens: a word goes on across them
    if category[0] in "CZ" or (category == "So" and code != _DEGREE):
        return " "
    return sign


_SIGNS = _Signs()


def plain(text: str) -> str:
    """``text`` with repaired encoding, without markup tags, pictographs and invisible signs.

    Mojibake is undone by ftfy, compatibility forms by NFKC; HTML entities are resolved and tags
    removed. Emoji go with all that belongs to them (skin tones, joiners, variation selectors,
    flags, keycap frames). Control characters and every kind of blank become spaces; repeated ones
    stay as they are.
    """
    if not text.isascii():
        import ftfy

        # Lone surrogates are no text in any encoding, and ftfy need not know them.
        text = "".join(" " if "\ud800" <= sign <= "\udfff" else sign for sign in text)
        text = unicodedata.normalize("NFKC", str(ftfy.fix_encoding(text)))
    if "&" in text:
        text = html.unescape(_REPEATED_AMP.sub("&", text))
    if "<" in text:
        text = _TAG.sub(" ", text)
    return text.translate(_SIGNS)


def settled(step: Callable[[str], str], raw: str) -> str:
    """``step`` applied until it changes nothing more, so that cleaning twice is cleaning once.

    The empty text where it does not settle: only texts built to resist come there.
    """
    text = raw[:_READ]
    for _ in range(_ROUNDS):
        cleaned = step(text)
        if cleaned == text:
            return text
        text = cleaned
    return ""


def cut(text: str, most: int) -> str:
    """The first words of ``text``, at most ``most`` characters."""
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0].rstrip()


def has_letter(text: str) -> bool:
    """Whether any character is a letter."""
    return any(sign.isalpha() for sign in text)


def mostly_letters(text: str) -> bool:
    """Whether at least half of the characters, blanks aside, are letters or their marks."""
    letters = signs = 0
    for sign in text:
        if sign.isalpha() or (not sign.isascii() and unicodedata.category(sign)[0] == "M"):
            letters += 1
        signs += not sign.isspace()
    return letters > 0 and signs <= 2 * letters
