"""Several processes as one: copies or shares of the student, equal decisions, whole states.

``trainer.distributed`` has the collectives of the losses; here is what the machinery needs.

- *ddp*: every process holds the student (``DistributedDataParallel``); gradients are summed while
  the backward pass still runs.
- *fsdp*: weights, gradients and moments are shared out (FSDP2, ``fully_shard``), block by block.

Gradients are summed and not averaged: each process's loss is a share of the whole. BatchNorm
takes its statistics of the rows of all processes, so the student learns as one process would.

Checkpoints hold whole tensors in either case: a run may go on with another number of processes.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.common import InputError
from trainer.distributed import control_group, rank, world_size

LARGE = 300_000_000  # parameters from which ``auto`` shares the student out on GPUs
T = TypeVar("T")


class AgreedError(InputError):
    """An ``InputError`` that every process of the run raises."""


def agree(mine: bool) -> bool:
    """Whether the first process says so; every process must ask."""
    if world_size() == 1:
        return mine
    flag = torch.tensor([mine], dtype=torch.int32)
    dist.broadcast(flag, 0, group=control_group())
    return bool(flag.item())


def first_does(action: Callable[[], T]) -> T:
    """What ``action`` gives on the first process, which alone does it.

    Its ``InputError`` is raised on every process, so that none waits for the others for ever.
    """
    if world_size() == 1:
        return action()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = action()
        except InputError as error:
            told[1] = str(error)
    dist.broadcast_object_list(told, 0, group=control_group())
    if told[1] is not None:
        raise AgreedError(told[1])
    result: T = told[0]
    return result


def collect(mine: T) -> list[T]:
    """The values of all processes, on each."""
    if world_size() == 1:
        return [mine]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, mine, group=control_group())
    return found


@dataclass(frozen=True)
class Replicas:
    """The student as one process calls it."""

    encode: Callable[[Tensor, Tensor], Tensor]
    kind: str  # "one", "ddp" or "fsdp"
    module: nn.Module

    @property
    def sums_gradients(self) -> bool:
        """Whether the backward pass sums the student's gradients over the processes."""
        return self.kind != "one"

    def accumulate(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of a part of the batch.

        Gradients are summed over the processes at the ``last`` one.
        """
        if self.kind == "ddp" and not last:
            return self.module.no_sync()  # type: ignore[no-any-return, operator]
        if self.kind == "fsdp":
            self.module.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()


def choose_kind(setting: str, device: torch.device, n_parameters: int) -> str:
    """``one``, ``ddp`` or ``fsdp`` for a setting of ``train.parallel``."""
    if world_size() == 1:
        return "one"
    if setting == "auto":
        return "fsdp" if device.type == "cuda" and n_parameters >= LARGE else "ddp"
    return setting


def replicate(student: nn.Module, average: nn.Module | None, kind: str) -> Replicas:
    """Make one student of those of all processes; ``average`` is its moving average.

    Weights must be equal on all processes.
    """
    if kind == "one":
        return Replicas(student, kind, student)
    join_batch_norms(student)
    if kind == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        device = next(student.parameters()).device
        # Statistics of BatchNorm are equal anyway. The option has two names in PyTorch's history.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync: False}
        wrapped = DistributedDataParallel(
            student,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **options,
        )
        wrapped.register_comm_hook(None, _sum_hook)
        return Replicas(wrapped, kind, wrapped)
    share_out(student)
    if average is not None:
        # It has no backward pass, after which the outermost weights would be shared out again.
        share_out(average, reshard=True)
    return Replicas(student, kind, student)


def _sum_hook(state: object, bucket: Any) -> torch.futures.Future[Tensor]:
    del state
    done = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    summed: torch.futures.Future[Tensor] = done.then(lambda future: future.value()[0])
    return summed


# PyTorch looks at the annotations, which are text in this file.
_sum_hook.__annotations__.clear()


def share_out(module: nn.Module, *, reshard: bool | None = None) -> None:
    """Share the parameters of a module out among the processes, block by block.

    ``reshard``: also those outside of the blocks are shared out again after each forward pass;
    None: as FSDP2 chooses, after the backward pass.
    """
    try:
        from torch.distributed.fsdp import FSDPModule, fully_shard
    except ImportError as error:
        raise InputError(
            "train.parallel fsdp: this PyTorch has no fully_shard; upgrade to 2.6 or later, or "
            "--set train.parallel=ddp"
        ) from error
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(next(module.parameters()).device.type, (world_size(),))
    for block in getattr(module, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            # gloo knows sums only; and a share of a loss is not to be divided.
            part.set_force_sum_reduction_for_comms(True)
            part.set_gradient_divide_factor(1.0)


class JointBatchNorm(nn.BatchNorm1d):
    """BatchNorm over (rows, C) of all processes, for devices that ``SyncBatchNorm`` does not know.

    Processes may hold different numbers of rows.
    """

    def forward(self, rows_RC: Tensor) -> Tensor:
        """(R, C)."""
        if not self.training:
            return super().forward(rows_RC)
        wide = rows_RC.float()
        count = wide.new_tensor([float(len(wide))])
        total = _all_sum(torch.cat([wide.sum(0), count]))
        n_rows = total[-1].detach()
        mean = total[:-1] / n_rows
        centred = wide - mean
        variance = _all_sum(centred.square().sum(0)) / n_rows
        if self.track_running_stats and self.running_mean is not None:
            with torch.no_grad():
                assert self.running_var is not None
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                share = self.momentum if self.momentum is not None else 0.1
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * n_rows / (n_rows - 1), share)
        out = centred * torch.rsqrt(variance + self.eps)
        if self.affine:
            out = out * self.weight + self.bias
        return out.to(rows_RC.dtype)


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _all_sum(value: Tensor) -> Tensor:
    """Sum over the processes; so is the gradient."""
    summed: Tensor = _AllSum.apply(value)
    return summed


def join_batch_norms(module: nn.Module) -> None:
    """Let the BatchNorm layers of a module see the rows of all processes. In place."""
    for name, child in list(module.named_modules()):
        if not isinstance(child, nn.BatchNorm1d) or isinstance(child, JointBatchNorm):
            continue
        if next(child.parameters(), torch.empty(0)).is_cuda:
            joint: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(child)  # type: ignore[no-untyped-call]
        else:
            joint = JointBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
            joint.train(child.training)
            # The same tensors, for whoever holds them already.
            joint._parameters, joint._buffers = child._parameters, child._buffers
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, joint)


def is_shared(value: object) -> bool:
    """Whether a tensor is shared out among the processes."""
    return hasattr(value, "full_tensor")


def local(value: Tensor) -> Tensor:
    """The part of a tensor that this process has; all of one that is not shared out."""
    part: Tensor = value.to_local() if is_shared(value) else value  # type: ignore[attr-defined]
    return part


def whole(state: Any) -> Any:
    """A nested state with every tensor that is shared out put together, on the CPU.

    All processes must ask, and the first one, which writes checkpoints, gets it: the others have
    empty tensors in these places, since the machine would else hold the state once for each.
    """
    if isinstance(state, Tensor):
        if not is_shared(state):
            return state
        full: Tensor = state.full_tensor()  # type: ignore[attr-defined]
        return full.cpu() if rank() == 0 else full.new_empty(0, device="cpu")
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value) for value in state)
    return state


def shared_like(state: Any, reference: Any) -> Any:
    """A nested state with tensors shared out as those of ``reference`` in the same places are."""
    if isinstance(state, Tensor) and is_shared(reference):
        from torch.distributed.tensor import distribute_tensor

        placed = state.to(local(reference).device)
        return distribute_tensor(placed, reference.device_mesh, reference.placements)
    if isinstance(state, dict) and isinstance(reference, dict):
        return {key: shared_like(value, reference.get(key)) for key, value in state.items()}
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state; moments are shared out as their parameters are.

    Fused, all parameters at once or one by one: that stays as this optimiser was built, whatever
    the one that was saved did, for it depends on the device and on the sharing.
    """
    ways = [{way: group[way] for way in ("fused", "foreach")} for group in optimizer.param_groups]
    groups = [{**saved, **way} for saved, way in zip(state["param_groups"], ways, strict=True)]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = {
        index: {
            name: shared_like(value, parameters[index]) if getattr(value, "ndim", 0) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({"state": kept, "param_groups": groups})


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Norm of all gradients, which are scaled down to ``largest`` (infinity: are not)."""
    every = [p for p in parameters if p.grad is not None]
    if not any(is_shared(p) for p in every):
        return nn.utils.clip_grad_norm_(every, largest)
    gradients = [local(p.grad) for p in every if p.grad is not None]
    squares = [gradient.float().square().sum() for gradient in gradients]
    zero = torch.zeros((), device=gradients[0].device)
    shares = [s for s, p in zip(squares, every, strict=True) if is_shared(p)]
    copies = [s for s, p in zip(squares, every, strict=True) if not is_shared(p)]
    shared = torch.stack([zero, *shares]).sum()
    dist.all_reduce(shared)
    norm = (shared + torch.stack([zero, *copies]).sum()).sqrt()
    if math.isfinite(largest):
        torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm
