"""Texts of an object: cleaning names and captions, articles, prompt templates."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

from pipeline.datasets.base import Record

# Texts from these sources are names: cleaned as file names are, and put into templates.
NAME_SOURCES = frozenset({"name", "folder", "category"})
# What a name is encoded in, unless a run says otherwise: few and plain, so that any teacher knows
# the form. The field's 64 templates are an option of the evaluation.
DEFAULT_TEMPLATES = ("a {}", "a 3D model of a {}", "a picture of a {}", "a rendering of a {}")
_MAX_LENGTH = 1000  # characters; a text encoder reads some 70 words

_EXTENSION = re.compile(
    r"\.(glb|gltf|obj|ply|stl|off|dae|fbx|blend|3ds|usdz?|usdc|x3d|wrl|step|stp|abc|zip|max|ma|mb)$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# A hyphen parts words too, but not after a single letter (t-rex); a point in a number stays.
_SEPARATORS = re.compile(r"[_\s+~|,;:()\[\]{}]+|(?<!\d)\.|\.(?!\d)|(?<!\b[^\W\d_])-|-(?![^\W\d_])")
_UUID = re.compile(
    r"(?<![0-9a-f])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9a-f])", re.IGNORECASE
)
# An identifier: six or more hexadecimal digits with both kinds of characters, or many digits.
_HASH = re.compile(r"(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{6,}|\d{5,}", re.IGNORECASE)
# Up to two digits, or with leading zeros: "box 3", "box 003", "v2", but not "boeing 747".
_COUNTER = re.compile(r"\d{1,2}|0\d+|v\d+(\.\d+)*|lod\d*", re.IGNORECASE)
_TRAILING_DIGITS = re.compile(r"(?<=[^\W\d_]{3})(\d{1,2}|0\d+)$")
_URL = re.compile(r"(https?://|www\.)\S+", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_LETTER = re.compile(r"[^\W\d_]")
# Names that say that there is a file, not what is in it.
GENERIC_NAMES = frozenset(
    """
    model models mesh meshes scene untitled object objects obj asset assets file files textured
    texture textures base default normalized normalised simplified export exported output part
    glb gltf ply stl off dae fbx data dataset raw source sources geometry result sample item items
    root node 3d train val valid validation test
    """.split()  # noqa: SIM905 (as a list it would take fifty lines)
)


def clean_name(raw: str) -> str:
    """A file, folder or object name as words: ``base_meshes__brick_frog_02.glb`` -> ``brick frog``.

    Directories, the file extension and everything before a double underscore (a source's prefix)
    go; underscores, camel case and other separators become blanks; hashes, long numbers, and
    counters and level-of-detail marks at the end go. Lower case. The empty text where nothing with
    a letter is left, or only a word that fits any file (``model``).
    """
    text = unicodedata.normalize("NFKC", raw).strip().replace("\\", "/").rstrip("/")
    text = _UUID.sub(" ", _EXTENSION.sub("", text.rsplit("/", 1)[-1]))
    for piece in reversed(text.split("__")):
        words = _words(piece)
        if words:
            return " ".join(words)
    return ""


def _words(piece: str) -> list[str]:
    words = [
        word
        for spaced in _SEPARATORS.split(piece)
        if spaced
        for word in _CAMEL.sub(" ", spaced).split()
        if not _HASH.fullmatch(word)
    ]
    while words and _COUNTER.fullmatch(words[-1]):
        words.pop()
    if words:
        words[-1] = _TRAILING_DIGITS.sub("", words[-1])
    words = [word.lower() for word in words]
    if not any(_LETTER.search(word) for word in words):
        return []
    return [] if len(words) == 1 and words[0] in GENERIC_NAMES else words


def clean_caption(raw: str) -> str:
    """A caption without markup, addresses, control characters and repeated blanks.

    Case and punctuation stay. The empty text where no letter is left.
    """
    text = _TAG.sub(" ", html.unescape(unicodedata.normalize("NFKC", raw)))
    text = _URL.sub(" ", text)
    text = "".join(" " if unicodedata.category(sign)[0] == "C" else sign for sign in text)
    text = " ".join(text.split()).strip("\"'“”`").strip()
    if len(text) > _MAX_LENGTH:
        text = text[:_MAX_LENGTH].rsplit(" ", 1)[0]
    return text if _LETTER.search(text) else ""


def texts_for(record: Record) -> list[tuple[str, str]]:
    """Cleaned (text, source) pairs of a record, in order, equal texts once.

    Names (``NAME_SOURCES``) are cleaned by ``clean_name``, all others by ``clean_caption``. Where
    nothing is left, the category is the one text; without one the list is empty.
    """
    found: dict[str, tuple[str, str]] = {}
    for raw, source in zip(record.texts, record.text_sources, strict=True):
        text = clean_name(raw) if source in NAME_SOURCES else clean_caption(raw)
        if text:
            found.setdefault(text.casefold(), (text, source))
    if not found and record.category:
        text = clean_name(record.category)
        return [(text, "category")] if text else []
    return list(found.values())


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
