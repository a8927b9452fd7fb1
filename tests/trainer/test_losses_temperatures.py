"""Learned temperatures of the relations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.features import SOME_TEXT, TAUS, batch, distill
from trainer.config import DistillConfig
from trainer.losses import DistillLoss


@pytest.mark.parametrize("learn", ["student", "both"])
def test_learn_tau__gradients_are_right_and_reach_the_asked_side_only(learn: Any) -> None:
    f = batch(SOME_TEXT)
    loss = DistillLoss(DistillConfig(learn_tau=learn, **TAUS)).double()
    sides = ("student",) if learn == "student" else ("teacher", "student")
    assert set(loss.log_tau) == {f"{side}_{kind}" for side in sides for kind in ("intra", "cross")}
    assert distill(f, **TAUS)[0] == pytest.approx(float(loss(f)[0].detach()), rel=1e-6)
    loss(f)[0].backward()
    step = 1e-6
    for name, parameter in loss.log_tau.items():
        assert parameter.grad is not None
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step)
            values.append(float(loss(f)[0].detach()))
            with torch.no_grad():
                parameter.sub_(sign * step)
        slope = (values[0] - values[1]) / (2 * step)
        assert float(parameter.grad) == pytest.approx(slope, rel=1e-5), name
    assert set(loss.report()) == {f"tau_{name}" for name in loss.log_tau}


def test_learn_tau__none_has_no_parameters_and_unused_ones_are_not_made() -> None:
    assert len(DistillLoss(DistillConfig()).log_tau) == 0
    names = set(DistillLoss(DistillConfig(learn_tau="both", cross=False)).log_tau)
    assert names == {"teacher_intra", "student_intra"}


def test_learn_tau__stays_within_its_bounds() -> None:
    config = DistillConfig(learn_tau="student", tau_min=0.05, tau_max=0.5)
    loss = DistillLoss(config)
    for value, bound in ((3.0, 0.5), (-9.0, 0.05)):
        with torch.no_grad():
            loss.log_tau["student_intra"].fill_(value)
        tau = loss.tau("student_intra")
        assert isinstance(tau, Tensor)
        assert float(tau.detach()) == pytest.approx(bound)
        loss.clamp()
        assert float(loss.log_tau["student_intra"].detach().exp()) == pytest.approx(bound)


@pytest.mark.parametrize("value", [3.0, -9.0])
def test_learn_tau__at_its_bound_leaves_it_when_the_loss_asks(value: float) -> None:
    """Of ``Tensor.clamp`` the gradient is 0 there, and the temperature would stay for ever."""
    loss = DistillLoss(DistillConfig(learn_tau="student"))
    parameter = loss.log_tau["student_intra"]
    with torch.no_grad():
        parameter.fill_(value)
    loss.clamp()
    tau = loss.tau("student_intra")
    assert isinstance(tau, Tensor)
    tau.backward()  # type: ignore[no-untyped-call]
    assert parameter.grad is not None
    assert float(parameter.grad) == pytest.approx(float(tau.detach()))  # d exp(t) / dt
