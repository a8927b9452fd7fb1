"""The teacher in other precisions, and rows that do not depend on their company."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.common import InputError
from pipeline.shards.manifest import FINGERPRINT_COSINE
from pipeline.teacher import Teacher, load_clip, load_matching
from pipeline.teachers.towers import ShortTexts
from tests.pipeline.test_teacher import photos, write_teacher

TEXTS = [
    "a red mug",
    "x",
    "three blue boxes on a wooden table beside a green lamp and a chair with long legs",
    "lamp",
    "a table with a round top",
    "a very long description " * 20,
    "",
]
# Wide enough for the matrix libraries to split their work into blocks.
WIDE: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 320, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 1514, "width": 192, "heads": 3, "layers": 2},
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{write_teacher(tmp_path_factory.mktemp('teacher') / 'wide', **WIDE)}"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the job's encoders run: with more threads, a row's place decides which of them has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_encode__a_row_does_not_depend_on_what_it_is_encoded_with(
    spec: str, precision: str
) -> None:
    teacher = load_clip(spec, batch_size=6, fixed_batch=True, precision=precision)
    images = photos(13, 64)
    together = teacher.encode_images(images)
    for order in (np.arange(13)[::-1], np.roll(np.arange(13), 5), np.array([7]), np.arange(2, 9)):
        assert np.array_equal(teacher.encode_images(images[order]), together[order])
    texts = teacher.encode_texts(TEXTS)
    for order in (np.arange(7)[::-1], np.array([3]), np.array([1, 2, 5, 6])):
        assert np.array_equal(teacher.encode_texts([TEXTS[i] for i in order]), texts[order])


def test_encode__more_batches_than_are_gathered_at_once(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_clip(spec, batch_size=2, fixed_batch=True)
    images = photos(11, 64)
    whole = teacher.encode_images(images)
    monkeypatch.setattr("pipeline.teachers.model._SPAN", 2)
    assert np.array_equal(teacher.encode_images(images), whole)


@pytest.mark.parametrize("name", ["demo", "wide"])
def test_precision__bf16_is_the_same_teacher_within_the_fingerprints_tolerance(
    spec: str, name: str
) -> None:
    plain = load_clip("demo" if name == "demo" else spec)
    assert plain.precision == "fp32"
    half = load_matching(plain.info, None if name == "demo" else spec, precision="bf16")
    assert isinstance(half, Teacher)
    assert half.precision == "bf16"
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.info.config == plain.info.config
    assert half.info.logit_scale == plain.info.logit_scale  # read before it was rounded
    images = photos(8, 64)
    ours, theirs = half.encode_images(images), plain.encode_images(images)
    assert ours.dtype == np.float32
    assert not np.array_equal(ours, theirs)
    assert (ours * theirs).sum(1).min() >= FINGERPRINT_COSINE
    assert (half.encode_texts(TEXTS) * plain.encode_texts(TEXTS)).sum(1).min() >= FINGERPRINT_COSINE
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_preprocess__stays_in_fp32(spec: str) -> None:
    images = torch.from_numpy(photos(2, 64))
    half, plain = load_clip(spec, precision="bf16"), load_clip(spec)
    found = half.preprocess(images)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain.preprocess(images))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_compiled__a_cpu_ignores_it(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("compiled on a CPU")

    monkeypatch.setattr(torch, "compile", refuse)
    teacher = load_clip(spec, compiled=True)
    assert not teacher.compiled
    assert teacher.encode_texts(["x"]).shape == (1, 96)


def test_encode_texts__a_tower_that_differs_when_cut_is_not_cut(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_clip(spec).encode_texts(TEXTS)
    original = ShortTexts.__call__

    def off(self: ShortTexts, tokens: torch.Tensor) -> torch.Tensor:
        return original(self, tokens).flip(1)

    monkeypatch.setattr(ShortTexts, "__call__", off)
    np.testing.assert_allclose(load_clip(spec).encode_texts(TEXTS), expected, atol=1e-5)


def test_encode_texts__needs_no_pictures(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_clip(spec)
    monkeypatch.setattr(teacher, "encode_images", None)
    monkeypatch.setattr(teacher.model, "visual", None)
    assert teacher.encode_texts(TEXTS).shape == (7, 96)
    assert teacher.encode_prompts(["mug"], ["a {}", "one {}"]).shape == (1, 96)


def test_encode_images__read_only_arrays_are_taken(spec: str) -> None:
    teacher = load_clip(spec)
    images = photos(3, 64)
    expected = teacher.encode_images(images)
    images.flags.writeable = False
    assert np.array_equal(teacher.encode_images(images), expected)
    assert np.array_equal(teacher.encode_images(images[:, ::-1][:, ::-1]), expected)


def test_teacher__weights_that_give_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "bad")
    weights = folder / "open_clip_model.safetensors"
    state = load_file(weights)
    state["positional_embedding"][0] = torch.nan
    save_file(state, weights)
    with pytest.raises(InputError, match="not finite; the weights are damaged"):
        load_clip(f"local-dir:{folder}")
    with pytest.raises(InputError, match="not finite; try --precision fp32"):
        load_clip(f"local-dir:{folder}", precision="bf16")


def test_encode__too_little_memory_names_the_batch_size(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_clip(spec)

    def full(*_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(teacher, "_image_tower", full)
    with pytest.raises(InputError, match=r"batches of 64 do not fit.*smaller --batch-size"):
        teacher.encode_images(photos(2, 64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("default")  # the compiler has advice on other precisions
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda__same_teacher_and_rows_that_stand_alone(
    spec: str, precision: str, compiled: bool
) -> None:
    plain = load_clip(spec)
    teacher = load_matching(
        plain.info, spec, "cuda", batch_size=6, fixed_batch=True, precision=precision,
        compiled=compiled,
    )  # fmt: skip
    images = photos(27, 64)
    together, texts = teacher.encode_images(images), teacher.encode_texts(TEXTS)
    assert (together * plain.encode_images(images)).sum(1).min() >= FINGERPRINT_COSINE
    assert (texts * plain.encode_texts(TEXTS)).sum(1).min() >= FINGERPRINT_COSINE
    order = np.roll(np.arange(27), 5)[:20]
    assert np.array_equal(teacher.encode_images(images[order]), together[order])
    assert np.array_equal(teacher.encode_texts([TEXTS[3]])[0], texts[3])
    if compiled:
        assert isinstance(teacher, Teacher)
        assert getattr(teacher._image_tower, "reason", "") is None
        assert getattr(teacher._text_tower, "reason", "") is None
