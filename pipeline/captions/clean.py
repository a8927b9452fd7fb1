"""Raw names, tags and captions to texts that a text tower can use.

Every function here is idempotent, never raises, and never returns more than ``MAX_CAPTION``
characters. The empty text says that nothing usable was left.
"""

from __future__ import annotations

import re
import unicodedata

from pipeline.captions.noise import (
    CAMERA_NAME,
    GENERIC_NAMES,
    NAME_ENDS,
    NAME_PREFIX,
    NOISE_TAGS,
    PHRASES,
    PLACEHOLDERS,
)
from pipeline.captions.unicode import cut, has_letter, mostly_letters, plain, settled

__all__ = ["GENERIC_NAMES", "MAX_CAPTION", "MAX_NAME", "NOISE_TAGS"]
__all__ += ["clean_caption", "clean_name", "clean_tags", "text_key"]

MAX_CAPTION = 1000  # characters; a text encoder reads some 70 words
MAX_NAME = 200
# A folder "train" holds a split, but an object of that name is a train.
_NOT_NAMES = GENERIC_NAMES - {"train"}

_SUFFIX = (
    r"\.(?:glb|gltf|obj|ply|stl|off|dae|fbx|blend|3ds|usdz?|usdc|x3d|wrl|step|stp|abc|zip"
    r"|max|ma|mb)"
)
_PICTURE_SUFFIX = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|psd|mp4|pdf)"
_EXTENSION = re.compile(rf"(?:{_SUFFIX}|{_PICTURE_SUFFIX})$", re.IGNORECASE)
_FILE_NAME = re.compile(rf"(?<=[\w-])(?:{_SUFFIX}|{_PICTURE_SUFFIX})\b", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# A hyphen parts words too, but not after a single letter (t-rex); a point in a number stays.
_SEPARATORS = re.compile(r"[_\s+~|,;:()\[\]{}]+|(?<!\d)\.|\.(?!\d)|(?<!\b[^\W\d_])-|-(?![^\W\d_])")
_SPACED_SLASH = re.compile(r"\s+[/\\]\s*|\s*[/\\]\s+")
_UUID = re.compile(
    r"(?<![0-9a-f])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9a-f])", re.IGNORECASE
)
# An identifier: six or more hexadecimal digits with both kinds of characters, or many digits.
_HASH = re.compile(r"(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{6,}|\d{5,}", re.IGNORECASE)
_LONG_HASH = re.compile(r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{12,}\b|\b\d{12,}\b", re.IGNORECASE)
# Up to two digits, or with leading zeros: "box 3", "box 003", "v2", but not "boeing 747".
_COUNTER = re.compile(r"\d{1,2}|0\d+|v\d+(\.\d+)*|lod\d*", re.IGNORECASE)
_TRAILING_DIGITS = re.compile(r"(?<=[^\W\d_]{3})(\d{1,2}|0\d+)$")
# Signs around a word of a name that are not of the word: quotes, stars, question marks ...
_WORD_EDGES = "\"'\u201c\u201d\u2018\u2019`\u00b4*=<>#^!?\u00ab\u00bb\u2022\u00b7\u2026\\"

_ADDRESS = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
# In prose also without a scheme; in a name such a thing may be a path.
_URL = re.compile(
    r"(?:https?://|www\.)\S+|\b(?:[\w-]++\.)++[a-z]{2,6}/\S*"
    r"|\b(?:sketchfab|artstation|turbosquid|cgtrader|patreon|youtube|gumroad|instagram)\.com\b",
    re.IGNORECASE,
)
_MAIL = re.compile(r"(?<!\S)[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+|(?<!\S)@\w+")
_LINK = re.compile(r"!?\[([^\[\]]{0,300})\]\([^()\s]{0,500}(?:\s+\"[^\"]{0,200}\")?\)")
_HASHTAG = re.compile(r"(?<![\w&#/])#(\d*[^\W\d_]\w*)")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*\n]{1,500}?)(?<=[^\s*])\1(?![\w*])")
_RULE = re.compile(r"(?:[-=_*~#•·|+][ \t]*){3,}")
_LINE_MARK = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|[-*+•·>][ \t]+)", re.MULTILINE)
_LINE_ENDS = re.compile(r"[\r\n]+")
_UNDERSCORED = re.compile(r"\w*_\w*")
_REPEATED = re.compile(r"([!?,;:*])\1+")
_DOTS = re.compile(r"\.{4,}")
_EMPTY_BRACKETS = re.compile(r"\(\s*[,;.:]*\s*\)|\[\s*\]")
_BEFORE_POINT = re.compile(r"\s+([,.;:!?])(?=\s|$)|[,;:]+\s*([.!?])")
# Quotes, bullets and dashes.
_QUOTES = "\"'\u201c\u201d`\u2022\u00b7\u2013\u2014-"
_START_EDGES = " ,;:.!?|/\\~+=*>" + _QUOTES
_END_EDGES = " ,;:|/\\~+=*<" + _QUOTES
_TAG_SPLIT = re.compile(r"[,;|\n\t]+|(?:^|(?<=\s))#")
_NOT_WORD = re.compile(r"[\W_]+")


def clean_name(raw: str) -> str:
    """A file, folder or object name as words: ``base_meshes__brick_frog_02.glb`` -> ``brick frog``.

    Directories, the file extension and everything before a double underscore (a source's prefix)
    go; underscores, camel case and other separators become blanks; hashes, long numbers, and
    counters and level-of-detail marks at the end go, as do pictographs, addresses, and at the ends
    phrases as ``low poly`` or ``free download``. Lower case. The empty text where nothing with a
    letter is left, or only a word that fits any file (``model``).
    """
    return settled(_name_once, raw)


def _name_once(raw: str) -> str:
    text = (
        _SPACED_SLASH.sub(" ", _ADDRESS.sub(" ", plain(raw))).strip().replace("\\", "/").rstrip("/")
    )
    text = _UUID.sub(" ", _EXTENSION.sub("", text.rsplit("/", 1)[-1]))
    if CAMERA_NAME.fullmatch(text.strip()):
        return ""
    for piece in reversed(text.split("__")):
        words = _words(NAME_PREFIX.sub("", piece))
        name = NAME_ENDS.sub("", " ".join(words)).strip()
        if name and name not in _NOT_NAMES and has_letter(name):
            return cut(name, MAX_NAME)
    return ""


def _words(piece: str) -> list[str]:
    words = [
        bare
        for spaced in _SEPARATORS.split(piece)
        if spaced
        for word in _CAMEL.sub(" ", spaced).split()
        if (bare := word.strip(_WORD_EDGES)) and not _HASH.fullmatch(bare)
    ]
    while words and _COUNTER.fullmatch(words[-1]):
        words.pop()
    if words:
        words[-1] = _TRAILING_DIGITS.sub("", words[-1])
    return [word.lower() for word in words]


def clean_caption(raw: str) -> str:
    """A caption as one line of prose.

    Repaired and removed: damaged encoding, HTML, markdown, addresses, hashtag marks (their words
    stay), file names' suffixes, underscores and counters, identifiers, pictographs, control
    characters, repeated blanks, and phrases that speak of the site and not of the object
    (``pipeline.captions.noise``). Case and punctuation stay. The empty text where less than half
    of what is left are letters, or it only says that there is no caption.
    """
    return settled(_caption_once, raw)


def _caption_once(raw: str) -> str:
    # Marks at the start of a line are read before blanks, line ends among them, become one.
    text = _LINE_MARK.sub(" ", _LINE_ENDS.sub("\n", raw))
    text = _LINK.sub(r" \1 ", plain(text))
    # An address ends a sentence, whatever follows it: a sign that ``plain`` leaves nowhere.
    text = _MAIL.sub(" ", _URL.sub(" \0 ", text))
    text = _HASHTAG.sub(lambda tag: _CAMEL.sub(" ", tag[1].replace("_", " ")), text)
    text = _EMPHASIS.sub(r"\2", _RULE.sub(" ", text)).replace("`", "")
    text = _UNDERSCORED.sub(_file_words, _FILE_NAME.sub("", text))
    text = _LONG_HASH.sub(" ", _UUID.sub(" ", text))
    text = PHRASES.sub(" ", " ".join(text.split())).replace("\0", " ")
    text = _DOTS.sub("...", _REPEATED.sub(r"\1", _EMPTY_BRACKETS.sub(" ", text)))
    text = _BEFORE_POINT.sub(r"\1\2", " ".join(text.split()))
    text = cut(text.lstrip(_START_EDGES).rstrip(_END_EDGES), MAX_CAPTION)
    said = text.casefold().rstrip(".!?")
    if said in PLACEHOLDERS or CAMERA_NAME.fullmatch(said) or not mostly_letters(text):
        return ""
    return text


def _file_words(match: re.Match[str]) -> str:
    """``Old_Mug_02`` as ``Old Mug``."""
    pieces = [piece for piece in match[0].split("_") if piece and not _HASH.fullmatch(piece)]
    while len(pieces) > 1 and _COUNTER.fullmatch(pieces[-1]):
        pieces.pop()
    return " ".join(pieces)


def clean_tags(raw: str) -> str:
    """Tags with commas between them: lower case, each once, without those of ``NOISE_TAGS``.

    Tags are parted by commas, semicolons, bars, line ends and hashtag marks. At most
    ``MAX_CAPTION`` characters, whole tags.
    """
    return settled(_tags_once, raw)


def _tags_once(raw: str) -> str:
    found: dict[str, str] = {}
    for part in _TAG_SPLIT.split(raw):
        for piece in plain(part).split(","):
            spaced = _SEPARATORS.sub(" ", _CAMEL.sub(" ", _ADDRESS.sub(" ", piece)))
            words = [word.strip(_WORD_EDGES) for word in spaced.lower().split()]
            tag = cut(" ".join(w for w in words if w and not _HASH.fullmatch(w)), MAX_NAME)
            key = text_key(tag)
            if has_letter(tag) and key not in NOISE_TAGS and (len(key) > 1 or not key.isascii()):
                found.setdefault(key, tag)
    tags = ", ".join(found.values())
    while len(tags) > MAX_CAPTION:
        tags = tags.rpartition(", ")[0]
    return tags


def text_key(text: str) -> str:
    """What texts are compared by: letters, marks and digits, without case, blanks, punctuation."""
    folded = text.casefold()
    if folded.isascii():
        return _NOT_WORD.sub("", folded) or folded
    folded = unicodedata.normalize("NFKC", folded)
    kept = "".join(s for s in folded if s.isalnum() or unicodedata.category(s)[0] == "M")
    return kept or folded
