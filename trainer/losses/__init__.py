"""Terms of the objective, one file each: alignment, relation distillation, their weighting."""

from trainer.losses.align import AlignLoss
from trainer.losses.distill import DistillLoss
from trainer.losses.features import Features, Several
from trainer.losses.queue import RelationQueue
from trainer.losses.weighting import build_weighting

__all__ = ["AlignLoss", "DistillLoss", "Features", "RelationQueue", "Several", "build_weighting"]
