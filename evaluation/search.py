"""Open-vocabulary search: a text, an image or a shape to ranked objects of an index."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from evaluation import student as students
from evaluation import teachers
from evaluation.index import Hit, Index
from evaluation.queries import Part
from evaluation.shapes import Caller, Cloud, here
from evaluation.student import Student
from evaluation.teachers import QueryTeacher
from pipeline.common import InputError

F32 = NDArray[np.float32]
MAX_SIDE = 1024  # pixels; no image tower looks closer


def text_query(text: str, teacher: QueryTeacher) -> F32:
    """(D,) embedding of a text as it is written. Raises ``InputError`` when it is empty."""
    if not text.strip():
        raise InputError('--text: is empty; say what to look for, as in --text "a red mug"')
    return np.asarray(teacher.encode_texts([text.strip()])[0], np.float32)


def image_query(path: Path, teacher: QueryTeacher, background: tuple[int, int, int]) -> F32:
    """(D,) embedding of a picture, on ``background`` (that of the rendered views)."""
    return np.asarray(teacher.encode_images(load_image(path, background)[None])[0], np.float32)


def load_image(path: Path, background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Read a picture as (S, S, 3) sRGB; ``background`` shows through and pads it to a square.

    It is turned as its EXIF says. Padding rather than cropping: a cut object is another object.
    Raises ``InputError`` when the file is missing, not a picture, or too large to be meant as one.
    """
    remedy = "give a PNG, JPEG or WebP file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # of what a damaged EXIF lacks
            with Image.open(path) as file:
                shallow = _eight_bits(file)
                shallow.thumbnail((MAX_SIDE, MAX_SIDE))
                picture = _upright(shallow).convert("RGBA")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {remedy}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: has too many pixels; give a smaller picture") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: not a readable picture; {remedy}") from error
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), (*background, 255))
    corner = ((side - picture.width) // 2, (side - picture.height) // 2)
    square.alpha_composite(picture, corner)
    return np.array(square.convert("RGB"), np.uint8)  # a copy: torch wants it writable


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8: Pillow clips it, and all but black would be white."""
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture
    values = np.clip(np.asarray(picture, np.int64), 0, 65535)
    if picture.mode == "I" and values.max() < 256:  # 8 bits in wider integers
        return picture
    return Image.fromarray(np.asarray((values + 128) // 257, np.uint8))


def _upright(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF says: cameras store it as the sensor lay, viewers turn it."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # a damaged EXIF raises anything; the pixels are fine
        return picture


def index_background(index: Index) -> tuple[int, int, int]:
    """Background colour of the views that the index's teacher saw; white when not recorded."""
    value: Any = index.meta.data.get("background")
    if isinstance(value, list) and len(value) == 3:
        red, green, blue = (int(channel) for channel in value)
        return red, green, blue
    return 255, 255, 255


def index_student(index: Index, checkpoint: Path | None, device: str) -> Student:
    """The student that made the index, for shape queries.

    ``checkpoint`` says where it is; by default it is looked for where it was. Raises ``InputError``
    when the index was made from the teacher's views, or the weights differ.
    """
    model = index.meta.model
    if model.kind != "student":
        raise InputError(
            f"{index.path}: holds {model.name} embeddings, which need rendered views, so "
            "it cannot be searched by shape; search by text or image, or index a student's "
            "embeddings"
        )
    path = checkpoint or Path(model.path)
    if checkpoint is None and not path.exists():
        raise InputError(
            f"checkpoint {model.name} of the index is no longer at {path}; "
            "give it with --checkpoint"
        )
    student = students.load_student(path, device)
    if student.model.hash != model.hash:
        raise InputError(
            f"checkpoint {path} (step {student.model.step}) is not the one that made the index "
            f"(step {model.step}); give that one with --checkpoint or index again"
        )
    index.require_teacher(student.teacher, f"checkpoint {path}")
    return student


class Embedder:
    """Parts of queries to unit vectors (D,); loads teacher and student when one is needed.

    Calls raise ``InputError`` for files that cannot be read, and for models that did not make the
    index.
    """

    def __init__(
        self,
        index: Index,
        checkpoint: Path | None = None,
        teacher: str | None = None,
        device: str = "cpu",
        up_axis: str = "auto",
        seed: int = 0,
        call: Caller = here,
    ) -> None:
        """``call`` is how shapes are read: see ``evaluation.isolated``."""
        self._call = call
        self._index, self._checkpoint, self._spec = index, checkpoint, teacher
        self._device, self._up_axis, self._seed = device, up_axis, seed
        self._teacher: QueryTeacher | None = None
        self._student: Student | None = None

    def cloud(self, part: Part) -> Cloud:
        """Read a part that is a shape. It may take long, and may be done in several threads."""
        return self.student.load_shape(Path(part.value), self._up_axis, self._seed, self._call)

    def __call__(self, part: Part, cloud: Cloud | None = None) -> F32:
        """(D,) float32, L2-normalised; ``cloud`` is that of the part, if it was read already."""
        if part.kind == "text":
            return text_query(part.value, self.teacher)
        path = Path(part.value)
        if part.kind == "image":
            return image_query(path, self.teacher, index_background(self._index))
        return self.student.embed_cloud(self.cloud(part) if cloud is None else cloud)

    @property
    def teacher(self) -> QueryTeacher:
        """The teacher of the index."""
        if self._teacher is None:
            opened = teachers.open_teacher(self._index.meta.teacher, self._spec, self._device)
            self._index.require_teacher(opened.info, "the query's teacher")
            self._teacher = opened
        return self._teacher

    @property
    def student(self) -> Student:
        """The student of the index."""
        if self._student is None:
            self._student = index_student(self._index, self._checkpoint, self._device)
        return self._student


def hits_json(hits: list[Hit]) -> list[dict[str, Any]]:
    """Hits for JSON output."""
    return [
        {
            "rank": hit.rank,
            "score": round(hit.score, 6),
            "uid": hit.item.uid,
            "category": hit.item.category,
            "texts": hit.item.texts,
            "source": hit.item.source,
        }
        for hit in hits
    ]
