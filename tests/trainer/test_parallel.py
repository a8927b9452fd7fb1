from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer import group
from tests.trainer.conftest import MakeShards, small_recipe
from tests.trainer.group import Job
from trainer import parallel
from trainer.checkpoint import load_model
from trainer.config import Recipe
from trainer.recorder import read_metrics
from trainer.run import train

STEPS = 8
COMMON = (f"train.steps={STEPS}", "train.val_every=4", "train.checkpoint_every=4")
CASES: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "ddp_norm": ("model.options.norm=batch",),
    "ddp_parts": (
        "ema.enabled=true",
        "loss.distill.queue=40",
        "train.micro_batch=3",
        "train.recompute=true",
        "data.cache_mib=0",
        "data.shuffle_groups=1",
    ),
    "fsdp": ("train.parallel=fsdp", "ema.enabled=true", "optim.clip=0.5"),
    "fsdp_parts": ("train.parallel=fsdp", "train.micro_batch=2", "train.recompute=true"),
    # What the run of the first case takes to be alike.
    "alike": ("data.near=4", "data.near_by=student", "model.init={folder}/ddp"),
    "stopped": ("ema.enabled=true",),
    "stopped_fsdp": ("ema.enabled=true", "train.parallel=fsdp"),
    "diverges": ("optim.lr=1e30", "optim.clip=0", "optim.warmup=0"),
}
# At which question of the first process whether to stop the answer is yes (one a step, and
# one a batch of validation: two after step 4), and the step that the run then is at.
STOPS = {"stopped": (5, 4), "stopped_fsdp": (7, 5)}
FOUND: dict[int, tuple[list[dict[str, Any]], Job]] = {}  # processes are started once for all


@pytest.fixture(params=[2, pytest.param(3, marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def module_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("group")


@pytest.fixture
def found(
    world: int, make_shards: MakeShards, module_tmp: Path
) -> tuple[list[dict[str, Any]], Job]:
    if world not in FOUND:
        # Every other row has a text in one set, none in the other: some processes have no text.
        shards = [make_shards("a", textless=2, count=60)]
        shards.append(make_shards("b", prefix="mute", textless=1, count=36))
        folder = module_tmp / str(world)
        folder.mkdir()
        runs = {
            name: (
                recipe_of(name, folder).model_dump(mode="json"),
                shards,
                STOPS.get(name, (0, 0))[0],
            )
            for name in CASES
        }
        job = Job(folder, world, runs)
        FOUND[world] = (group.run(job), job)
    return FOUND[world]


def recipe_of(name: str, folder: Path) -> Recipe:
    return small_recipe(*COMMON, *(option.format(folder=folder) for option in CASES[name]))


def curve(run: Path) -> list[tuple[int, float, float, float]]:
    return [
        (line["step"], line["loss"], line["grad_norm"], line["samples"])
        for line in read_metrics(run)
        if line["kind"] == "train"
    ]


def alone(job: Job, name: str, tmp_path: Path) -> Path:
    """The run of a case by one process."""
    _, shards, _ = job.runs[name]
    out = tmp_path / "alone"
    train(shards, recipe_of(name, job.folder), out, device="cpu")
    return out


def assert_same_run(left: Path, right: Path) -> None:
    assert len(curve(left)) == STEPS
    for mine, theirs in zip(curve(left), curve(right), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4), mine[0]
    ours, others = (load_model(run).backbone.state_dict() for run in (left, right))
    for name, value in ours.items():
        torch.testing.assert_close(value, others[name], rtol=1e-2, atol=2e-4, msg=name)
    scores = [
        [line["align"] for line in read_metrics(run) if line["kind"] == "val"]
        for run in (left, right)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    assert len(scores[0]) == 2


@pytest.mark.parametrize("name", ["ddp", "ddp_norm", "ddp_parts", "fsdp", "fsdp_parts", "alike"])
def test_run__several_processes_follow_the_curve_of_one(
    found: tuple[list[dict[str, Any]], Job], name: str, tmp_path: Path
) -> None:
    results, job = found
    assert all(name not in result for result in results), results[0].get(name)
    assert_same_run(job.folder / name, alone(job, name, tmp_path))


@pytest.mark.parametrize("name", ["stopped", "stopped_fsdp"])
def test_run__one_process_goes_on_where_several_stopped(
    found: tuple[list[dict[str, Any]], Job], name: str, tmp_path: Path
) -> None:
    results, job = found
    assert [result[name] for result in results] == ["interrupted"] * job.world
    out = job.folder / name
    assert load_model(out).step == STOPS[name][1]
    train([], None, out, resume=True, device="cpu")
    assert_same_run(out, alone(job, name, tmp_path))


def test_run__all_processes_end_with_the_same_error(
    found: tuple[list[dict[str, Any]], Job],
) -> None:
    results, job = found
    messages = {result["diverges"].strip().splitlines()[-1] for result in results}
    assert len(messages) == 1
    assert "lower --set optim.lr" in messages.pop()
    assert (job.folder / "diverges" / "diverged.json").is_file()


def test_first__decides_for_all(found: tuple[list[dict[str, Any]], Job]) -> None:
    results, job = found
    ranks = list(range(job.world))
    for result in results:
        assert result["told"] == [True, False, 0, ranks, "no room"]


def test_joint_batch_norm__equals_that_of_all_rows(
    found: tuple[list[dict[str, Any]], Job],
) -> None:
    results, job = found
    generator = torch.Generator().manual_seed(3)
    count = sum(index + 2 for index in range(job.world))
    rows = (torch.randn(count, 4, generator=generator) * 3 + 1).requires_grad_(True)
    weights = torch.randn(count, 4, generator=generator)
    module = nn.Sequential(nn.BatchNorm1d(4))
    out = module(rows)
    (out * weights).sum().backward()
    assert rows.grad is not None
    together = {
        name: torch.cat([result["norm"][name] for result in results]) for name in ("out", "grad")
    }
    torch.testing.assert_close(together["out"], out.detach())
    torch.testing.assert_close(together["grad"], rows.grad, rtol=1e-4, atol=1e-6)
    module.eval()
    for result in results:
        torch.testing.assert_close(result["norm"]["state"], module.state_dict())
        torch.testing.assert_close(result["norm"]["eval"], module(rows).detach())


def test_ema__goes_on_after_a_validation_where_weights_are_shared_out(
    found: tuple[list[dict[str, Any]], Job],
) -> None:
    first, *others = [result["average"] for result in found[0]]
    expected = dict(first["student"])
    expected["0.weight"] = expected["0.weight"] - 0.5  # half way from what it was to 1 more
    torch.testing.assert_close(first["average"], expected)
    # The whole is with the process that writes it.
    for other in others:
        assert all(value.numel() == 0 for value in other["average"].values())


def test_one_process__decides_alone() -> None:
    assert parallel.agree(True)
    assert not parallel.agree(False)
    assert parallel.first_does(lambda: 3) == 3
    assert parallel.collect("a") == ["a"]
    assert parallel.choose_kind("fsdp", torch.device("cpu"), 10**9) == "one"


@pytest.mark.parametrize("largest", [0.5, float("inf")])
def test_clip__is_that_of_pytorch(largest: float) -> None:
    def gradients() -> nn.Linear:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        module(torch.ones(4, 3)).square().sum().backward()
        return module

    ours, theirs = gradients(), gradients()
    norm = parallel.clip_gradients(ours.parameters(), largest)
    assert norm == nn.utils.clip_grad_norm_(theirs.parameters(), largest)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.equal(mine.grad, other.grad)


@pytest.mark.parametrize("saved", [True, False])
def test_load_optimizer__steps_the_way_it_was_built_not_as_the_saved_one(saved: bool) -> None:
    def stepped(fused: bool, state: dict[str, Any] | None = None) -> torch.optim.AdamW:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(3))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=fused, foreach=False)
        if state is not None:
            parallel.load_optimizer(optimizer, state)
        parameter.grad = torch.ones(3)
        optimizer.step()
        return optimizer

    state = stepped(saved).state_dict()
    state["param_groups"][0]["lr"] = 0.2  # what else stands there is taken over
    optimizer = stepped(not saved, state)
    assert optimizer.param_groups[0]["fused"] is not saved
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert all(moments["step"] == 2 for moments in optimizer.state.values())
