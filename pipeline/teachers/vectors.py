"""Text embeddings that somebody has, by name, in the place of a text tower.

Class names of the common vocabularies come as files of vectors (LVIS, Objects365, OpenImages) from
models whose weights cannot be had, and a catalogue may have its own. A table of them is a teacher
of its words: an object's texts that are in the table are embedded, others are left out, and
nothing else can be asked. Pictures are embedded by another teacher, of the same width, or not at
all.

Files: ``.npy`` (K, D) with the K names beside it in a ``.txt`` (one a line), ``.json`` (a list, or
an object of name to row) or ``.csv`` (column ``name``, else the first); or ``.npz`` with ``names``
and ``emb`` or ``embeddings``. Nothing in them is unpickled. Vectors need not be normalised.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import InputError, content_hash
from pipeline.shards import TeacherInfo
from pipeline.shards.manifest import VECTORS as MODEL

if TYPE_CHECKING:  # options are read with these names before torch is loaded
    from pipeline.teachers.model import Teacher

F32 = NDArray[np.float32]

# Of CLIP's released models; a table says nothing of its own.
_LOGIT_SCALE = 100.0
_ARTICLE = re.compile(r"^(?:an?|the)\s+")


def spec(vectors: str, names: str | None = None, images: str | None = None) -> str:
    """How the files are named to ``load_teacher``: ``vectors:FILE[,NAMES[,IMAGES]]``.

    Raises ``InputError`` for a path with a comma in it.
    """
    for option, path in (("--text-embeddings", vectors), ("--names", names or "")):
        if "," in path:
            raise InputError(f"{option} {path}: a path with a comma; rename the file")
    return f"{MODEL}:{','.join([vectors, names or '', images or '']).rstrip(',')}"


def key(text: str) -> str:
    """Form in which names are compared: lower case, single spaces for ``_``, no article."""
    return _ARTICLE.sub("", " ".join(text.casefold().replace("_", " ").split()))


class VectorTeacher:
    """Embeds the texts of a table, and pictures where another teacher lends its image tower.

    The same surface as ``Teacher``.
    """

    tokenizer = None  # nothing is cut

    def __init__(
        self, names: Sequence[str], vectors: NDArray[np.floating], images: Teacher | None = None
    ) -> None:
        """``vectors`` (K, D), one a name. Of equal names the first one counts.

        Raises ``ValueError`` for numbers that do not fit, that are not finite, or that are 0.
        """
        if vectors.ndim != 2 or not 0 < len(names) == len(vectors) or not vectors.shape[1]:
            raise ValueError(f"{len(names)} names for vectors of shape {vectors.shape}")
        if images is not None and images.info.width != vectors.shape[1]:
            raise ValueError(f"width {vectors.shape[1]} against {images.info.width}")
        wide = np.asarray(vectors, np.float32)
        norms = np.linalg.norm(wide, axis=1)
        bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if len(bad):
            raise ValueError(f"the vector of {names[bad[0]]!r} is 0 or not finite")
        self._table = wide / norms[:, None]
        self._row: dict[str, int] = {}
        for row, name in enumerate(names):
            self._row.setdefault(key(name), row)
        if "" in self._row:
            raise ValueError(f"name {self._row[''] + 1} is empty")
        self._images = images
        self.precision = images.precision if images else "fp32"
        words = sorted(self._row)
        told = "\n".join(words).encode() + self._table[[self._row[w] for w in words]].tobytes()
        label = f"sha256:{content_hash(told)[:16]}"
        preprocess = images.info.config.get("preprocess_cfg", {}) if images else {}
        self.info = TeacherInfo(
            model=MODEL,
            pretrained=f"{label}, images of {images.info.label}" if images else label,
            config={
                "names": len(words),
                "images": images.info.label if images else None,
                "preprocess_cfg": preprocess,
            },
            width=int(self._table.shape[1]),
            logit_scale=images.info.logit_scale if images else _LOGIT_SCALE,
            # Known by its name, which is a hash of all that it can tell.
            fingerprint_image=[],
            fingerprint_text=[],
        )

    @property
    def has_images(self) -> bool:
        """Whether pictures can be embedded."""
        return self._images is not None

    def knows(self, text: str) -> bool:
        """Whether ``text`` is a name of the table."""
        return key(text) in self._row

    def encode_images(self, images: NDArray[np.uint8]) -> F32:
        """Embed as ``Teacher.encode_images``. Raises ``InputError`` without an image tower."""
        if self._images is None:
            raise InputError(
                f"teacher {self.info.label}: a file of text vectors cannot embed pictures; "
                "ask with texts or shapes"
            )
        return self._images.encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """The vectors of names, (B, D), L2-normalised.

        Raises ``InputError`` for one that is not in the table, with the nearest ones.
        """
        rows = [self._row.get(key(text), -1) for text in texts]
        unknown = [text for text, row in zip(texts, rows, strict=True) if row < 0]
        if unknown:
            near = difflib.get_close_matches(key(unknown[0]), self._row, n=3)
            raise InputError(
                f"{', '.join(map(repr, unknown[:3]))}: not among the {len(self._row)} names of "
                f"the text vectors{' (near: ' + ', '.join(near) + ')' if near else ''}; "
                "a file of vectors knows no other words"
            )
        return self._table[rows] if rows else np.zeros((0, self.info.width), np.float32)

    def encode_prompts(
        self, names: Sequence[str], templates: Sequence[str], *, fit_articles: bool = True
    ) -> F32:
        """The vectors of names; ``templates`` are in them already."""
        del templates, fit_articles
        return self.encode_texts(names)


def load_vectors(rest: str, device: str = "cpu", **options: Any) -> VectorTeacher:
    """The table that ``FILE[,NAMES[,IMAGES]]`` names; ``options`` go to the teacher of pictures.

    Raises ``InputError`` for files that are missing, damaged, or do not fit one another.
    """
    file, names_file, image_spec = (rest.split(",", 2) + ["", ""])[:3]
    images = None
    if image_spec:
        from pipeline.teacher import load_clip  # which knows this module

        images = load_clip(image_spec, device, **options)
    path = Path(file).expanduser()
    vectors, names = _read_vectors(path)
    if names is None:
        if not names_file:
            raise InputError(
                f"{file}: has no names; give them with --names FILE (or MODEL {MODEL}:FILE,NAMES)"
            )
        names = _read_names(Path(names_file).expanduser())
    elif names_file:
        raise InputError(f"--names {names_file}: {file} has its own names; leave the option out")
    try:
        return VectorTeacher(names, vectors, images)
    except ValueError as error:
        raise InputError(
            f"{file}: {error}; give one name and one vector each, of the width of --teacher"
        ) from error


def teacher_specs(
    teachers: Sequence[str], vectors: str | None, names: str | None
) -> tuple[str, ...]:
    """The teachers that ``--teacher``, ``--text-embeddings`` and ``--names`` ask for.

    Vectors take the pictures of the one teacher that is given, else those of ``demo`` where it has
    their width, else none. Raises ``InputError`` for what does not go together.
    """
    if vectors is None:
        if names is not None:
            raise InputError(f"--names {names}: needs --text-embeddings; give it too")
        return tuple(teachers) or ("demo",)
    if len(teachers) > 1:
        raise InputError(
            "--text-embeddings: can be combined with only one --teacher; "
            "run the command once for each"
        )
    width = _read_vectors(Path(vectors).expanduser())[0].shape[1]
    from pipeline.teacher import load_clip  # which knows this module

    images = teachers[0] if teachers else "demo"
    theirs = load_clip(images).info.width
    if width == theirs:
        return (spec(vectors, names, images),)
    if teachers:
        raise InputError(
            f"--teacher {images}: embeds to width {theirs}, {vectors} to {width}; give the vectors "
            "of that teacher, or leave it out for a set without pictures"
        )
    return (spec(vectors, names),)


def _read_vectors(path: Path) -> tuple[NDArray[np.floating], list[str] | None]:
    """(K, D) vectors and, of ``.npz``, their names."""
    if not path.is_file():
        raise InputError(f"--text-embeddings {path}: no such file; give an .npy or .npz file")
    names: list[str] | None = None
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                array = found["emb" if "emb" in found.files else "embeddings"]
                names = [str(name) for name in found["names"].tolist()]
        else:
            array = found
    except (OSError, ValueError, LookupError, EOFError, MemoryError, SyntaxError) as error:
        raise InputError(
            f"--text-embeddings {path}: not readable ({error!r:.200}); an .npy file holds vectors "
            "(names, width), an .npz file also `names`, with the vectors as `emb`"
        ) from error
    except Exception as error:  # zlib and zipfile raise kinds of their own
        raise InputError(f"--text-embeddings {path}: damaged ({error!r:.200})") from error
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"--text-embeddings {path}: {array.dtype} of shape {array.shape}; expected a table of "
            "floats with one row per name"
        )
    return array, names


def _read_names(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.casefold() == ".json":
            return _json_names(json.loads(text))
        if path.suffix.casefold() == ".csv":
            rows = list(csv.reader(io.StringIO(text)))
            column = rows[0].index("name") if "name" in rows[0] else 0
            return [row[column] for row in rows["name" in rows[0] :] if row]
    except FileNotFoundError as error:
        raise InputError(f"--names {path}: no such file; give .txt, .json or .csv") from error
    except (OSError, ValueError, LookupError, TypeError, RecursionError, csv.Error) as error:
        raise InputError(
            f"--names {path}: not readable ({error!r:.200}); expected a text file with one name "
            "per line, a JSON list, or a CSV file with a column `name`"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _json_names(value: Any) -> list[str]:
    """Of a list of names, of objects with a ``name``, or of an object of names to rows."""
    if isinstance(value, dict):
        if sorted(value.values()) != list(range(len(value))):
            raise ValueError("the rows of the names are not 0, 1, 2 ...")
        value = sorted(value, key=value.__getitem__)
    names: Iterable[Any] = (v["name"] if isinstance(v, dict) else v for v in value)
    found = list(names)
    if not all(isinstance(name, str) for name in found):
        raise ValueError("a name is not a text")
    return found
