from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer import processes
from tests.trainer.conftest import WIDTH, MakeShards, small_recipe
from tests.trainer.features import ROWS, batch
from tests.trainer.processes import CASES, WORLD, Job, run_case, train_steps
from trainer import distributed
from trainer.data import Batches
from trainer.distributed import (
    gather_counts,
    gather_features,
    gather_rows,
    rank,
    sum_gradients,
    sum_values,
    world_size,
)
from trainer.index import Corpus

# The same whether a row is on one process or the other: augmentation draws by process.
PLAIN = (
    "augment.drop_color=0.0",
    "augment.scale=[1.0, 1.0]",
    "augment.shift=0.0",
    "augment.rotate_sigma=0.0",
    "augment.yaw=false",
    "augment.drop_points=0.0",
    "loss.distill.queue=40",
    "train.micro_batch=6",
)


@pytest.fixture(scope="module")
def module_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


FOUND: dict[str, Any] = {}  # processes are started once for all tests of this file


@pytest.fixture
def found(make_shards: MakeShards, module_tmp: Path) -> dict[str, Any]:
    if not FOUND:
        recipe = small_recipe(*PLAIN)
        batches = Batches(Corpus([make_shards(textless=6)], recipe), 0)
        job = Job(module_tmp, recipe, WIDTH, list(batches.epoch(0))[:4], first=10)
        FOUND["processes"], FOUND["job"] = processes.run(job), job
    return FOUND


@pytest.mark.parametrize("name", list(CASES))
def test_shares__loss_and_gradients_equal_those_of_one_process(
    found: dict[str, Any], name: str
) -> None:
    expected = run_case(CASES[name], slice(None))
    for given in (result[name] for result in found["processes"]):
        # Shares are summed in single precision for the log.
        assert given["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        for mine, theirs in zip(given["terms"], expected["terms"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-6)
        for parameter, gradient in expected["gradients"].items():
            torch.testing.assert_close(
                given["gradients"][parameter], gradient, rtol=1e-6, atol=1e-9, msg=parameter
            )


def test_training__two_processes_follow_the_loss_of_one(found: dict[str, Any]) -> None:
    job = found["job"]
    expected = train_steps(job.recipe, job.width, job.batches, slice(None))
    for result in found["processes"]:
        assert result["train"] == pytest.approx(expected, rel=1e-4)
    assert len(expected) == len(set(expected)) == 4


def test_gather_rows__gradients_are_summed_over_processes(found: dict[str, Any]) -> None:
    first, second = (result["gather"] for result in found["processes"])
    assert first.tolist() == [[0, 3]]  # weights 0 1, times 1 + 2
    assert second.tolist() == [[6, 9], [12, 15]]


def test_gather_counts__goes_by_way_of_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather(everyone: list[torch.Tensor], mine: torch.Tensor, group: str) -> None:
        assert group == "hosts"
        assert mine.is_cpu
        for place, value in enumerate(everyone):
            value.copy_(mine + place)

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "control_group", lambda: "hosts")
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    assert gather_counts([3, 0]) == [[3, 0], [4, 1]]


def test_one_process__everything_is_the_identity() -> None:
    assert (world_size(), rank()) == (1, 0)
    assert WORLD == 2
    features = batch()
    assert gather_features(features) == (features, 0)
    assert gather_rows(features.point, [ROWS]) is features.point
    assert gather_counts([3, 4]) == [[3, 4]]
    module = nn.Linear(2, 2)
    sum_gradients(module)
    assert module.weight.grad is None
    values = {"a": torch.tensor(1.0)}
    assert sum_values(values) == values
