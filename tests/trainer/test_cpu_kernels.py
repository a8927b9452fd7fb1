from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.cpu_kernels import add_at_winners


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 20])
def test_add_at_winners__equals_the_products_of_matrices(
    threads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    groups, neighbours, channels, out = 13, 6, 9, 21
    h_RI, d_PO = draw(groups * neighbours, channels, dtype=dtype), draw(groups, out, dtype=dtype)
    d_PO[draw(groups, out, dtype=dtype) > 1] = 0
    weight_OI = draw(channels, out, dtype=dtype).T  # not in the order of its shape
    generator = torch.Generator().manual_seed(0)
    winner_PO = torch.randint(0, neighbours, (groups, out), generator=generator)
    spread_PKO = torch.zeros(groups, neighbours, out, dtype=dtype)
    spread_RO = spread_PKO.scatter_(1, winner_PO[:, None], d_PO[:, None]).flatten(0, 1)
    before_RI = draw(groups * neighbours, channels, dtype=dtype)
    dh_RI = before_RI.clone()
    product_OI = add_at_winners(d_PO, winner_PO, weight_OI, h_RI, dh_RI)
    torch.testing.assert_close(dh_RI, before_RI + spread_RO @ weight_OI)
    torch.testing.assert_close(product_OI, spread_RO.T @ h_RI)


def test_add_at_winners__no_neighbourhoods_give_nothing() -> None:
    none, winner = torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int64)
    product = add_at_winners(none, winner, torch.ones(4, 3), torch.zeros(0, 3), torch.zeros(0, 3))
    assert torch.equal(product, torch.zeros(4, 3))
