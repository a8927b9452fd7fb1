"""Parameters and arithmetic of the backbones, measured, without computing anything."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.backbones.registry import backbone_names, build_backbone, resolve_options

WIDTH = 1280  # of the teacher that the field uses
POINTS = {"tiny": 1024}  # points of a cloud; the others read the field's 10,000


def measure(name: str) -> dict[str, Any]:
    """Size of one backbone and GFLOP (2 a multiply-add) of the forward pass of one cloud."""
    points = POINTS.get(name, 10_000)
    options = resolve_options(name)
    with torch.device("meta"):
        model = build_backbone(name, WIDTH).eval()
        cloud = torch.empty(1, points, 3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(cloud, cloud)
    return {
        "name": name,
        "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
        "centroids": options["centroids"],
        "neighbours": options["neighbours"],
        "points": points,
        "gflop": counter.get_total_flops() / 1e9,
    }


def measure_all() -> list[dict[str, Any]]:
    """``measure`` of every registered backbone."""
    return [measure(name) for name in backbone_names()]
