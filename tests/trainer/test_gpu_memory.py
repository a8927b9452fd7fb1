"""Whether recipes fit into the GPUs they name: counted on fake tensors, which need no GPU.

What a forward pass keeps for the gradient, the weights and what the optimiser has of them. The
backward pass and the allocator take more: a third of the card is left to them.
"""

from __future__ import annotations

import re
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.backbones import build_backbone
from trainer.backbones.layers import recompute_blocks
from trainer.config import Recipe
from trainer.recipe import TWIN, load_about, load_recipe, override_recipe, recipe_names

GPU = torch.device("cuda", 0)
GIB = 2**30


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of tensors made inside that are still held, and the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, key, None)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return made


def gib_of_a_step(recipe: Recipe, gpus: int) -> float:
    """GiB of the student, its gradient and moments, and of a forward pass in training."""
    rows = -(-recipe.data.batch_size // gpus)
    rows = min(rows, recipe.train.micro_batch or rows)
    with torch.device("meta"):
        student = build_backbone(recipe.model.backbone, 1280, dict(recipe.model.options))
    copies = 4 + recipe.ema.enabled
    states = copies * sum(4 * parameter.numel() for parameter in student.parameters())
    if recipe.train.recompute:
        recompute_blocks(student)
    bf16 = recipe.train.precision != "fp32"
    live = Live()
    with FakeTensorMode():
        for module in student.modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for values in tables:
                for name, value in values.items():
                    if value is not None:
                        fake = torch.empty(value.shape, dtype=value.dtype, device=GPU)
                        is_parameter = isinstance(value, nn.Parameter)
                        values[name] = nn.Parameter(fake) if is_parameter else fake
        clouds = torch.empty(2, rows, recipe.data.n_points, 3, device=GPU)
        with live, torch.autocast("cuda", torch.bfloat16) if bf16 else nullcontext():
            kept = student.train()(clouds[0], clouds[1])
    assert kept.shape[0] == rows
    return (states + live.peak) / GIB


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.cuda.amp.common as amp

    pytest.importorskip("triton", reason="needs Triton")
    monkeypatch.setattr(amp, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)


NAMED = [name for name in recipe_names() if load_about(name).gpus and not name.startswith(TWIN)]


@pytest.mark.slow
@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("name", NAMED)
def test_recipe__fits_into_the_gpus_that_it_names(name: str) -> None:
    about = load_about(name)
    found = re.search(r"(\d+) GB", about.gpu)
    assert found is not None
    needed = gib_of_a_step(load_recipe(name), about.gpus)
    assert needed < 2 / 3 * int(found[1]) * 1e9 / GIB, f"{needed:.1f} GiB"


@pytest.mark.usefixtures("fakes")
def test_count__knows_what_parts_and_recomputation_save() -> None:
    recipe = load_recipe("mrd-pointbert-5m", ["data.batch_size=64"])
    whole = gib_of_a_step(recipe, 1)
    parts = gib_of_a_step(override_recipe(recipe, ["train.micro_batch=32"]), 1)
    shared = gib_of_a_step(recipe, 2)
    again = gib_of_a_step(override_recipe(recipe, ["train.recompute=true"]), 1)
    assert parts == shared
    assert parts < 0.7 * whole
    assert again < whole
