"""Multi-modal relation distillation: the student's relations follow the teacher's.

After arXiv 2407.14007 (see ``trainer.relations`` for what that means). With relations psi within
a modality and phi between two, P the student's 3D features, I and T the teacher's image and text
features, and D a discrepancy:

    intra_image = D(psi(I), psi(P))
    intra_text  = D(psi(T), psi(P))                          # rows with text
    cross       = mean of cross_text  = D(phi(I, T), phi(P, T))      # rows with text
                      and cross_image = D(phi(T, I), phi(P, I))

With ``cross_rows = "same"`` phi(T, T) and phi(I, I) stand in the place of phi(I, T) and phi(T, I):
soft labels from the similarities within the modality (after SoftCLIP, arXiv 2303.17561), which
texts without pictures can give too. Then, as always,

    L = weighting(intra_image, intra_text, cross)

Teacher and student, intra and cross have a temperature each: image-text cosines lie in a far
narrower band than image-image cosines. They are fixed, or learned in their logarithm within
bounds. The teacher's features are detached; its temperatures are learned on request only, for a
loss that may flatten its own target does so. Rows without text are masked as rows and as columns
of every relation in which text takes part. Equal captions are legal.

With a queue, objects of past batches are further columns. An object's own older self is left out
of intra-modal relations as the diagonal is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trainer.config import TEMPERATURES, DistillConfig
from trainer.losses.bounds import bounded
from trainer.losses.features import Features
from trainer.losses.queue import RelationQueue
from trainer.losses.weighting import build_weighting
from trainer.relations import (
    centred,
    discrepancy,
    distances,
    neighbours,
    pair_mask,
    relation,
    unit,
)


class DistillLoss(nn.Module):
    """All distillation terms and their weighting."""

    def __init__(self, config: DistillConfig, width: int | None = None) -> None:
        """``width`` of the teacher is needed for a queue."""
        super().__init__()
        self.config = config
        self.weighting = build_weighting(config)
        self.log_tau = nn.ParameterDict(
            {
                name: nn.Parameter(torch.tensor(float(getattr(config, f"tau_{name}"))).log())
                for name in TEMPERATURES
                if self._is_learned(name)
            }
        )
        self.queue: RelationQueue | None = None
        if config.queue:
            if width is None:
                raise ValueError("a queue needs the width of the features")
            needs = {
                "image": config.intra_image or config.crosses("image"),
                "text": config.intra_text or config.crosses("text"),
            }
            modalities = tuple(name for name, needed in needs.items() if needed)
            self.queue = RelationQueue(config.queue, width, modalities)

    def _is_learned(self, name: str) -> bool:
        config, (side, kind) = self.config, name.split("_")
        used = config.cross if kind == "cross" else config.intra_image or config.intra_text
        sides = {"none": (), "student": ("student",), "both": ("student", "teacher")}
        return used and side in sides[config.learn_tau]

    def tau(self, name: str) -> float | Tensor:
        """Temperature of one of ``trainer.config.TEMPERATURES``."""
        if name not in self.log_tau:
            return float(getattr(self.config, f"tau_{name}"))
        return bounded(self.log_tau[name], *self._log_bounds()).exp()

    def _log_bounds(self) -> tuple[float, float]:
        return math.log(self.config.tau_min), math.log(self.config.tau_max)

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring what is learned back into its bounds; call it after each optimiser step."""
        for parameter in self.log_tau.values():
            parameter.clamp_(*self._log_bounds())
        self.weighting.clamp()

    def report(self) -> dict[str, Tensor]:
        """Learned temperatures by name, for the log."""
        found: dict[str, Tensor] = {}
        for name in self.log_tau:
            value = self.tau(name)
            assert isinstance(value, Tensor)
            found[f"tau_{name}"] = value
        return found

    def remember(self, everyone: Features) -> None:
        """Put a batch that has been trained on into the queue, where there is one."""
        if self.queue is not None:
            self.queue.push(everyone)

    def forward(
        self, local: Features, everyone: Features | None = None, offset: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum without ``config.weight``, and the terms by name.

        For ``normalised_similarity`` also ``neighbours_*``: over how many objects the teacher's row
        of that relation spreads, in the mean over rows (``trainer.relations.neighbours``). Near 1
        or near all of them it tells little but the nearest, or hardly anything.

        ``everyone`` holds the gathered features of all processes (the local ones by default) and
        ``offset`` the place of local row 0 among them; the results are then shares that add up
        to those of the whole batch.
        """
        everyone = everyone or local
        config = self.config
        columns = everyone if self.queue is None else self.queue.after(everyone)
        relations = _Relations(self, local, everyone, columns, offset)
        terms: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        if config.intra_image:
            terms["intra_image"] = relations.intra("image")
        if config.intra_text:
            terms["intra_text"] = relations.intra("text")
        if config.cross:
            if config.cross_text:
                parts["cross_text"] = relations.cross("text")
            if config.cross_image:
                parts["cross_image"] = relations.cross("image")
            terms["cross"] = torch.stack(list(parts.values())).mean()
        total = self.weighting(terms, share=len(local) / len(everyone))
        return total, {**terms, **parts, **relations.neighbours}


@dataclass(frozen=True)
class _Side:
    """Unit features of one modality. Shape suffixes: B local rows, E of everyone, G columns."""

    rows: Tensor  # (B, D)
    all_rows: Tensor  # (E, D)
    columns: Tensor  # (G, D)

    def towards(self, other: _Side) -> _Side:
        """The rows of this modality with the columns of another."""
        return replace(self, columns=other.columns)

    def centre(self, valid_G: Tensor) -> _Side:
        """Without the mean of the valid columns."""
        weight_G1 = valid_G[:, None].to(self.columns.dtype)
        mean_D = (self.columns * weight_G1).sum(0) / weight_G1.sum().clamp(min=1)
        return _Side(
            centred(self.rows, mean_D),
            centred(self.all_rows, mean_D),
            centred(self.columns, mean_D),
        )


class _Relations:
    """Rows, which are local, against columns: those of everyone and of the queue.

    Where local rows are a part only, the counts and the mean distances of the whole are taken
    over the rows of everyone.
    """

    def __init__(
        self,
        loss: DistillLoss,
        local: Features,
        everyone: Features,
        columns: Features,
        offset: int,
    ) -> None:
        self.loss, self.config, self.offset = loss, loss.config, offset
        self.local, self.everyone, self.columns = local, everyone, columns
        config = self.config
        sides = {
            name: _Side(*(unit(getattr(f, name).detach()) for f in (local, everyone, columns)))
            for name in ("image", "text")
            if all(getattr(f, name) is not None for f in (local, everyone, columns))
        }
        theirs = columns.point.detach() if config.detach_columns else columns.point
        point = _Side(unit(local.point), unit(everyone.point), unit(theirs))
        self.teacher = dict(sides)
        if config.centre != "none":
            self.teacher = {n: side.centre(columns.valid(n)) for n, side in sides.items()}
        self.student = {**sides, "point": point}
        if config.centre == "both":
            self.student = {**self.teacher, "point": point.centre(columns.everyone)}
        self.neighbours: dict[str, Tensor] = {}

    def intra(self, modality: str) -> Tensor:
        """D(psi(modality), psi(P)) over the rows that have the modality."""
        without_self = self.config.mask_diagonal
        teacher, student = self.teacher[modality], self.student["point"]
        name = f"intra_{modality}"
        return self._compare(name, teacher, student, modality, without_self=without_self)

    def cross(self, column: str) -> Tensor:
        """D(phi(M, column), phi(P, column)), M the modality that ``cross_rows`` says."""
        row, least = column, column
        if self.config.cross_rows == "other":
            row = "text" if column == "image" else "image"
            least = "text"  # of the two it is the one that objects may lack
        teacher = self.teacher[row].towards(self.teacher[column])
        student = self.student["point"].towards(self.student[column])
        return self._compare(f"cross_{column}", teacher, student, least, without_self=False)

    def _mask(
        self, rows: Features, part: slice, offset: int, modality: str, *, without_self: bool
    ) -> Tensor:
        """(rows, G) bool: both have the modality, and are not one object if so asked."""
        valid_R, valid_G = rows.valid(modality)[part], self.columns.valid(modality)
        mask_RG = pair_mask(valid_R, valid_G, without_diagonal=without_self, offset=offset)
        known = len(self.everyone)
        if without_self and len(self.columns) > known and rows.row is not None:
            assert self.columns.row is not None
            mask_RG[:, known:] &= rows.row[part, None] != self.columns.row[known:]
        return mask_RG

    def _compare(
        self, name: str, teacher: _Side, student: _Side, modality: str, *, without_self: bool
    ) -> Tensor:
        config, everything, kind = self.config, slice(None), name.split("_")[0]
        mask_BG = self._mask(
            self.local, everything, self.offset, modality, without_self=without_self
        )
        count: tuple[Tensor, Tensor] | None = None
        means: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.everyone is not self.local:
            count, means = self._whole(teacher, student, modality, without_self=without_self)

        def related(side: _Side, whose: str, mean: Tensor | None) -> Tensor:
            tau = self.loss.tau(f"{whose}_{kind}")
            pair = side.rows, side.columns
            return relation(*pair, mask_BG, config.representation, tau, mean=mean)

        teacher_BG = related(teacher, "teacher", means[0])
        probabilities = config.representation == "normalised_similarity"
        if probabilities:
            rows = count[0] if count else mask_BG.any(dim=1).sum()
            found_B = neighbours(teacher_BG.detach(), mask_BG)
            self.neighbours[f"neighbours_{name}"] = found_B.sum() / rows.clamp(min=1)
        return discrepancy(
            teacher_BG,
            related(student, "student", means[1]),
            mask_BG,
            config.discrepancy,
            log_probabilities=probabilities,
            huber_delta=config.huber_delta,
            count=count,
        )

    def _whole(
        self, teacher: _Side, student: _Side, modality: str, *, without_self: bool
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
        """Rows and pairs of the whole batch, and its mean distances where they are read.

        In chunks, for the mask of the whole may be large.
        """
        size = max(len(self.local), 1024)
        by_distance = self.config.representation == "distance"
        counts, sums = [], []
        for start in range(0, len(self.everyone), size):
            part = slice(start, start + size)
            mask_RG = self._mask(self.everyone, part, start, modality, without_self=without_self)
            counts.append(torch.stack([mask_RG.any(dim=1).sum(), mask_RG.sum()]))
            if by_distance:
                lengths = [
                    distances(side.all_rows[part], side.columns, mask_RG).sum()
                    for side in (teacher, student)
                ]
                sums.append(torch.stack(lengths))
        rows, pairs = torch.stack(counts).sum(0)
        if not by_distance:
            return (rows, pairs), (None, None)
        of_teacher, of_student = torch.stack(sums).sum(0) / pairs.clamp(min=1)
        return (rows, pairs), (of_teacher, of_student)
