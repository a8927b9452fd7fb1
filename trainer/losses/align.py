"""Alignment of 3D features with the teacher's image and text features.

Pseudo-code, with normalised features u (3D) and v_M (teacher) of a modality M:

    L = image_weight * L_image + text_weight * L_text + joint_weight * L_joint
    L_M = info_nce(u, v_M, s)            # kind = infonce: OpenShape, Uni3D, CLIP
        | multi_positive(u, all v_M, s)  # kind = multi_positive: every view or text a positive
        | siglip(u, all v_M, s, b)       # kind = siglip
    L_joint = L_text with w = W [u, v_image] + c, normalised, in place of u

The joint term lets point and image together find the text (MixCon3D, arXiv 2311.01734), by a
learned linear layer that is of no use after training: shapes are embedded by u alone.

s is the exponential of a learned parameter in [0, ln 100], b a learned bias; both are shared by
the modalities or separate. Rows without text are left out of the text term, as rows and as
columns. Formulas and sources are in ``trainer.losses.contrastive``.

*False negatives*, pairs of different objects that ought not to be pushed apart, can be dropped:
objects of one category, objects with equal texts, objects whose teacher embeddings of the
modality are more alike than a threshold. *Hard negatives* of InfoNCE, those that the student takes
to be most alike, can be made to count more, from the beginning or by and by.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from trainer.config import AlignConfig
from trainer.losses.bounds import bounded
from trainer.losses.contrastive import info_nce, multi_positive, siglip
from trainer.losses.features import Features, Several
from trainer.relations import unit

MAX_LOG_SCALE = math.log(100.0)

# Cosine from which two text embeddings are those of one text. Storing them in half precision and
# encoding them in different batches moves the cosine of equal texts by about 1e-7.
SAME_TEXT = 1 - 1e-5


class AlignLoss(nn.Module):
    """One of the contrastive losses with both modalities, a learnable scale and a bias."""

    def __init__(self, config: AlignConfig, width: int | None = None) -> None:
        """``width`` of the features is needed for the joint term."""
        super().__init__()
        self.config = config
        self.log_scale = self._scale_parameter()
        self.log_scale_text: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        self.bias_text: nn.Parameter | None = None
        if not config.shared_scale:
            self.log_scale_text = self._scale_parameter()
        if config.kind == "siglip":
            self.bias = self._bias_parameter()
            if not config.shared_scale:
                self.bias_text = self._bias_parameter()
        self.joint: nn.Linear | None = None
        self.log_scale_joint: nn.Parameter | None = None
        self.bias_joint: nn.Parameter | None = None
        if config.joint_weight > 0:
            if width is None:
                raise ValueError("the joint term needs the width of the features")
            self.joint = nn.Linear(2 * width, width)
            if not config.shared_scale:
                self.log_scale_joint = self._scale_parameter()
                if config.kind == "siglip":
                    self.bias_joint = self._bias_parameter()

    def _scale_parameter(self) -> nn.Parameter:
        value = torch.tensor(math.log(self.config.logit_scale))
        return nn.Parameter(value, requires_grad=self.config.learn_scale)

    def _bias_parameter(self) -> nn.Parameter:
        value = torch.tensor(self.config.logit_bias)
        return nn.Parameter(value, requires_grad=self.config.learn_bias)

    @property
    def scale(self) -> Tensor:
        """Multiplier of cosines, in [1, 100]: of both modalities, or of images."""
        return self._scale_of("image")

    def _scale_of(self, name: str) -> Tensor:
        own: nn.Parameter | None = getattr(self, f"log_scale_{name}", None)
        return bounded(self.log_scale if own is None else own, 0.0, MAX_LOG_SCALE).exp()

    def _bias_of(self, name: str) -> Tensor:
        own: nn.Parameter | None = getattr(self, f"bias_{name}", None)
        parameter = self.bias if own is None else own
        assert parameter is not None
        return parameter

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the scales back into their bounds; call it after each optimiser step."""
        for parameter in (self.log_scale, self.log_scale_text, self.log_scale_joint):
            if parameter is not None:
                parameter.clamp_(min=0.0, max=MAX_LOG_SCALE)

    def report(self) -> dict[str, Tensor]:
        """Current scales and biases by name."""
        found = {"logit_scale": self.scale}
        if self.bias is not None:
            found["logit_bias"] = self.bias
        for name in ("text", "joint"):
            if getattr(self, f"log_scale_{name}") is not None:
                found[f"logit_scale_{name}"] = self._scale_of(name)
            if getattr(self, f"bias_{name}") is not None:
                found[f"logit_bias_{name}"] = self._bias_of(name)
        return found

    def forward(
        self,
        local: Features,
        everyone: Features | None = None,
        offset: int = 0,
        ramp: Tensor | float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum, and the terms by name.

        ``everyone`` holds the gathered features of all processes (the local ones by default) and
        ``offset`` the place of local row 0 among them; the results are then shares that add up
        to those of the whole batch. ``ramp`` in [0, 1] is how much of ``hard_negatives`` applies.
        """
        hardness = self.config.hard_negatives * ramp if self.config.hard_negatives > 0 else None
        total = local.point.new_zeros((), dtype=torch.float32)
        terms: dict[str, Tensor] = {}
        weights = {"image": self.config.image_weight, "text": self.config.text_weight}
        everyone = everyone or local
        for name, weight in weights.items():
            if weight == 0 or getattr(local, name) is None or getattr(everyone, name) is None:
                continue
            terms[f"align_{name}"] = self._term(name, name, local, everyone, offset, hardness)
            total = total + weight * terms[f"align_{name}"]
        if self.joint is not None:
            mine = self._joined(local)
            theirs = mine if everyone is local else self._joined(everyone)
            terms["align_joint"] = self._term("joint", "text", mine, theirs, offset, hardness)
            total = total + self.config.joint_weight * terms["align_joint"]
        return total, terms

    def _joined(self, features: Features) -> Features:
        """The same with point and image together in place of the point."""
        assert self.joint is not None
        assert features.image is not None
        both_B2D = torch.cat([unit(features.point), unit(features.image)], dim=-1)
        return replace(features, point=self.joint(both_B2D))

    def _term(
        self,
        term: str,
        name: str,
        local: Features,
        everyone: Features,
        offset: int,
        hardness: Tensor | float | None,
    ) -> Tensor:
        """The loss of ``local.point`` against modality ``name``, by the scale of ``term``."""
        point_BD, all_point_GD = unit(local.point), unit(everyone.point)
        drop_BG = false_negatives(self.config, name, local, everyone, offset)
        scale = self._scale_of(term)
        if self.config.kind == "infonce":
            return info_nce(
                point_BD,
                unit(getattr(local, name)),
                scale,
                local.valid(name),
                all_point_GD=all_point_GD,
                all_teacher_GD=unit(getattr(everyone, name)),
                all_valid_G=everyone.valid(name),
                offset=offset,
                drop_BG=drop_BG,
                hardness=hardness,
            )
        mine, theirs = _unit_several(local, name), _unit_several(everyone, name)
        if self.config.kind == "siglip":
            return siglip(
                point_BD,
                mine,
                scale,
                self._bias_of(term),
                n_rows=len(everyone),
                everyone=theirs,
                offset=offset,
                drop_BG=drop_BG,
            )
        return multi_positive(
            point_BD,
            mine,
            scale,
            all_point_GD=all_point_GD,
            everyone=theirs,
            offset=offset,
            drop_BG=drop_BG,
        )


def _unit_several(features: Features, name: str) -> Several:
    several = features.several(name)
    assert several is not None
    return Several(unit(several.values), several.owner)


@torch.no_grad()
def false_negatives(
    config: AlignConfig, modality: str, local: Features, everyone: Features, offset: int = 0
) -> Tensor | None:
    """(B, G) bool: pairs of different objects to be left out of the term; None where none is asked.

    Where an object has several vectors, those that stand for it are compared.
    """
    drop_BG: Tensor | None = None

    def add(found_BG: Tensor) -> None:
        nonlocal drop_BG
        drop_BG = found_BG if drop_BG is None else drop_BG | found_BG

    def alike(name: str, above: float) -> Tensor:
        similarity_BG = unit(getattr(local, name)) @ unit(getattr(everyone, name)).T
        both_BG = local.valid(name)[:, None] & everyone.valid(name)
        return (similarity_BG > above) & both_BG

    if config.drop_same_category:
        assert local.category is not None
        assert everyone.category is not None
        add((local.category[:, None] == everyone.category) & (local.category >= 0)[:, None])
    if config.drop_same_text and local.text is not None:
        add(alike("text", SAME_TEXT))
    threshold = config.drop_image_above if modality == "image" else config.drop_text_above
    if threshold < 1:
        add(alike(modality, threshold))
    if drop_BG is not None:
        places_B = torch.arange(len(local), device=drop_BG.device)
        drop_BG[places_B, places_B + offset] = False
    return drop_BG
