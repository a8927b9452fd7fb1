"""What is learned: student, loss and moving average, behind a surface that the loop knows.

The loop asks a task to take one training step's gradients, tells it when the optimiser has
stepped, and asks for a validation; it knows nothing of clouds or losses.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer import distributed, parallel
from trainer.augment import Augment
from trainer.backbones import Backbone, build_backbone
from trainer.backbones.layers import recompute_blocks
from trainer.batch import CloudBatch, DeviceBatch
from trainer.config import SEEDS, EmaConfig, Recipe
from trainer.grouping import find_kernels
from trainer.initial import begin
from trainer.losses import AlignLoss, DistillLoss, Features
from trainer.optim import ramp
from trainer.validate import validate


@dataclass(frozen=True)
class StepResult:
    """What one step tells. Values stay on the device until somebody logs them."""

    loss: Tensor
    terms: dict[str, Tensor | float]  # logged now and then
    every_step: dict[str, Tensor]  # kept for each step


def choose_precision(setting: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Compute type of the student and the reason, for the log. Losses are always float32."""
    if setting == "bf16":
        reason = "bf16: asked for by train.precision"
        slower = bf16_slowdown() if device.type == "cpu" else 0
        if slower > 1.5:
            reason += (
                f", though this CPU multiplies matrices {slower:.0f} times faster in fp32; "
                "set train.precision=fp32"
            )
        return torch.bfloat16, reason
    if setting == "fp32":
        return torch.float32, "fp32: asked for by train.precision"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "bf16: the GPU computes it natively"
    return torch.float32, f"fp32: no native bf16 is assumed on {device.type}"


def bf16_slowdown(size: int = 256, rounds: int = 3) -> float:
    """Time of a matrix product in bf16 over that in fp32 on this CPU; takes below 0.2 s.

    A CPU without the instructions computes it number by number, tens of times slower.
    """
    least = []
    for dtype in (torch.bfloat16, torch.float32):
        matrix = torch.ones(size, size, dtype=dtype)
        times = []
        for _ in range(rounds + 1):  # the first one is for warming up
            begun = time.perf_counter()
            _ = matrix @ matrix
            times.append(time.perf_counter() - begun)
        least.append(min(times[1:]))
    return least[0] / least[1]


class Ema:
    """Moving average of a module's parameters; buffers are copied."""

    def __init__(self, module: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step ``step`` (from 0).

        The first steps use a smaller decay, so that the random start is soon forgotten.
        """
        decay = min(self.config.decay, (1 + step) / (10 + step))
        ours: list[Tensor] = [parallel.local(value) for value in self.module.parameters()]
        theirs: list[Tensor] = [parallel.local(value) for value in module.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for mine, other in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(other)


class DistillTask:
    """The student of a recipe with alignment and relation distillation."""

    def __init__(
        self, recipe: Recipe, width: int, device: torch.device, *, restored: bool = False
    ) -> None:
        """``width`` is the teacher's. The initial weights follow ``train.seed``.

        Or they are those that the recipe names, not looked for where all are to be ``restored``.

        Raises ``InputError`` as ``trainer.initial.begin``.
        """
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.train.seed)
        backbone = build_backbone(recipe.model.backbone, width, recipe.model.options)
        # Whose embeddings the initial weights were trained on, where they are a checkpoint's.
        self.begun_with = None if restored else begin(backbone, recipe.model)
        align = AlignLoss(recipe.loss.align, width)
        self.modules = nn.ModuleDict({"student": backbone, "align": align})
        if recipe.loss.distill.enabled:
            self.modules["distill"] = DistillLoss(recipe.loss.distill, width)
        self.modules.to(device)
        if device.type == "cuda":
            find_kernels()
        self.ema = Ema(self.student, recipe.ema) if recipe.ema.enabled else None
        self.augment = Augment(recipe.augment)
        self.dtype, self.dtype_reason = choose_precision(recipe.train.precision, device)
        if recipe.train.recompute:
            recompute_blocks(self.student)
        kind = parallel.choose_kind(
            recipe.train.parallel, device, sum(p.numel() for p in self.student.parameters())
        )
        average = self.ema.module if self.ema else None
        self.replicas = parallel.replicate(self.student, average, kind)
        # What the processes sum up after the backward pass.
        self._summed = nn.ModuleList(
            module
            for name, module in self.modules.items()
            if name != "student" or not self.replicas.sums_gradients
        )
        self.compiled = recipe.train.compile
        self._encode: Any = self.replicas.encode
        self._losses: dict[str, Any] = {
            name: module for name, module in self.modules.items() if name != "student"
        }
        if self.compiled:
            self._encode = torch.compile(self._encode)
            self._losses = {name: torch.compile(loss) for name, loss in self._losses.items()}

    @property
    def student(self) -> Backbone:
        """The encoder under training."""
        student = self.modules["student"]
        assert isinstance(student, Backbone)
        return student

    @property
    def align(self) -> AlignLoss:
        """The alignment loss."""
        align = self.modules["align"]
        assert isinstance(align, AlignLoss)
        return align

    @property
    def distill(self) -> DistillLoss | None:
        """The distillation loss, None when it is off."""
        if "distill" not in self.modules:
            return None
        distill = self.modules["distill"]
        assert isinstance(distill, DistillLoss)
        return distill

    @property
    def trainable(self) -> nn.Module:
        """Module whose parameters the optimiser gets."""
        return self.modules

    @property
    def final(self) -> nn.Module:
        """The encoder to validate and to keep: the moving average when there is one."""
        return self.ema.module if self.ema else self.student

    def compile_less(self) -> None:
        """Do without ``torch.compile`` from now on."""
        self.compiled = False
        self._encode = self.replicas.encode
        self._losses = {name: self.modules[name] for name in self._losses}

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def encode(self, xyz_BN3: Tensor, rgb_BN3: Tensor) -> Tensor:
        """(B, D) float32 features of the student under training."""
        with self._autocast():
            features: Tensor = self._encode(xyz_BN3, rgb_BN3)
        return features.float()

    def backward(self, batch: CloudBatch, step: int, total: int) -> StepResult:
        """Put the gradients of one step into ``.grad``: of the whole batch, over all processes.

        Augmentation draws from a generator seeded by (seed, step): a step is the same whether or
        not the run was resumed before it, and whatever the number of processes.
        """
        self.modules.train()
        clouds = batch.to(self.device)
        generator = torch.Generator(self.device)
        generator.manual_seed((self.recipe.train.seed * 1_000_003 + step) % SEEDS)
        xyz_BN3, rgb_BN3 = self.augment(
            clouds.xyz, clouds.rgb, generator, (batch.offset, batch.total)
        )
        count = self._micro_batches(len(clouds))
        if count > 1:
            result, everyone = self._backward_cached(clouds, xyz_BN3, rgb_BN3, count, step, total)
        else:
            with self.replicas.accumulate(last=True):
                features = self.encode(xyz_BN3, rgb_BN3)
                result, everyone = self._compare(features, clouds, step, total)
                result.loss.backward()  # type: ignore[no-untyped-call]
        distributed.sum_gradients(self._summed)
        if self.distill is not None:
            self.distill.remember(everyone)
        return self._told(result)

    def _micro_batches(self, n_rows: int) -> int:
        """Parts in which the rows go through the backbone: equally many on all processes.

        They pass the same collectives then, where BatchNorm or ``fsdp`` has some. No part has fewer
        rows than the backbone can do with.
        """
        size = self.recipe.train.micro_batch
        if size == 0:
            return 1
        rows = [count[0] for count in distributed.gather_counts([n_rows])]
        most = min(rows) // self.student.least_rows
        return max(1, min(-(-max(rows) // size), most))

    def _backward_cached(
        self,
        clouds: DeviceBatch,
        xyz_BN3: Tensor,
        rgb_BN3: Tensor,
        count: int,
        step: int,
        total: int,
    ) -> tuple[StepResult, Features]:
        """The same gradients with the rows in the backbone in ``count`` parts.

        Features are computed without a graph, the loss of the whole batch gives their gradients,
        and a second pass carries these into the weights (GradCache, arXiv 2101.06983). Equal to
        one pass but for BatchNorm, whose statistics are those of a micro-batch.
        """
        parts = list(
            zip(torch.tensor_split(xyz_BN3, count), torch.tensor_split(rgb_BN3, count), strict=True)
        )
        states = []
        with torch.no_grad(), _frozen_statistics(self.student):
            cached = []
            for xyz, rgb in parts:
                states.append(_rng_state(self.device))
                cached.append(self.encode(xyz, rgb))
        features = torch.cat(cached).requires_grad_(True)
        result, everyone = self._compare(features, clouds, step, total)
        result.loss.backward()  # type: ignore[no-untyped-call]
        assert features.grad is not None
        gradients = torch.tensor_split(features.grad, count)
        for place, (xyz, rgb) in enumerate(parts):
            _set_rng_state(self.device, states[place])  # the second pass drops the same patches
            with self.replicas.accumulate(last=place == count - 1):
                self.encode(xyz, rgb).backward(gradients[place])  # type: ignore[no-untyped-call]
        return result, everyone

    def loss(self, features_BD: Tensor, batch: DeviceBatch, step: int, total: int) -> StepResult:
        """Objective of a batch whose 3D features are given; its share where there are processes."""
        return self._compare(features_BD, batch, step, total)[0]

    def _compare(
        self, features_BD: Tensor, batch: DeviceBatch, step: int, total: int
    ) -> tuple[StepResult, Features]:
        """The objective, and the features of all processes."""
        local = batch.features(features_BD)
        everyone, offset = distributed.gather_features(local)
        hardness = self._hardness_ramp(step, total)
        loss, named = self._losses["align"](local, everyone, offset, hardness)
        terms: dict[str, Tensor | float] = {**named}
        every_step: dict[str, Tensor] = {}
        distill = self.distill
        if distill is not None:
            config = self.recipe.loss.distill
            weight = config.weight * ramp(config.warmup, step, total)
            extra, named = self._losses["distill"](local, everyone, offset)
            loss = loss + weight * extra
            terms |= {**named, "distill": extra}
            weights = distill.weighting.weights().detach().clone()
            every_step = {
                f"weight_{name}": weights[place]
                for place, name in enumerate(distill.weighting.names)
            }
        # Shares of the whole batch become its values; what follows is the same on all processes.
        shares = {name: value for name, value in terms.items() if isinstance(value, Tensor)}
        terms = {**distributed.sum_values(shares)}
        if distill is not None:
            terms |= {"distill_weight": weight, **distill.report()}
        terms |= self.align.report()
        return StepResult(loss, terms, every_step), everyone

    def _hardness_ramp(self, step: int, total: int) -> Tensor | float:
        """How much of the hard negatives applies, in [0, 1]."""
        config = self.recipe.loss.align
        if config.hard_warmup == 0:
            return 1.0
        # A tensor: one graph does for all steps. Filled by a kernel: nothing is waited for.
        return torch.full((), ramp(config.hard_warmup, step, total), device=self.device)

    @staticmethod
    def _told(result: StepResult) -> StepResult:
        """The same values without the graph, which would else be kept until they are logged."""
        terms = {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in result.terms.items()
        }
        loss = distributed.sum_values({"loss": result.loss.detach()})["loss"]
        return StepResult(loss, terms, result.every_step)

    def after_step(self, step: int) -> None:
        """Called when the optimiser has taken step ``step`` (from 0)."""
        self.align.clamp()
        if self.distill is not None:
            self.distill.clamp()
        if self.ema:
            self.ema.update(self.student, step)

    @torch.no_grad()
    def validate(self, batches: Iterable[CloudBatch]) -> dict[str, float]:
        """Metrics of held-out batches (see ``trainer.validate``)."""
        encoder = self.final.eval()
        # No more at once than in a step: each process encodes the rows of all.
        most = self.recipe.train.micro_batch
        most = most or -(-self.recipe.data.batch_size // distributed.world_size())
        found: list[Features] = []
        for batch in batches:
            clouds = batch.to(self.device)
            parts = zip(torch.split(clouds.xyz, most), torch.split(clouds.rgb, most), strict=True)
            with self._autocast():
                points = torch.cat([encoder(xyz, rgb).float() for xyz, rgb in parts])
            found.append(clouds.features(points))
        if not found:
            return {}
        features = Features(
            torch.cat([part.point for part in found]),
            _joined([part.image for part in found]),
            _joined([part.text for part in found]),
            torch.cat([part.has_text for part in found]),
            category=_joined([part.category for part in found]),
        )
        return validate(features, self.align, self.recipe.data.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs of the task."""
        ema = self.ema.module.state_dict() if self.ema else None
        return {"modules": self.modules.state_dict(), "ema": ema}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave, with whole tensors."""
        state = parallel.shared_like(state, self.state_dict())
        self.modules.load_state_dict(state["modules"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _rng_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_rng_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


@contextlib.contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep BatchNorm from counting a pass in its running statistics.

    Copies take the count. Without any, ``SyncBatchNorm`` fails in bf16 on CUDA (PyTorch 96203).
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        for name, value in norm._buffers.items():
            norm._buffers[name] = None if value is None else value.clone()
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
