"""Choosing the device and the precision, and feeding a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from pipeline.common import InputError
from pipeline.teachers import device
from pipeline.teachers.device import choose_device, choose_precision, on_device


def test_choose_device__what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    assert choose_device("cpu") == "cpu"
    with pytest.raises(InputError, match=r"--device cuda: no CUDA device.*--device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    assert choose_device("cuda") == "cuda"
    with pytest.raises(InputError, match="--device tpu: use auto, cpu or cuda"):
        choose_device("tpu")


@pytest.mark.parametrize(
    ("name", "device", "capability", "expected"),
    [
        ("auto", "cpu", None, "fp32"),
        ("bf16", "cpu", None, "bf16"),
        ("auto", "cuda", (9, 0), "bf16"),
        ("auto", "cuda:1", (8, 0), "bf16"),
        ("auto", "cuda", (7, 5), "fp16"),
        ("fp32", "cuda", (9, 0), "fp32"),
        ("fp16", "cuda", (9, 0), "fp16"),
    ],
)
def test_choose_precision__by_device(
    name: str,
    device: str,
    capability: tuple[int, int] | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision(name, device) == expected


def test_choose_precision__what_cannot_be() -> None:
    with pytest.raises(InputError, match=r"--precision fp16.*fp32 or bf16"):
        choose_precision("fp16", "cpu")
    with pytest.raises(InputError, match=r"--precision half: use auto, fp32, bf16, fp16"):
        choose_precision("half", "cpu")


def test_on_device__a_cpu_gets_the_chunks_as_they_come() -> None:
    made = []

    def chunks() -> Iterator[torch.Tensor]:
        for value in range(3):
            made.append(value)
            yield torch.tensor([value])

    for number, chunk in enumerate(on_device(chunks(), "cpu")):
        assert chunk.tolist() == [number]
        assert made == list(range(number + 1))


class Streams:
    """A model of CUDA streams: what is queued runs as late as the events allow, or at once."""

    def __init__(self, lazy: bool) -> None:
        self.lazy = lazy
        self.compute, self.copies = Stream(self), Stream(self)
        self.current = self.compute


class Stream:
    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.queue: list[Callable[[], None]] = []
        self.ran = 0

    def add(self, work: Callable[[], None]) -> None:
        self.queue.append(work)
        if not self.streams.lazy:
            self.run(len(self.queue))

    def run(self, until: int) -> None:
        while self.ran < until:
            self.ran += 1
            self.queue[self.ran - 1]()

    def wait_event(self, event: Event) -> None:
        stream, place = event.recorded
        self.add(lambda: stream.run(place) if stream else None)

    def wait_stream(self, other: Stream) -> None:
        place = len(other.queue)
        self.add(lambda: other.run(place))


class Event:
    def __init__(self) -> None:
        self.recorded: tuple[Any, int] = (None, 0)

    def record(self, stream: Stream) -> None:
        self.recorded = (stream, len(stream.queue))

    def synchronize(self) -> None:
        stream, place = self.recorded
        if stream:
            stream.run(place)


class Buffer:
    """Memory whose content is looked at when the work that reads it runs."""

    def __init__(self, streams: Streams | None) -> None:
        self.streams, self.value = streams, -1

    def __getitem__(self, part: slice) -> Part:
        return Part(self, part.stop)


class Part:
    """The first places of a buffer."""

    def __init__(self, buffer: Buffer, length: int) -> None:
        self.buffer, self.length = buffer, length

    def copy_(self, source: Any, non_blocking: bool = False) -> None:
        buffer = self.buffer
        assert len(source) == self.length
        if buffer.streams is None:  # of the host: copied at once
            buffer.value = source[0]
            return
        assert non_blocking

        def work() -> None:
            buffer.value = source.buffer.value

        buffer.streams.current.add(work)

    def __len__(self) -> int:
        return self.length


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 8])
def test_on_device__the_buffers_turns_are_safe_however_late_the_work_runs(
    lazy: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = Streams(lazy)

    class Slot:
        def __init__(self, *_: Any) -> None:
            self.host, self.there = Buffer(None), Buffer(streams)
            self.copied, self.used = Event(), Event()
            self.length = 0

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        streams.current = stream
        yield
        streams.current = streams.compute

    monkeypatch.setattr(device, "_Slot", Slot)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: streams.compute)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: streams.copies)
    monkeypatch.setattr(torch.cuda, "stream", on)
    found: list[int] = []
    ahead = []
    lengths = [4] * (count - 1) + [3]  # of the chunks
    chunks = [[value] * length for value, length in zip(range(count), lengths, strict=False)]
    fed: Any = on_device(iter(chunks), "cuda")  # type: ignore[arg-type]
    for number, part in enumerate(fed):
        assert len(part) == lengths[number]
        # Twice, as a kernel that takes its time: the content has to stay in between.
        for _ in range(2):
            streams.compute.add(lambda part=part: found.append(part.buffer.value))  # type: ignore[misc]
        ahead.append(len(streams.compute.queue) - streams.compute.ran)
    streams.compute.run(len(streams.compute.queue))
    assert found == [value for value in range(count) for _ in range(2)]
    # Each chunk is three entries: a wait, and the two above. The host is not held up by each one,
    # and does not run ahead of all either.
    assert max(ahead, default=0) <= 4 * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_device__nothing_is_overwritten_while_it_is_used() -> None:
    chunks = torch.randint(0, 256, (9, 64, 224, 224, 3), dtype=torch.uint8)
    work = torch.randn(4096, 4096, device="cuda")
    found = []
    for chunk in on_device(iter(chunks), "cuda"):
        for _ in range(10):  # keeps the stream busy, so that the host runs ahead
            work = (work @ work).clamp_(-1, 1)
        found.append(chunk.clone())
    torch.cuda.synchronize()
    assert len(found) == 9
    for chunk, copy in zip(chunks, found, strict=True):
        assert torch.equal(copy.cpu(), chunk)
