"""Faster towers against the plain ones of open_clip and torch."""

from __future__ import annotations

import json
from typing import Any

import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.teachers.towers import Compiled, SelfAttention, ShortTexts, replace_attention
from tests.pipeline.test_teacher import TINY


def clip(**text_changes: Any) -> Any:
    config = json.loads(json.dumps(TINY))
    config["text_cfg"] |= {"context_length": 40, **text_changes}
    torch.manual_seed(0)
    return open_clip.CLIP(**config).eval().requires_grad_(False)


def tokens_of(lengths: list[int], context: int = 40, end: int = 1513) -> torch.Tensor:
    """Random tokens that end where told, with other tokens after the end."""
    tokens = torch.randint(1, 1000, (len(lengths), context), generator=torch.manual_seed(1))
    for row, length in zip(tokens, lengths, strict=True):
        row[length - 1] = end
    return tokens


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_self_attention__same_as_torchs_own(masked: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(24, 3, batch_first=True).eval().requires_grad_(False)
    nn.init.normal_(plain.in_proj_bias)
    mask = torch.full((7, 7), -torch.inf).triu_(1) if masked else None
    x = torch.randn(5, 7, 24)
    expected, _ = plain(x, x, x, need_weights=False, attn_mask=mask)
    ours = SelfAttention(plain).to(dtype)
    mask = None if mask is None else mask.to(dtype)
    found, weights = ours(*[x.to(dtype)] * 3, need_weights=False, attn_mask=mask)
    assert weights is None
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), expected, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0
    )


def test_replace_attention__every_block_of_both_towers_gives_the_same() -> None:
    model = clip(layers=3)
    images = torch.randn(4, 3, 32, 32)
    texts = tokens_of([3, 9, 40, 17])
    before = model.encode_image(images), model.encode_text(texts)
    assert replace_attention(model) == 1 + 3
    assert replace_attention(model) == 0
    torch.testing.assert_close(model.encode_image(images), before[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.encode_text(texts), before[1], atol=1e-5, rtol=1e-4)


def test_replace_attention__leaves_alone_what_differs() -> None:
    class ResidualAttentionBlock(nn.Module):  # recognised by this name
        def __init__(self, attention: nn.Module) -> None:
            super().__init__()
            self.attn = attention

    others = [
        nn.MultiheadAttention(8, 2, batch_first=False),
        nn.MultiheadAttention(8, 2, batch_first=True, kdim=4, vdim=4),
        nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
        nn.Linear(2, 2),
    ]
    model = nn.ModuleList([ResidualAttentionBlock(other) for other in others])
    assert replace_attention(model) == 0


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool_type": "eos", "eos_id": 1513}, {"proj_bias": True}, {"proj_type": "none"}],
)
def test_short_texts__same_as_the_whole_context(changes: dict[str, Any]) -> None:
    model = clip(**changes, width=32, layers=2)
    if isinstance(model.text_projection, nn.Linear):
        nn.init.normal_(model.text_projection.bias)
    lengths = [2, 15, 16, 17, 31, 32, 33, 40]
    tokens = tokens_of(lengths)
    short = ShortTexts.of(model)
    assert short is not None
    found = short.lengths(tokens)
    assert found.tolist() == [16, 16, 16, 32, 32, 32, 40, 40]
    expected = model.encode_text(tokens)
    for row, length in enumerate(found.tolist()):
        ours = short(tokens[row : row + 1, :length])
        torch.testing.assert_close(ours[0], expected[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"pool_type": "last"}, {"no_causal_mask": True}])
def test_short_texts__not_for_models_that_look_beyond_the_end(changes: dict[str, Any]) -> None:
    assert ShortTexts.of(clip(**changes)) is None


def test_short_texts__not_for_another_kind_of_model() -> None:
    config = json.loads(json.dumps(TINY))
    assert ShortTexts.of(open_clip.CustomTextCLIP(**config)) is None


def double(batch: torch.Tensor) -> torch.Tensor:
    return torch.stack([batch, batch**2], 1)


BATCH = torch.linspace(0.5, 2, 5)


def test_compiled__what_works_is_used_and_compiled_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []
    calls: list[int] = []

    def compile_(tower: Any, **options: Any) -> Any:
        asked.append(options)

        def run(batch: torch.Tensor) -> Any:
            calls.append(len(batch))
            return tower(batch)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    tower = Compiled(double, "pictures")
    for _ in range(3):
        assert torch.equal(tower(BATCH), double(BATCH))
    assert asked == [{"dynamic": False, "fullgraph": True}]
    assert calls == [5] * 4  # the first one for the comparison
    assert tower.reason is None
    assert capsys.readouterr().err == ""


def test_compiled__what_fails_is_said_and_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no Triton here\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    tower = Compiled(double, "pictures")
    assert torch.equal(tower(BATCH), double(BATCH))
    assert torch.equal(tower(BATCH), double(BATCH))
    err = " ".join(capsys.readouterr().err.split())
    assert err.count("torch.compile failed (RuntimeError: no Triton here)") == 1
    assert "encoding pictures without it" in err


def test_compiled__other_embeddings_are_not_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda tower, **_: lambda batch: tower(batch).flip(1))
    tower = Compiled(double, "texts")
    assert torch.equal(tower(BATCH), double(BATCH))
    assert "gives other embeddings" in " ".join(capsys.readouterr().err.split())


def test_compiled__not_finite_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda tower, **_: lambda batch: tower(batch) * torch.nan)
    tower = Compiled(double, "texts")
    assert torch.equal(tower(BATCH), double(BATCH))
    assert tower.reason is not None


def test_compiled__too_little_memory_is_not_taken_for_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        Compiled(double, "texts")(BATCH)


@pytest.mark.slow
def test_compiled__really_compiled_towers_agree() -> None:
    # In one graph, on the CPU: what falls out of the graph would be an error here.
    model = clip(layers=2)
    replace_attention(model)
    images, texts = torch.randn(4, 3, 32, 32), tokens_of([3, 9, 40, 17])
    for tower, batch in ((model.encode_image, images), (model.encode_text, texts)):
        compile_: Any = torch.compile
        graph = compile_(tower, dynamic=False, fullgraph=True, backend="aot_eager")
        with torch.inference_mode():
            assert F.cosine_similarity(graph(batch), tower(batch)).min() > 0.9999
