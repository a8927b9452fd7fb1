"""Contrastive losses of unit features as pure functions: InfoNCE, multi-positive, SigLIP.

Shape suffixes: B local rows, G rows of all processes, S local teacher vectors, Z those of all
processes, D width. Each function takes the local rows against the columns of everyone (their own
by default) and returns its share: the sum over local rows divided by the valid rows of everyone.
Shares of all processes add up to the loss of the whole batch. ``offset`` is the place of local
row 0 among all rows.

``drop_BG`` marks pairs of objects that are no negatives of one another; an object's own pair is
never dropped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.losses.features import Several


def info_nce(
    point_BD: Tensor,
    teacher_BD: Tensor,
    scale: Tensor | float,
    valid_B: Tensor | None = None,
    *,
    all_point_GD: Tensor | None = None,
    all_teacher_GD: Tensor | None = None,
    all_valid_G: Tensor | None = None,
    offset: int = 0,
    drop_BG: Tensor | None = None,
    hardness: Tensor | float | None = None,
) -> Tensor:
    """Symmetric InfoNCE, mean over valid rows; 0 when no row is valid.

    As in CLIP (arXiv 2103.00020, figure 3) and, of point features, OpenShape and Uni3D:
    L = -1/2n sum_i [log softmax_j(s <u_i, v_j>)_i + log softmax_j(s <v_i, u_j>)_i]. Invalid and
    dropped columns are -inf: they are no negatives. ``hardness`` weights the others (see
    ``hard_negatives``).
    """
    if valid_B is None:
        valid_B = torch.ones(len(point_BD), dtype=torch.bool, device=point_BD.device)
    all_point_GD = point_BD if all_point_GD is None else all_point_GD
    all_teacher_GD = teacher_BD if all_teacher_GD is None else all_teacher_GD
    all_valid_G = valid_B if all_valid_G is None else all_valid_G
    target_B = torch.arange(len(point_BD), device=point_BD.device) + offset
    out_BG = ~all_valid_G if drop_BG is None else ~all_valid_G | drop_BG
    loss_B = torch.zeros(len(point_BD), dtype=point_BD.dtype, device=point_BD.device)
    for rows_BD, columns_GD in ((point_BD, all_teacher_GD), (teacher_BD, all_point_GD)):
        logits_BG = (scale * rows_BD @ columns_GD.T).masked_fill(out_BG, -torch.inf)
        # Rows that do not count get finite logits: -inf against their own column would be NaN.
        logits_BG = logits_BG.masked_fill(~valid_B[:, None], 0.0)
        if hardness is not None:
            logits_BG = logits_BG + hard_negatives(logits_BG.detach(), target_B, hardness)
        loss_B = loss_B + F.cross_entropy(logits_BG, target_B, reduction="none")
    return (loss_B * valid_B).sum() / (2 * all_valid_G.sum().clamp(min=1))


def hard_negatives(logits_BG: Tensor, target_B: Tensor, hardness: Tensor | float) -> Tensor:
    """(B, G) what is added to logits so that the negatives of a row count by their likeness to it.

    After HN-NCE (arXiv 2301.02280) and Robinson et al. (arXiv 2010.04592), the row's own column at
    its full weight: in the sum over a row's n negatives the term of j has the weight
    w_j = n exp(beta l_j) / sum_k exp(beta l_k), l the logits; beta = 0 weights all alike. Added is
    log w, 0 for the row's own column. The weights are taken for constants: the model does not
    learn by changing them. A column of -inf stays out.
    """
    own_BG = torch.zeros_like(logits_BG, dtype=torch.bool).scatter_(1, target_B[:, None], True)
    out_BG = own_BG | logits_BG.isneginf()
    share_BG = (hardness * logits_BG).masked_fill(out_BG, -torch.inf)
    count_B1 = (~out_BG).sum(1, keepdim=True, dtype=logits_BG.dtype)
    log_weight_BG = share_BG - share_BG.logsumexp(1, keepdim=True) + count_B1.log()
    return torch.where(out_BG, 0.0, log_weight_BG)


def multi_positive(
    point_BD: Tensor,
    teacher: Several,
    scale: Tensor | float,
    *,
    all_point_GD: Tensor | None = None,
    everyone: Several | None = None,
    offset: int = 0,
    drop_BG: Tensor | None = None,
) -> Tensor:
    """InfoNCE with every view or text of an object as its positives, mean over objects.

    From points to the teacher, supervised contrastive learning (SupCon, arXiv 2004.11362, eq. 2,
    L_out): -1/|P_i| sum_{p in P_i} log softmax_z(s <u_i, v_z>)_p, the softmax over the vectors of
    all objects. Back, each vector has one positive: the mean over an object's vectors of
    -log softmax_j(s <v_p, u_j>)_i. Objects without a vector take no part. With one vector an
    object it is InfoNCE.

    The owners of ``everyone`` are places among all rows, those of ``teacher`` among the local.
    """
    all_point_GD = point_BD if all_point_GD is None else all_point_GD
    everyone = teacher if everyone is None else everyone
    n_B, valid_G = _counts(teacher.owner, len(point_BD)), _counts(everyone.owner, len(all_point_GD))
    valid_B, valid_G = n_B > 0, valid_G > 0
    weight_B = 1 / n_B.clamp(min=1).to(point_BD.dtype)

    own_BZ = _own(everyone.owner, len(point_BD), offset)
    out_BZ = (everyone.owner < 0)[None].expand_as(own_BZ)
    if drop_BG is not None:
        out_BZ = out_BZ | drop_BG[:, everyone.owner.clamp(min=0)]
    # Rows that do not count get finite logits: a row of -inf alone would be NaN.
    logits_BZ = (scale * point_BD @ everyone.values.T).masked_fill(out_BZ, -torch.inf)
    log_p_BZ = logits_BZ.masked_fill(~valid_B[:, None], 0.0).log_softmax(1)
    loss = -(torch.where(own_BZ, log_p_BZ, 0.0).sum(1) * weight_B).sum()

    place_S, there_S = teacher.owner.clamp(min=0), teacher.owner >= 0
    out_SG = (~valid_G)[None].expand(len(teacher), -1)
    if drop_BG is not None:
        out_SG = out_SG | drop_BG[place_S]
    logits_SG = (scale * teacher.values @ all_point_GD.T).masked_fill(out_SG, -torch.inf)
    logits_SG = logits_SG.masked_fill(~there_S[:, None], 0.0)
    back_S = F.cross_entropy(logits_SG, place_S + offset, reduction="none")
    loss = loss + torch.where(there_S, back_S * weight_B[place_S], 0.0).sum()
    return loss / (2 * valid_G.sum().clamp(min=1))


def siglip(
    point_BD: Tensor,
    teacher: Several,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    n_rows: int | None = None,
    everyone: Several | None = None,
    offset: int = 0,
    drop_BG: Tensor | None = None,
) -> Tensor:
    """Pairwise sigmoid loss, sum over columns and mean over objects.

    SigLIP (arXiv 2303.15343, eq. 1 and algorithm 1): -1/n sum_ij log sigmoid(z_ij (s <u_i, v_j>
    + b)), z = 1 for an object's own vector and -1 else. Where objects have several vectors, each
    counts 1 / (number that its object has). Dropped pairs are left out. ``n_rows`` is the number
    of rows of all processes.
    """
    everyone = teacher if everyone is None else everyone
    n_rows = len(point_BD) if n_rows is None else n_rows
    n_G = _counts(everyone.owner, n_rows)
    place_Z = everyone.owner.clamp(min=0)
    own_BZ = _own(everyone.owner, len(point_BD), offset)
    keep_BZ = own_BZ.any(1, keepdim=True) & (everyone.owner >= 0)
    if drop_BG is not None:
        keep_BZ = keep_BZ & ~drop_BG[:, place_Z]
    logits_BZ = scale * point_BD @ everyone.values.T + bias
    loss_BZ = -F.logsigmoid(torch.where(own_BZ, logits_BZ, -logits_BZ))
    loss_BZ = loss_BZ / n_G.clamp(min=1).to(point_BD.dtype)[place_Z]
    return torch.where(keep_BZ, loss_BZ, 0.0).sum() / (n_G > 0).sum().clamp(min=1)


def _own(owner_Z: Tensor, n_rows: int, offset: int) -> Tensor:
    """(B, Z) bool: vector z is of local row b."""
    return owner_Z[None] == torch.arange(n_rows, device=owner_Z.device)[:, None] + offset


def _counts(owner_Z: Tensor, n_rows: int) -> Tensor:
    """(n_rows,) int64: how many vectors each row has."""
    place_Z = torch.where(owner_Z < 0, n_rows, owner_Z)
    counts = torch.zeros(n_rows + 1, dtype=torch.int64, device=owner_Z.device)
    return counts.scatter_add_(0, place_Z, torch.ones_like(place_Z))[:n_rows]
