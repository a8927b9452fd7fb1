"""Parameters and arithmetic of the backbones, measured, without computing anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.backbones.pointbert import Block
from trainer.backbones.registry import Backbone, backbone_names, build_backbone, resolve_options

WIDTHS = {"uni3d": 1024}  # of the teacher of the published recipe
WIDTH = 1280  # of the teacher that the field uses
POINTS = {"tiny": 1024}  # points of a cloud; the others read the field's 10,000


def on_meta(name: str, width: int, options: Mapping[str, Any] | None = None) -> Backbone:
    """The backbone with shapes and without values: any size costs nothing."""
    with torch.device("meta"):
        return build_backbone(name, width, dict(options or {}))


def count_parameters(model: torch.nn.Module) -> int:
    """Numbers that are learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure(
    name: str, options: Mapping[str, Any] | None = None, *, training: bool = False
) -> dict[str, Any]:
    """Size of one backbone and GFLOP (2 a multiply-add) of the forward pass of one cloud.

    ``training`` leaves out the tokens that patch dropout drops. The search for neighbours is not
    counted: it is no matrix product. The last block of a Point-BERT counts in whole, as in the
    published figures, though the patches in it are never computed (8 % of the 32M).
    """
    points, width = POINTS.get(name, 10_000), WIDTHS.get(name.split("-")[0], WIDTH)
    resolved = resolve_options(name, dict(options or {}))
    model = on_meta(name, width, options).train(training)
    for block in getattr(model, "blocks", ()):
        if isinstance(block, Block):
            block.cls_only = False
    cloud = torch.empty(1, points, 3, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(cloud, cloud)
    parameters = count_parameters(model)
    return {
        "name": name,
        "parameters": parameters,
        "parameters_m": parameters / 1e6,
        "width": width,
        "tokens": model.tokens,
        "centroids": model.centroids,
        "neighbours": resolved.get("neighbours"),  # None: a backbone that groups no points
        "points": points,
        "gflop": counter.get_total_flops() / 1e9,
    }


def measure_all() -> list[dict[str, Any]]:
    """``measure`` of every registered backbone."""
    return [measure(name) for name in backbone_names()]
