"""How well do meshes show what was asked for? Scores of a folder, worst first.

    python examples/score_generated_meshes.py generated/ "a red mug" work/run

See docs/score.md for what the figures mean and how to cite them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from evaluation import load_student
from evaluation.score import Asked, Failure, Scorer, read_distractors, score_all
from evaluation.sources import find_meshes
from evaluation.teachers import open_teacher
from pipeline.cameras import ring


def main(folder: str, prompt: str, run: str) -> None:
    """Meshes that cannot be read are told and left out."""
    student = load_student(run)
    teacher = open_teacher(student.teacher)
    scorer = Scorer(teacher, student, ring(12), distractors=read_distractors(None), draws=3)
    meshes = find_meshes([Path(folder)])
    asked = [Asked(mesh.name, mesh.path, prompt, None) for mesh in meshes]
    failures: list[Failure] = []
    scores = list(score_all(asked, scorer, failures))
    for one in sorted(scores, key=lambda score: score.shape_text or 0):
        print(
            f"{one.shape_text:.3f} ± {one.shape_text_sd:.3f}  rank {one.shape_rank:>3}  {one.mesh}"
        )
    for failure in failures:
        print(f"failed: {failure.asked.name}: {failure.reason}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
