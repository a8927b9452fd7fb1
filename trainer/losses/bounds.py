"""Learned numbers that are kept within bounds."""

from __future__ import annotations

from torch import Tensor


def bounded(parameter: Tensor, low: float, high: float) -> Tensor:
    """``parameter`` in [low, high], with the gradient of ``parameter`` itself.

    The gradient of ``Tensor.clamp`` is 0 at a bound and beyond it, so a parameter that has once
    been brought back to a bound would stay there for the rest of the run. Here it leaves when the
    loss asks it to; whoever learns it brings it back after a step that goes outwards.
    """
    return parameter.detach().clamp(low, high) + (parameter - parameter.detach())
