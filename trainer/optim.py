"""AdamW over the parameters of a module, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from trainer.backbones.registry import Backbone
from trainer.config import OptimConfig
from trainer.parallel import is_shared

NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
EMBEDDINGS = (nn.Embedding,)


def parameter_groups(
    module: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Every trainable parameter exactly once, with its weight decay and ``lr_scale``.

    No decay for vectors and scalars (biases, the CLS token, the logit scale, the weights of the
    terms), for all of norms and embeddings, and for what a backbone names in ``no_decay``:
    pulling them to zero is no regularisation. The rate of layer l of a backbone of L layers is
    multiplied by ``layer_decay`` ** (L - 1 - l); what is of no backbone learns at the full rate.
    """
    undecayed, scales = _exceptions(module, layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():  # a shared one comes once
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 or name in undecayed else weight_decay
        scale = scales.get(name, 1.0)
        group = groups.setdefault(
            (scale, decay), {"params": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
    return list(groups.values())


def _exceptions(module: nn.Module, layer_decay: float) -> tuple[set[str], dict[str, float]]:
    """Names without weight decay, and names with a rate of their own."""
    undecayed: set[str] = set()
    scales: dict[str, float] = {}
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(part, (*NORMS, *EMBEDDINGS)):
            undecayed |= {f"{prefix}{name}" for name, _ in part.named_parameters()}
        if isinstance(part, Backbone):
            undecayed |= {f"{prefix}{name}" for name in part.no_decay()}
            for name, _ in part.named_parameters():
                above = part.n_layers - 1 - part.layer_of(name)
                scales[f"{prefix}{name}"] = layer_decay**above
    return undecayed, scales


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; fused where all parameters are on CUDA or all on a CPU (a single walk through memory).

    One parameter at a time in groups of which some are shared out among processes and some are not
    (``trainer.parallel``): these do not mix in one call.
    """
    parameters = list(module.parameters())
    one_kind = all(p.is_cuda for p in parameters) or all(p.is_cpu for p in parameters)
    groups = parameter_groups(module, config.weight_decay, config.layer_decay)
    for group in groups:
        mixed = len({is_shared(p) for p in group["params"]}) > 1
        group |= {"fused": one_kind and not mixed, "foreach": False if mixed else None}
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def warmup_steps(config: OptimConfig, total: int) -> float:
    """Steps, of ``total``, over which the rate rises."""
    return float(config.warmup_steps or config.warmup * total)


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Rate of step ``step`` (from 0) of ``total``: linear warm-up, then the schedule.

    The cosine falls to ``min_lr`` at the end of the run; the step schedule multiplies by
    ``decay_rate`` every ``decay_every`` steps, counted from the start, however long the run is.
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "step":
        return max(config.min_lr, config.lr * config.decay_rate ** (step // config.decay_every))
    done = (step - warmup) / max(total - warmup, 1)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2


def ramp(share: float, step: int, total: int) -> float:
    """Factor in (0, 1] that rises linearly over the first ``share`` of the run."""
    warmup = share * total
    return min(1.0, (step + 1) / (warmup + 1))
