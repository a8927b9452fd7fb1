"""Point-cloud encoders behind one registry and one signature.

A backbone is an ``nn.Module`` with ``forward(xyz_BN3, rgb_BN3) -> (B, D)``: float32 coordinates
in the unit sphere (+y up) and colours in [0, 1], points in farthest-point order; the result is
not normalised. ``centroids`` tells how many leading points must be in that order.
"""

from trainer.backbones.registry import (
    Backbone,
    backbone_names,
    build_backbone,
    least_points,
    load_trunk,
    resolve_options,
)

__all__ = [
    "Backbone",
    "backbone_names",
    "build_backbone",
    "least_points",
    "load_trunk",
    "resolve_options",
]
