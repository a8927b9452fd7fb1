"""Where and how finely a teacher computes, and how its input gets there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from pipeline.common import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


def is_cuda(device: str) -> bool:
    """Whether a device of torch, as in ``cuda`` or ``cuda:1``, is a CUDA one."""
    return torch.device(device).type == "cuda"


def choose_device(name: str) -> str:
    """The device that ``auto``, ``cpu`` or ``cuda`` means here. Raises ``InputError``."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible to torch; use --device cpu")
    return name


def choose_precision(name: str, device: str) -> str:
    """What ``auto`` means on a device: ``fp32`` on CPUs, else ``bf16`` where the card has it.

    CPUs with the instructions for it encode pictures about twice as fast in ``bf16``, but the
    others tens of times slower, so there it is left to the user. Raises ``InputError`` for a name
    that is none, and for ``fp16`` on a CPU, which computes it slower than ``fp32``.
    """
    if name not in PRECISIONS:
        raise InputError(f"--precision {name}: use {', '.join(PRECISIONS)}")
    cuda = is_cuda(device)
    if name == "auto":
        if not cuda:
            return "fp32"
        # Compute capability 8 (Ampere); older cards emulate it, many times slower.
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if name == "fp16" and not cuda:
        raise InputError("--precision fp16: a CPU has no use for it; use fp32 or bf16")
    return name


class _Slot:
    """A pair of buffers, in page-locked memory and on the device, with who may touch them when."""

    def __init__(self, like: torch.Tensor, device: str) -> None:
        self.host = torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
        self.there = torch.empty(like.shape, dtype=like.dtype, device=device)
        event: Any = torch.cuda.Event
        self.copied = event()  # host -> there is done
        self.used = event()  # the work on there is done
        self.length = 0  # of the chunk in them


def on_device(chunks: Iterable[torch.Tensor], device: str) -> Iterator[torch.Tensor]:
    """Chunks on the device, in order; the next one is copied while one is computed on.

    All chunks have one type and shape, but for the last one, which may be shorter. A yielded tensor
    is good for work that is queued on the current stream before the next one is asked for. On a CPU
    the chunks are passed through.

    Two pairs of buffers take turns: the host fills page-locked memory, a stream of its own copies
    it, and the current stream waits for that copy alone. The host runs ahead of the device by four
    chunks at most, since it waits for the buffer that it is to fill.
    """
    if not is_cuda(device):
        yield from chunks
        return
    compute = torch.cuda.current_stream(device)
    stream: Any = torch.cuda.Stream
    copies = stream(device)
    slots: list[_Slot] = []
    ready: _Slot | None = None
    for number, chunk in enumerate(chunks):
        if number < 2:
            slots.append(_Slot(chunk, device))
            copies.wait_stream(compute)  # queued work may still use the memory that was given
        slot = slots[number % 2]
        slot.copied.synchronize()  # returns at once where nothing was recorded
        slot.length = len(chunk)
        slot.host[: slot.length].copy_(chunk)
        with torch.cuda.stream(copies):
            copies.wait_event(slot.used)
            slot.there[: slot.length].copy_(slot.host[: slot.length], non_blocking=True)
            slot.copied.record(copies)
        if ready is not None:
            yield from _used(ready, compute)
        ready = slot
    if ready is not None:
        yield from _used(ready, compute)


def _used(slot: _Slot, compute: torch.cuda.Stream) -> Iterator[torch.Tensor]:
    compute.wait_event(slot.copied)
    yield slot.there[: slot.length]
    slot.used.record(compute)
