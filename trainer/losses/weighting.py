"""Balance between the distillation terms: learned and bounded, or fixed.

A free non-negative multiplier of a non-negative loss drifts to 0, and a softmax over losses
collapses onto the smallest one. So the learned weights are either a *bounded convex mixture*

    w = floor + (1 - n * floor) * softmax(s),   sum w = 1,   each w >= floor

of the n enabled terms (the image's relations, the text's, and the cross-modal ones), or
*uncertainty weighting* exp(-s) L + s (Kendall et al., CVPR 2018, arXiv 1705.07115), |s| <= 5, whose
weight settles at 1 / L. Fixed weights are the control arm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.config import DistillConfig

MAX_LOG_VARIANCE = 5.0  # uncertainty weights stay in [exp(-5), exp(5)], also of a vanishing loss


class TermWeighting(nn.Module, ABC):
    """Combines named terms; ``names`` fixes their order."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    @abstractmethod
    def weights(self) -> Tensor:
        """(n,) current multipliers of the terms."""

    def forward(self, terms: Mapping[str, Tensor], share: float = 1.0) -> Tensor:
        """Scalar: the weighted sum of the terms, plus ``share`` of what the weighting costs.

        ``share`` is the part of the batch that the terms are shares of.
        """
        del share
        return (self.weights() * torch.stack([terms[name] for name in self.names])).sum()

    def clamp(self) -> None:
        """Bring parameters back into their bounds; called after each optimiser step."""

    def report(self) -> dict[str, float]:
        """Current multipliers by term."""
        values = self.weights().detach().tolist()
        return {f"weight_{name}": value for name, value in zip(self.names, values, strict=True)}


class Mixture(TermWeighting):
    """Learned convex mixture in which no weight falls below ``floor``."""

    def __init__(self, names: list[str], floor: float) -> None:
        super().__init__(names)
        if not 0 <= floor * len(names) <= 1:
            raise ValueError(f"floor {floor} is too large for {len(names)} terms")
        self.floor = floor
        self.logits = nn.Parameter(torch.zeros(len(names)))

    def weights(self) -> Tensor:
        """(n,) at least ``floor`` each, with sum 1."""
        return self.floor + (1 - len(self.names) * self.floor) * self.logits.softmax(0)


class Uncertainty(TermWeighting):
    """exp(-s) L + s for each term, with a learned s."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.log_variance = nn.Parameter(torch.zeros(len(names)))

    def weights(self) -> Tensor:
        """(n,) exp(-s)."""
        return (-self.log_variance).exp()

    def forward(self, terms: Mapping[str, Tensor], share: float = 1.0) -> Tensor:
        """Weighted sum plus the sum of s. It may be negative."""
        return super().forward(terms) + share * self.log_variance.sum()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep s within its bounds."""
        self.log_variance.clamp_(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)


class Fixed(TermWeighting):
    """Given weights."""

    def __init__(self, names: list[str], values: list[float]) -> None:
        super().__init__(names)
        self.register_buffer("values", torch.tensor(values), persistent=False)

    def weights(self) -> Tensor:
        """(n,) as given."""
        values: Tensor = self.get_buffer("values")
        return values


def build_weighting(config: DistillConfig) -> TermWeighting:
    """The weighting of the enabled terms."""
    fixed = {
        "intra_image": config.fixed_intra_image,
        "intra_text": config.fixed_intra_text,
        "cross": config.fixed_cross,
    }
    names = [name for name in fixed if getattr(config, name)]
    if config.weighting == "mixture":
        return Mixture(names, config.floor)
    if config.weighting == "uncertainty":
        return Uncertainty(names)
    return Fixed(names, [fixed[name] for name in names])
