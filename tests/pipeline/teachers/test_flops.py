"""The operations that the bench counts, against torch's own counter."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.teachers.towers import replace_attention
from tests.bench.bench_encode import vision_flops
from tests.pipeline.test_teacher import TINY


@pytest.mark.parametrize(
    "changes", [{}, {"width": 96, "head_width": 48, "layers": 3, "mlp_ratio": 4.9231}]
)
def test_vision_flops__as_torch_counts_them(changes: dict[str, Any]) -> None:
    config = copy.deepcopy(TINY)
    config["vision_cfg"] |= {"image_size": 48, **changes}
    model = open_clip.CLIP(**copy.deepcopy(config)).eval().requires_grad_(False)
    replace_attention(model)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        model.encode_image(torch.zeros(1, 3, 48, 48))
    assert vision_flops(config) == counter.get_total_flops()


def test_vision_flops__of_the_model_of_the_bench() -> None:
    config = open_clip.get_model_config("ViT-bigG-14")
    assert config is not None
    # 1.84 billion parameters, two operations each for 257 tokens, and the attention.
    assert vision_flops(config) == pytest.approx(2 * 1.84e9 * 257, rel=0.04)
