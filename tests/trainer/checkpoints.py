"""Checkpoints of untrained students, as small as they get."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.trainer.conftest import WIDTH, Synth, make_manifest, small_recipe
from trainer import checkpoint
from trainer.backbones import Backbone, build_backbone, resolve_options

N_POINTS = 64
SMALLEST: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 32, "heads": 1, "head_dim": 32, "mlp_dim": 32, "depth": 1, "centroids": 8},
    "pointbert-5m": {
        "dim": 32,
        "heads": 2,
        "head_dim": 16,
        "mlp_dim": 32,
        "depth": 1,
        "local_dims": [16, 16],
        "centroids": 8,
        "neighbours": 16,
    },
    "uni3d-ti": {"depth": 1, "centroids": 8, "neighbours": 8, "local_dim": 16},
    "pointnext-s": {"centroids": 32, "stem_dim": 8, "neighbours": 8},
}


def write_checkpoint(path: Path, backbone: str = "tiny", seed: int = 5, **changes: Any) -> Backbone:
    """A checkpoint of random weights; returns its encoder in eval mode."""
    torch.manual_seed(seed)
    options = SMALLEST[backbone]
    model = build_backbone(backbone, WIDTH, options)
    config = {
        "recipe": small_recipe().model_dump(mode="json"),
        "backbone": {"name": backbone, "options": resolve_options(backbone, options)},
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "teacher": asdict(make_manifest(Synth()).teacher),
        "data": {
            "shards": [{"name": "toys", "n_rows": 90, "config_hash": "0123"}],
            "n_train": 80,
            "n_val": 10,
        },
        "n_points": N_POINTS,
        "up_axis": "+y",
        "neutral_rgb": 102,
        "ema": False,
        "step": seed,
        "samples_seen": 640,
        "validation": {"rows": 10, "top1_image": 0.75},
        **changes,
    }
    checkpoint.save(path, config, model.state_dict(), {"step": seed})
    return model.eval()
