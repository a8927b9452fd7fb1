"""The one place where evaluation gets hold of a teacher, and refuses a wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.common import InputError
from pipeline.shards import TeacherInfo


class QueryTeacher(Protocol):
    """What evaluation needs of ``pipeline.teacher.Teacher``; tests give a small stand-in."""

    info: TeacherInfo

    def encode_images(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """(B, S, S, 3) sRGB to (B, D), L2-normalised."""

    def encode_texts(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Texts to (B, D), L2-normalised."""

    def encode_prompts(
        self, names: Sequence[str], templates: Sequence[str], /, *, fit_articles: bool = True
    ) -> NDArray[np.float32]:
        """Prompt-averaged names to (B, D), L2-normalised."""


def open_teacher(info: TeacherInfo, spec: str | None = None, device: str = "cpu") -> QueryTeacher:
    """Load the teacher that made ``info`` again; ``spec`` says where it is if not where it was.

    Raises ``InputError`` when it cannot be loaded or its fingerprint differs.
    """
    from pipeline.teacher import load_matching  # imports open_clip: seconds

    return load_matching(info, spec, device)


def load_any(spec: str, device: str = "cpu") -> QueryTeacher:
    """Load the teacher that ``spec`` names, as ``pipeline embed --teacher`` takes it.

    Raises ``InputError`` when it cannot be loaded.
    """
    from pipeline.teacher import load_teacher

    return load_teacher(spec, device)


def require_same_teacher(ours: TeacherInfo, our_name: str, other: TeacherInfo, name: str) -> None:
    """Raise ``InputError`` when embeddings of ``our_name`` and ``name`` cannot be compared."""
    reason = ours.mismatch(other)
    if reason:
        raise InputError(
            f"{our_name} was made with teacher {ours.label}, {name} with {other.label} "
            f"({reason}); use a checkpoint, shards and index of one teacher"
        )
