"""AdamW over the parameters of a module, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from trainer.config import OptimConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Every trainable parameter exactly once: matrices with decay, all others without.

    Vectors and scalars (biases, norms, the CLS token, the logit scale, the weights of the terms)
    are not decayed: pulling them to zero is no regularisation.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; fused where all parameters are on CUDA."""
    return torch.optim.AdamW(
        parameter_groups(module, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=all(p.is_cuda for p in module.parameters()),
    )


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Rate of step ``step`` (from 0) of ``total``: linear warm-up, then a cosine to ``min_lr``."""
    warmup = config.warmup * total
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2


def ramp(share: float, step: int, total: int) -> float:
    """Factor in (0, 1] that rises linearly over the first ``share`` of the run."""
    warmup = share * total
    return min(1.0, (step + 1) / (warmup + 1))
