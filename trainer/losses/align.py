"""Contrastive alignment of 3D features with the teacher's image and text features (InfoNCE).

Pseudo-code, for one modality M with normalised features u (3D) and v (teacher):

    logits = s * u @ v.T                      # s: learnable scale, exp of a parameter, <= 100
    L_M = (cross_entropy(logits, i) + cross_entropy(logits.T, i)) / 2
    L = image_weight * L_image + text_weight * L_text

Rows without text are left out of the text term, as rows and as columns.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import AlignConfig
from trainer.losses.features import Features
from trainer.relations import unit

MAX_LOG_SCALE = math.log(100.0)


def info_nce(
    point_BD: Tensor,
    teacher_BD: Tensor,
    scale: Tensor | float,
    valid_B: Tensor | None = None,
    *,
    all_point_GD: Tensor | None = None,
    all_teacher_GD: Tensor | None = None,
    all_valid_G: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Symmetric InfoNCE of unit features, mean over valid rows; 0 when no row is valid.

    The ``all_*`` are the features of every process (the local ones by default), ``offset`` the
    place of local row 0 among them: the local part of the global loss. Invalid columns are set
    to -inf, so they are no negatives.
    """
    if valid_B is None:
        valid_B = torch.ones(len(point_BD), dtype=torch.bool, device=point_BD.device)
    all_point_GD = point_BD if all_point_GD is None else all_point_GD
    all_teacher_GD = teacher_BD if all_teacher_GD is None else all_teacher_GD
    all_valid_G = valid_B if all_valid_G is None else all_valid_G
    target_B = torch.arange(len(point_BD), device=point_BD.device) + offset
    loss_B = torch.zeros(len(point_BD), dtype=point_BD.dtype, device=point_BD.device)
    for rows_BD, columns_GD in ((point_BD, all_teacher_GD), (teacher_BD, all_point_GD)):
        logits_BG = (scale * rows_BD @ columns_GD.T).masked_fill(~all_valid_G, -torch.inf)
        # Rows that do not count get finite logits: -inf against their own column would be NaN.
        logits_BG = logits_BG.masked_fill(~valid_B[:, None], 0.0)
        loss_B = loss_B + F.cross_entropy(logits_BG, target_B, reduction="none")
    return (loss_B * valid_B).sum() / (2 * valid_B.sum().clamp(min=1))


class AlignLoss(nn.Module):
    """InfoNCE with both modalities and one learnable scale."""

    def __init__(self, config: AlignConfig) -> None:
        super().__init__()
        self.config = config
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(config.logit_scale)), requires_grad=config.learn_scale
        )

    @property
    def scale(self) -> Tensor:
        """Multiplier of cosines, at most 100."""
        return self.log_scale.clamp(max=MAX_LOG_SCALE).exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the parameter back under its bound; call it after each optimiser step.

        Without it a parameter beyond the bound gets no gradient and stays there.
        """
        self.log_scale.clamp_(max=MAX_LOG_SCALE)

    def forward(
        self, local: Features, everyone: Features | None = None, offset: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum, and the terms by name. ``everyone`` holds the gathered features."""
        total = local.point.new_zeros((), dtype=torch.float32)
        terms: dict[str, Tensor] = {}
        weights = {"image": self.config.image_weight, "text": self.config.text_weight}
        everyone = everyone or local
        for name, weight in weights.items():
            teacher, all_teacher = getattr(local, name), getattr(everyone, name)
            if weight == 0 or teacher is None or all_teacher is None:
                continue
            text = name == "text"
            terms[f"align_{name}"] = info_nce(
                unit(local.point),
                unit(teacher),
                self.scale,
                local.has_text if text else local.everyone,
                all_point_GD=unit(everyone.point),
                all_teacher_GD=unit(all_teacher),
                all_valid_G=everyone.has_text if text else everyone.everyone,
                offset=offset,
            )
            total = total + weight * terms[f"align_{name}"]
        return total, terms
