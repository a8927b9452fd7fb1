"""Features of all processes, with gradients: what a loss over the whole batch needs.

Every process computes its *local share* of the loss, its rows against the columns of everyone
(as open_clip's ``local_loss`` with ``gather_with_grad``). Shares add up to the loss of the whole
batch, so gradients of the parameters are *summed* over processes, not averaged:

    everyone, offset = gather_features(local)
    loss = losses(local, everyone, offset)      # shares
    loss.backward()                             # the gather returns gradients to their owners
    sum_gradients(module)

Processes may hold different numbers of rows, of texts, and none at all. Which collectives run,
and in which order, depends only on which modalities the recipe reads: never on what a batch holds,
so that no process waits for one that left out a step. A collective of its own is run even where
there is nothing to send.

Everything is the identity where ``torch.distributed`` is not initialised.
Shape suffixes: B local rows, G rows of all processes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.losses.features import Features, Several

BUCKET = 2**24  # elements of gradients sent at once


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


_control: list[Any] = []  # the group below, made once


def control_group() -> Any:
    """Group for decisions and small objects: on the CPU, so that no GPU is waited for."""
    if not _control:
        gloo = dist.get_backend() == "gloo"
        _control.append(dist.group.WORLD if gloo else dist.new_group(backend="gloo"))
    return _control[0]


def forget_group() -> None:
    """For a process that initialises ``torch.distributed`` once more."""
    _control.clear()


def gather_counts(counts: Sequence[int]) -> list[list[int]]:
    """Counts of every process, in the order of ranks. One collective, which waits for no GPU."""
    if world_size() == 1:
        return [list(counts)]
    mine = torch.tensor(list(counts), dtype=torch.int64)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine, group=control_group())
    return [values.tolist() for values in everyone]


def gather_rows(rows_BD: Tensor, sizes: Sequence[int]) -> Tensor:
    """(G, ...) rows of all processes in the order of ranks, ``sizes`` of each, with gradients.

    The gradient of a process's rows is the sum of what all processes found for them. Every
    process must then run the backward pass, or none. One collective each way.
    """
    if world_size() == 1:
        return rows_BD
    gathered: Tensor = _GatherRows.apply(rows_BD, tuple(sizes))
    return gathered


def _gather(rows_BD: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of all processes: padded to the longest, for collectives take equal shapes only."""
    longest = max(*sizes, 1)
    # bool is not known to every backend.
    sent = rows_BD.to(torch.uint8) if rows_BD.dtype == torch.bool else rows_BD
    padded = sent.new_zeros(longest, *sent.shape[1:])
    padded[: len(sent)] = sent
    everyone = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(everyone, padded)
    joined = torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])
    return joined.to(rows_BD.dtype)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        return _gather(rows_BD, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # All-reduce and not reduce-scatter: gloo has no such, and sizes differ.
        gradient_GD = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient_GD)
        start = sum(ctx.sizes[: rank()])
        return gradient_GD[start : start + ctx.sizes[rank()]], None


def gather_features(local: Features) -> tuple[Features, int]:
    """Features of all processes, and the place of the first local row among them.

    ``local`` itself without other processes. Gradients flow through ``point`` only. Modalities
    that are None must be None on every process.
    """
    if world_size() == 1:
        return local, 0
    several = [local.image_all, local.text_all]
    counts = gather_counts([len(local), *(0 if item is None else len(item) for item in several)])
    sizes = [count[0] for count in counts]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]

    def gathered(value: Tensor | None) -> Tensor | None:
        return None if value is None else _gather(value.detach(), sizes)

    def joined(item: Several | None, lengths: list[int]) -> Several | None:
        if item is None:
            return None
        owner = torch.where(item.owner < 0, -1, item.owner + starts[rank()])
        return Several(_gather(item.values.detach(), lengths), _gather(owner, lengths))

    everyone = Features(
        point=gather_rows(local.point, sizes),
        image=gathered(local.image),
        text=gathered(local.text),
        has_text=_gather(local.has_text, sizes),
        image_all=joined(local.image_all, [count[1] for count in counts]),
        text_all=joined(local.text_all, [count[2] for count in counts]),
        category=gathered(local.category),
        row=gathered(local.row),
    )
    return everyone, starts[rank()]


def sum_gradients(module: nn.Module) -> None:
    """Sum the gradients of all parameters over the processes, in place; missing ones count as 0.

    A few collectives of equal shape on all processes. Nothing happens without other processes.
    """
    if world_size() == 1:
        return
    bucket: list[nn.Parameter] = []
    held = 0
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        if bucket and (held + parameter.numel() > BUCKET or parameter.dtype != bucket[0].dtype):
            _sum_bucket(bucket)
            bucket, held = [], 0
        bucket.append(parameter)
        held += parameter.numel()
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, total in zip(gradients, parts, strict=True):
        gradient.copy_(total.view_as(gradient))


@torch.no_grad()
def sum_values(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars summed over the processes, in one collective: shares to what they are shares of."""
    if world_size() == 1 or not values:
        return dict(values)
    stacked = torch.stack([value.detach().float() for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked, strict=True))
