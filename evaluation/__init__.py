"""Checkpoint and shards to numbers, indexes and search.

``from evaluation import Index, load_student`` for notebooks:

    student = load_student("runs/mrd")           # a run, a checkpoint, or released weights
    student.embed_mesh("chair.glb")              # (D,) float32, L2-normalised

    index = Index.open("mugs.index")
    index.query(text="a red mug", k=5)           # hits: rank, score (a cosine), item

Other entry points: ``evaluation.benchmarks`` (zero-shot, retrieval, probes), ``evaluation.score``,
``evaluation.cli.main``. Nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.index import Index
    from evaluation.student import Student, load_student

__all__ = ["Index", "Student", "load_student"]


def __getattr__(name: str) -> Any:
    if name == "Index":
        from evaluation.index import Index

        return Index
    if name in __all__:
        from evaluation import student

        return getattr(student, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
