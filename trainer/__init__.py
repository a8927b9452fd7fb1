"""Embedding shards to a checkpoint: distil CLIP's relations into a point-cloud encoder.

``from trainer import load_student`` loads a trained encoder. Other entry points:
``trainer.run.train`` (a recipe to a run folder), ``trainer.checkpoint.load_model`` (a checkpoint
with all that it says of itself), ``trainer.cli.main``. Nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.student import Student, load_student

__all__ = ["Student", "load_student"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from trainer import student

        return getattr(student, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
