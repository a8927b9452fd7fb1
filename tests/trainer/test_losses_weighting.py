from __future__ import annotations

import pytest
import torch

from trainer.config import DistillConfig
from trainer.losses.weighting import Fixed, Mixture, Uncertainty, build_weighting


def test_mixture__floor_bounds_learned_weights() -> None:
    names = ["intra_image", "intra_text", "cross"]
    for floor in (0.0, 0.2):
        mixture = Mixture(names, floor)
        with torch.no_grad():
            mixture.logits.copy_(torch.tensor([50.0, 0.0, -50.0]))
        assert float(mixture.weights().detach().min()) == pytest.approx(floor, abs=1e-6)


def test_mixture__stays_bounded_and_moves_under_training() -> None:
    mixture = Mixture(["a", "b", "c"], 0.1)
    terms = {"a": torch.tensor(1.0), "b": torch.tensor(3.0), "c": torch.tensor(9.0)}
    optimizer = torch.optim.SGD(mixture.parameters(), lr=1.0)
    start = mixture.weights().detach().clone()
    for _ in range(200):
        optimizer.zero_grad()
        mixture(terms).backward()
        optimizer.step()
        weights = mixture.weights().detach()
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
        assert float(weights.min()) >= 0.1 - 1e-6
        assert float(weights.max()) <= 0.8 + 1e-6
    assert not torch.allclose(start, weights, atol=1e-3)


def test_uncertainty__settles_where_each_weight_is_one_over_its_loss() -> None:
    weighting = Uncertainty(["a", "b"])
    terms = {"a": torch.tensor(0.5), "b": torch.tensor(4.0)}
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        weighting(terms).backward()
        optimizer.step()
    assert weighting.weights().detach().tolist() == pytest.approx([2.0, 0.25], rel=1e-2)


def test_fixed__has_no_parameters_and_reports_its_weights() -> None:
    weighting = Fixed(["a", "b"], [1.0, 0.5])
    assert list(weighting.parameters()) == []
    assert weighting.report() == {"weight_a": 1.0, "weight_b": 0.5}
    assert float(weighting({"a": torch.tensor(2.0), "b": torch.tensor(4.0)})) == 4.0


def test_build_weighting__has_the_enabled_terms_only() -> None:
    weighting = build_weighting(DistillConfig(intra_text=False))
    assert weighting.names == ["intra_image", "cross"]
    assert weighting.weights().detach().tolist() == pytest.approx([0.5, 0.5])


def test_uncertainty__a_vanishing_loss_does_not_take_over() -> None:
    weighting = Uncertainty(["a"])
    optimizer = torch.optim.SGD(weighting.parameters(), lr=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        weighting({"a": torch.tensor(0.0)}).backward()
        optimizer.step()
        weighting.clamp()
    assert weighting.weights().detach().tolist() == pytest.approx([148.413], rel=1e-4)  # exp(5)


@pytest.mark.parametrize("weighting", ["mixture", "uncertainty", "fixed"])
def test_weighting__shares_add_up_to_the_whole(weighting: str) -> None:
    module = build_weighting(DistillConfig(weighting=weighting))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.tensor([0.5, -1.0, 2.0]))
    whole = {"intra_image": 1.0, "intra_text": 4.0, "cross": 2.0}
    total = module({name: torch.tensor(value) for name, value in whole.items()})
    parts = [
        module({n: torch.tensor(v * part) for n, v in whole.items()}, share=part)
        for part in (0.25, 0.75)
    ]
    assert sum(float(part.detach()) for part in parts) == pytest.approx(float(total.detach()))


def test_mixture__refuses_a_floor_for_which_there_is_no_room() -> None:
    with pytest.raises(ValueError, match="too large"):
        Mixture(["a", "b", "c"], 0.4)
