"""Relations within and between modalities, and how far two of them are apart.

The heart of multi-modal relation distillation (MRD, ECCV 2024, arXiv 2407.14007). No code of the
paper was released: this is an implementation after the abstract and public summaries.

Let u = f / |f| be normalised features of a batch. A *relation* is a table over pairs (i, j):
row i says how object i of one modality stands to every object j of the same (intra-modal, psi)
or another modality (cross-modal, phi). Three representations:

- ``normalised_similarity``: R_ij = softmax_j(<u_i, v_j> / tau), kept as log-probabilities. The
  one that MRD favours, with Jeffreys' divergence.
- ``similarity``: R_ij = <u_i, v_j>, in [-1, 1].
- ``distance``: R_ij = |u_i - v_j| / mu, mu the mean over all pairs: the distance-wise potential
  of relational knowledge distillation (RKD, CVPR 2019, arXiv 1904.05068, eq. 7 and 8).

Six discrepancies between a teacher's relation p and a student's q:

- ``jeffreys``:   sum_j (p_j - q_j)(log p_j - log q_j) = KL(p|q) + KL(q|p), mean over rows
- ``kl``:         KL(p|q) = sum_j p_j (log p_j - log q_j), mean over rows (forward)
- ``reverse_kl``: KL(q|p) = sum_j q_j (log q_j - log p_j), mean over rows
- ``l1``, ``l2``: |p - q|, (p - q)^2, mean over pairs; of ``normalised_similarity`` they compare
  the probabilities
- ``huber``:      (p - q)^2 / 2 up to delta, delta (|p - q| - delta / 2) beyond, mean over pairs
  (RKD eq. 9 with delta = 1)

Divergences compare rows that sum to one, so they need ``normalised_similarity``.

With student logits a, q = softmax(a), the gradient of Jeffreys in a is
(q - p) + q * (log(q / p) - KL(q|p)).

All arithmetic is at least float32. Pairs outside the mask take no part: they are left out of the
softmax by -inf, not multiplied by 0. Shape suffixes: B rows (local), G columns (all of the
gathered batch, and a queue where there is one; G = B on one device without), D width.

A batch that is spread over processes: every process has some rows and all columns. Its *share* is
its sum divided by the counts of the whole batch, so that shares add up to the value of the whole;
``mean`` and ``count`` bring in what concerns the whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import DIVERGENCES, Discrepancy, Representation

# float32 rounds the numbers of a unit vector by up to 6e-8 of each, and their mean over a batch by
# some times as much. What differs by more than rounding is orders of magnitude farther apart.
ROUNDING = 1e-5


def widen(values: Tensor) -> Tensor:
    """At least float32: half-precision features are widened before any loss arithmetic."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def unit(features_BD: Tensor) -> Tensor:
    """Rows of length 1, in at least float32; a zero row stays zero."""
    return F.normalize(widen(features_BD), dim=-1)


def centred(features_BD: Tensor, mean_D: Tensor) -> Tensor:
    """Unit rows minus a mean, of length 1 again; zero, without gradient, where they are the mean.

    That is up to ``ROUNDING``: a direction of rounding errors is none to learn from, and its
    gradient would be as large as they are small.
    """
    difference_BD = features_BD - mean_D
    length_B1 = torch.linalg.vector_norm(difference_BD, dim=-1, keepdim=True)
    apart_B1 = length_B1 > ROUNDING
    unit_BD = difference_BD / torch.where(apart_B1, length_B1, 1.0)
    return torch.where(apart_B1, unit_BD, 0.0)


def pair_mask(
    rows_B: Tensor, columns_G: Tensor, *, without_diagonal: bool, offset: int = 0
) -> Tensor:
    """(B, G) bool: pairs whose row and column are both valid.

    ``offset`` is the place of row 0 among the columns; ``without_diagonal`` leaves out each
    object's relation to itself.
    """
    mask_BG = rows_B[:, None] & columns_G[None, :]
    if without_diagonal:
        own_B = torch.arange(len(rows_B), device=mask_BG.device) + offset
        mask_BG[torch.arange(len(rows_B), device=mask_BG.device), own_B] = False
    return mask_BG


def relation(
    rows_BD: Tensor,
    columns_GD: Tensor,
    mask_BG: Tensor,
    representation: Representation = "normalised_similarity",
    tau: float | Tensor = 0.1,
    *,
    mean: Tensor | None = None,
) -> Tensor:
    """(B, G) relation of unit rows to unit columns; 0 outside the mask.

    ``normalised_similarity`` gives log-probabilities, which sum to one as probabilities over the
    masked columns of a row. ``tau`` is read by that representation only, ``mean`` (the mean
    distance, by default that of these pairs) by ``distance`` only.
    """
    if representation == "distance":
        distance_BG = distances(rows_BD, columns_GD, mask_BG)
        if mean is None:
            mean = distance_BG.sum() / mask_BG.sum().clamp(min=1)
        return distance_BG / mean.clamp(min=1e-12)
    similarity_BG = rows_BD @ columns_GD.T
    if representation == "similarity":
        return similarity_BG.masked_fill(~mask_BG, 0.0)
    # A row without any valid column would be all -inf and its logarithms NaN, which the gradient
    # survives and anomaly detection does not: it keeps all columns here and is cleared below.
    usable_BG = mask_BG | ~mask_BG.any(dim=1, keepdim=True)
    logits_BG = (similarity_BG / tau).masked_fill(~usable_BG, -torch.inf)
    return logits_BG.log_softmax(dim=1).masked_fill(~mask_BG, 0.0)


def neighbours(log_BG: Tensor, mask_BG: Tensor) -> Tensor:
    """(B,) objects that each row of log-probabilities spreads over: exp of its entropy.

    Between 1, all on one, and the number of the row's pairs, all alike; 0 for a row without pairs.
    """
    entropy_B = -(log_BG.exp() * log_BG).sum(dim=1)  # 0 outside the mask
    return torch.where(mask_BG.any(dim=1), entropy_B.exp(), 0.0)


def distances(rows_BD: Tensor, columns_GD: Tensor, mask_BG: Tensor) -> Tensor:
    """(B, G) Euclidean distances, 0 outside the mask and without gradient where features agree."""
    squared_BG = (
        rows_BD.square().sum(-1, keepdim=True)
        + columns_GD.square().sum(-1)
        - 2 * rows_BD @ columns_GD.T
    )
    # The root has an infinite slope at 0: equal features and masked pairs get no gradient.
    positive_BG = mask_BG & (squared_BG > 1e-12)
    distance_BG = torch.where(positive_BG, squared_BG, 1.0).sqrt()
    return torch.where(positive_BG, distance_BG, 0.0)


def discrepancy(
    teacher_BG: Tensor,
    student_BG: Tensor,
    mask_BG: Tensor,
    kind: Discrepancy = "jeffreys",
    *,
    log_probabilities: bool = True,
    huber_delta: float = 1.0,
    count: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """How far the student's relation is from the teacher's: a non-negative scalar.

    Both come from ``relation`` with the same mask; ``log_probabilities`` says that they are of
    ``normalised_similarity``. Divergences are means over the rows with a valid pair, the others
    means over the valid pairs; ``count`` gives (rows, pairs) of the whole batch where these rows
    are a part of it. 0 when nothing is valid. Raises ``ValueError`` for a divergence of relations
    that are not log-probabilities.
    """
    rows, pairs = count or (mask_BG.any(dim=1).sum(), mask_BG.sum())
    if kind in DIVERGENCES:
        if not log_probabilities:
            raise ValueError(f"{kind} compares log-probabilities")
        return _divergence(teacher_BG, student_BG, kind) / rows.clamp(min=1)
    if log_probabilities:
        teacher_BG, student_BG = teacher_BG.exp(), student_BG.exp()
    # Outside the mask both are equal (0, or 1 after exp): they add nothing.
    if kind == "l1":
        error_BG = (student_BG - teacher_BG).abs()
    elif kind == "l2":
        error_BG = (student_BG - teacher_BG).square()
    else:
        error_BG = F.huber_loss(student_BG, teacher_BG, reduction="none", delta=huber_delta)
    return error_BG.sum() / pairs.clamp(min=1)


def _divergence(teacher_BG: Tensor, student_BG: Tensor, kind: str) -> Tensor:
    """Sum over rows and columns; both are 0 outside the mask, so masked pairs add nothing."""
    log_ratio_BG = teacher_BG - student_BG
    if kind == "jeffreys":
        terms_BG = (teacher_BG.exp() - student_BG.exp()) * log_ratio_BG
    elif kind == "kl":
        terms_BG = teacher_BG.exp() * log_ratio_BG
    else:
        terms_BG = -student_BG.exp() * log_ratio_BG
    return terms_BG.sum()
