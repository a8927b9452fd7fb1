"""Multi-modal relation distillation: the student's relations follow the teacher's.

After arXiv 2407.14007 (see ``trainer.relations`` for what that means). With relations psi within
a modality and phi between two, P the student's 3D features, I and T the teacher's image and text
features, and D a discrepancy:

    intra_image = D(psi(I), psi(P))
    intra_text  = D(psi(T), psi(P))                          # rows with text
    cross       = ( D(phi(I, T), phi(P, T))                  # rows with text
                  + D(phi(T, I), phi(P, I)) ) / 2
    L = weighting(intra_image, intra_text, cross)

Teacher and student, intra and cross have a temperature each: image-text cosines lie in a far
narrower band than image-image cosines. The teacher is detached. Rows without text are masked as
rows and as columns of every relation in which text takes part. Equal captions are legal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import DistillConfig
from trainer.losses.features import Features
from trainer.losses.weighting import build_weighting
from trainer.relations import centred, discrepancy, pair_mask, relation, unit


class DistillLoss(nn.Module):
    """All distillation terms and their weighting."""

    def __init__(self, config: DistillConfig) -> None:
        super().__init__()
        self.config = config
        self.weighting = build_weighting(config)

    def forward(
        self, local: Features, everyone: Features | None = None, offset: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum without ``config.weight``, and the terms by name.

        ``everyone`` holds the gathered features of all processes (the local ones by default) and
        ``offset`` the place of local row 0 among them.
        """
        everyone = everyone or local
        config = self.config
        sides = _Sides(local, everyone, offset, config)
        terms: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        if config.intra_image:
            terms["intra_image"] = sides.intra("image")
        if config.intra_text:
            terms["intra_text"] = sides.intra("text")
        if config.cross:
            parts["cross_text"] = sides.cross(teacher_row="image", column="text")
            parts["cross_image"] = sides.cross(teacher_row="text", column="image")
            terms["cross"] = (parts["cross_text"] + parts["cross_image"]) / 2
        return self.weighting(terms), {**terms, **parts}


class _Sides:
    """Unit features of both sides of the comparison, rows (local) and columns (gathered)."""

    def __init__(
        self, local: Features, everyone: Features, offset: int, config: DistillConfig
    ) -> None:
        self.config, self.offset = config, offset
        self.valid = {
            "image": (local.everyone, everyone.everyone),
            "text": (local.has_text, everyone.has_text),
        }
        self.student = {"point": (unit(local.point), unit(everyone.point))}
        self.teacher: dict[str, tuple[Tensor, Tensor]] = {}
        for name in ("image", "text"):
            rows, columns = getattr(local, name), getattr(everyone, name)
            if rows is None or columns is None:
                continue
            pair = (unit(rows.detach()), unit(columns.detach()))
            self.student[name] = self.teacher[name] = pair
        if config.centre != "none":
            self.teacher = {n: self._centre(p, self.valid[n][1]) for n, p in self.teacher.items()}
        if config.centre == "both":
            point = self._centre(self.student["point"], everyone.everyone)
            self.student = {"point": point, **self.teacher}

    @staticmethod
    def _centre(pair: tuple[Tensor, Tensor], valid_G: Tensor) -> tuple[Tensor, Tensor]:
        rows_BD, columns_GD = pair
        weight_G1 = valid_G[:, None].to(columns_GD.dtype)
        mean_D = (columns_GD * weight_G1).sum(0) / weight_G1.sum().clamp(min=1)
        return centred(rows_BD, mean_D), centred(columns_GD, mean_D)

    def intra(self, modality: str) -> Tensor:
        """D(psi(modality), psi(P)) over the rows that have the modality."""
        rows_B, columns_G = self.valid[modality]
        mask_BG = pair_mask(
            rows_B,
            columns_G,
            without_diagonal=self.config.mask_diagonal,
            offset=self.offset,
        )
        return self._compare(
            self.teacher[modality],
            self.student["point"],
            mask_BG,
            self.config.tau_teacher_intra,
            self.config.tau_student_intra,
        )

    def cross(self, *, teacher_row: str, column: str) -> Tensor:
        """D(phi(teacher_row, column), phi(P, column)); both modalities must be there."""
        rows_B, columns_G = self.valid["text"]
        mask_BG = pair_mask(rows_B, columns_G, without_diagonal=False)
        return self._compare(
            (self.teacher[teacher_row][0], self.teacher[column][1]),
            (self.student["point"][0], self.student[column][1]),
            mask_BG,
            self.config.tau_teacher_cross,
            self.config.tau_student_cross,
        )

    def _compare(
        self,
        teacher: tuple[Tensor, Tensor],
        student: tuple[Tensor, Tensor],
        mask_BG: Tensor,
        tau_teacher: float,
        tau_student: float,
    ) -> Tensor:
        config = self.config
        with torch.no_grad():
            target_BG = relation(*teacher, mask_BG, config.representation, tau_teacher)
        given_BG = relation(*student, mask_BG, config.representation, tau_student)
        return discrepancy(
            target_BG,
            given_BG,
            mask_BG,
            config.discrepancy,
            log_probabilities=config.representation == "normalised_similarity",
            huber_delta=config.huber_delta,
        )
