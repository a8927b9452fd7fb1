from __future__ import annotations

import dataclasses
import json
import math
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.common import InputError
from tests.trainer.conftest import SMALL, MakeShards, Synth, make_rows, write_rows
from trainer.ablate import (
    GRIDS,
    Study,
    ablate,
    arm_recipes,
    grid_names,
    load_grid,
    make_runs,
    plan,
    run_key,
)
from trainer.ablate_report import (
    adjust,
    chart_of,
    headline_rows,
    markdown,
    nice_ticks,
    over_objects,
    summarise,
)
from trainer.heldout import HeldOut
from trainer.jobs import Done, Here, training_seconds
from trainer.recipe import load_recipe
from trainer.recorder import read_metrics
from trainer.run import train
from trainer.statistics import paired_difference, t_interval

GRID = """
title = "Two arms"
control = "align-only"

[arms.align-only]
loss.distill.enabled = false

[arms.all]
loss.distill.weight = 0.3
"""
SETS = (*SMALL, "train.steps=3", "data.val_fraction=0.1")


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(GRID)
    return path


@pytest.fixture
def study(make_shards: MakeShards, grid_file: Path, tmp_path: Path) -> Study:
    root = make_shards(count=60, test_rows=3)
    out = tmp_path / "out"
    return Study(
        grid=load_grid(str(grid_file)),
        recipe="tiny",
        sets=SETS,
        seeds=2,
        shards=(str(root),),
        eval_shards=(),
        split="test",
        out=out,
        runs=out / "runs",
        device="cpu",
    )


class Count:
    """Does the jobs here, at most ``limit`` of them, and remembers their folders."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.folders = limit, list[Path]()

    def __call__(self, folders: Sequence[Path], done: Done) -> None:
        for folder in folders:
            if self.limit is not None and len(self.folders) == self.limit:
                raise KeyboardInterrupt
            Here()([folder], done)
            self.folders.append(folder)


@pytest.mark.parametrize("recipe", ["tiny", "mrd-pointbert-32m"])
@pytest.mark.parametrize("name", grid_names())
def test_grids__of_the_package_fit_the_recipes(name: str, recipe: str) -> None:
    grid = load_grid(name)
    recipes = arm_recipes(grid, recipe, [])
    assert not recipes[grid.control].loss.distill.enabled
    assert all(not recipes[other].loss.distill.enabled for other in grid.against.values())
    assert grid.title
    assert grid.about


def test_load_grid__name_and_path_within_the_package_are_the_same() -> None:
    for name in ("relations.toml", "ablations/relations.toml", str(GRIDS / "relations.toml")):
        assert load_grid(name) == load_grid("relations")


def test_load_grid__unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean relations"):
        load_grid("relation")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("control = ", "not TOML"),
        ('control = "a"', "no arms"),
        ('control = "b"\n[arms.a]\n[arms.c]', "control 'b' is not an arm"),
        ('control = "a"\n[arms.a]', "one arm only"),
        ('control = "a"\nseeds = 3\n[arms.a]\n[arms.b]', "unknown key seeds"),
        ('control = "a"\n[arms.a]\n[arms.b]\nagainst = "c"', "against 'c' is not another arm"),
        ('control = "a"\n[arms.a]\n[arms."b/c"]', "choose a name without slashes"),
    ],
)
def test_load_grid__what_is_no_grid(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_grid(str(path))


def test_load_grid__controls_are_compared_with_nothing(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        'control = "a"\n[arms.a]\n[arms.b]\n[arms.c]\n[arms.d]\nagainst = "c"\n[arms.e]\n'
    )
    assert load_grid(str(path)).against == {"b": "a", "d": "c", "e": "a"}


def test_arm_recipes__unknown_key_names_the_arm_and_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text('control = "a"\n[arms.a]\n[arms.b]\nloss.distill.wieght = 1.0')
    with pytest.raises(InputError, match=r"arm b: unknown key .*did you mean loss.distill.weight"):
        arm_recipes(load_grid(str(path)), "tiny", [])


def test_arm_recipes__equal_arms_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text('control = "a"\n[arms.a]\n[arms.b]\nloss.distill.weight = 0.3')
    with pytest.raises(InputError, match="arms a and b are the same"):
        arm_recipes(load_grid(str(path)), "tiny", [])


def test_arm_recipes__arms_go_over_set_options(grid_file: Path) -> None:
    found = arm_recipes(load_grid(str(grid_file)), "tiny", ["loss.distill.weight=9", "optim.lr=1"])
    assert found["all"].loss.distill.weight == 0.3
    assert found["all"].optim.lr == 1


def test_plan__arms_that_see_more_samples_are_refused(study: Study, grid_file: Path) -> None:
    grid_file.write_text(GRID + "train.steps = 6\n")
    longer = dataclasses.replace(study, grid=load_grid(str(grid_file)))
    with pytest.raises(InputError, match="arm all sees 68 samples, align-only 34"):
        plan(longer, HeldOut.open(study.shards))


def test_plan__rows_that_are_trained_on_are_refused(study: Study) -> None:
    seen = dataclasses.replace(study, sets=(*SETS, 'data.splits=["train","test"]'))
    with pytest.raises(InputError, match="20 of its objects are trained on"):
        plan(seen, HeldOut.open(study.shards))


def test_plan__shards_of_another_teacher_are_refused(study: Study, make_shards: MakeShards) -> None:
    other = make_shards("other", teacher=1, prefix="other")
    with pytest.raises(InputError, match="--eval-shards: made by another teacher"):
        plan(study, HeldOut.open([other], or_all=True))


def test_run_key__follows_what_decides_a_run(study: Study) -> None:
    arm = plan(study, HeldOut.open(study.shards))[0]

    def key(*sets: str) -> str:
        return run_key(arm_recipes(study.grid, "tiny", [*SETS, *sets])["all"], arm.data)

    assert key() == key("train.log_every=7")  # decides what is recorded only
    assert len({key(), key("optim.lr=2e-3"), key("train.seed=1")}) == 3
    for name in ("uid_hash", "split_hash", "part_hash"):
        other = {**arm.data, name: "other"}
        assert run_key(arm.recipe, other) != run_key(arm.recipe, arm.data)


def test_plan__weights_that_runs_begin_with_decide_them_by_content(
    study: Study, tmp_path: Path
) -> None:
    def trained(*sets: str) -> Path:
        recipe = load_recipe("tiny", [*SETS, *sets])
        return train(list(study.shards), recipe, tmp_path / "base", device="cpu").checkpoint

    def folders() -> list[str]:
        begun = dataclasses.replace(study, sets=(*SETS, f"model.init={tmp_path / 'base'}"), seeds=1)
        arms = plan(begun, HeldOut.open(study.shards))
        assert {Path(arm.recipe.model.init) for arm in arms} == {checkpoint}
        return [run.folder.name for run in make_runs(begun, arms)]

    checkpoint = trained()
    first = folders()
    moved = tmp_path / "moved"
    (tmp_path / "base").rename(moved)
    checkpoint = trained("train.seed=5")
    assert set(folders()).isdisjoint(first)
    shutil.rmtree(tmp_path / "base")
    moved.rename(tmp_path / "base")
    checkpoint = checkpoint.parent / next((tmp_path / "base/checkpoints").iterdir()).name
    assert folders() == first


def test_make_runs__a_renamed_arm_keeps_its_runs(study: Study, grid_file: Path) -> None:
    arms = plan(study, HeldOut.open(study.shards))
    first = make_runs(study, arms)
    grid_file.write_text(GRID.replace("arms.all", "arms.everything"))
    renamed = dataclasses.replace(study, grid=load_grid(str(grid_file)))
    again = make_runs(renamed, plan(renamed, HeldOut.open(study.shards)))
    assert [run.folder for run in again] == [run.folder for run in first]
    assert [run.arm for run in again] == ["align-only", "everything"] * 2


def test_ablate__stopped_and_called_again_does_what_is_left(study: Study) -> None:
    with pytest.raises(KeyboardInterrupt):
        ablate(study, Count(limit=1))
    rest, nothing = Count(), Count()
    record = ablate(study, rest)
    assert len(rest.folders) == 3
    assert ablate(study, nothing) == record
    assert nothing.folders == []

    # Equal compute, and what the record says of it.
    for arm in record["arms"].values():
        assert (arm["steps"], arm["samples"], len(arm["runs"])) == (3, 34, 2)
        assert all((run["steps"], run["samples"]) == (3, 34) for run in arm["runs"])
        assert arm["seconds"]["mean"] > 0
    assert record["rows"]["n_rows"] == 20
    assert record["protocol"]["n_classes"] == 4
    assert record["failed"] == []
    assert str(study.out.parent) not in json.dumps(record)  # no paths of this machine

    # Pairs: one seed begins with the same weights, batch and augmentation; another one does not.
    first = {
        (arm, run["seed"]): read_metrics(study.runs / run["folder"] / "run")[0]["align_image"]
        for arm, found in record["arms"].items()
        for run in found["runs"]
    }
    assert first["align-only", 0] == first["all", 0]
    assert first["align-only", 1] == first["all", 1]
    assert first["align-only", 0] != first["align-only", 1]

    # The figures are those of a student loaded and measured again.
    from trainer import load_student

    run = record["arms"]["all"]["runs"][1]
    student = load_student(study.runs / run["folder"] / "run", device="cpu")
    again = HeldOut.open(study.shards).measure(student.encode_stored, student.n_points)
    assert again.metrics == run["metrics"]

    text = (study.out / "README.md").read_text()
    assert "| all | 2 |" in text
    assert "nan" not in text.lower()
    ET.fromstring((study.out / "differences.svg").read_text())
    long = "the name of an arm that says all there is to say of it"
    renamed = {
        **record,
        "arms": {"align-only": record["arms"]["align-only"], long: record["arms"]["all"]},
    }
    drawn = ET.fromstring(chart_of(renamed))
    (label,) = [item for item in drawn.iter() if item.text == long]
    assert float(label.attrib["x"]) > 6 * len(long)
    assert float(drawn.attrib["viewBox"].split()[2]) > float(label.attrib["x"]) + 400


def test_ablate__other_rows_are_measured_without_training_again(
    study: Study, make_shards: MakeShards
) -> None:
    one = dataclasses.replace(study, seeds=1)
    first = ablate(one)
    other = make_shards("other", count=20, prefix="other")
    elsewhere = dataclasses.replace(one, eval_shards=(str(other),))
    with pytest.raises(InputError, match=r"holds another study \(other rows\); .* --overwrite"):
        ablate(elsewhere)
    assert ablate(one) == first
    second = ablate(elsewhere, overwrite=True)
    assert second["rows"]["n_rows"] == 20
    for name, arm in second["arms"].items():
        assert arm["runs"][0]["checkpoint"] == first["arms"][name]["runs"][0]["checkpoint"]


def test_ablate__objects_embedded_again_are_trained_on_anew(study: Study) -> None:
    """In the same folder, with the same manifest: as after meshes were corrected."""
    one, root, options = dataclasses.replace(study, seeds=1), Path(study.shards[0]), Synth(60)
    options = dataclasses.replace(options, test_rows=3)
    first = ablate(one)
    for part in root.glob("part-*"):
        part.unlink()
    rows = make_rows(options)
    write_rows(root, options, [dataclasses.replace(r, image_embeds=-r.image_embeds) for r in rows])
    with pytest.raises(InputError, match=r"holds another study \(other data\)"):
        ablate(one)
    count = Count()
    second = ablate(one, count, overwrite=True)
    assert len(count.folders) == 2
    for name, arm in second["arms"].items():
        theirs = first["arms"][name]["runs"][0]
        assert arm["runs"][0]["folder"] != theirs["folder"]
        assert arm["runs"][0]["checkpoint"] != theirs["checkpoint"]


DIVERGING = GRID + "\n[arms.diverging]\noptim.lr = 1e30\n"


def test_ablate__a_run_that_diverges_is_named_and_the_others_count(
    study: Study, grid_file: Path
) -> None:
    grid_file.write_text(DIVERGING)
    record = ablate(dataclasses.replace(study, grid=load_grid(str(grid_file)), seeds=1))
    assert [item["arm"] for item in record["failed"]] == ["diverging"]
    assert "lower --set optim.lr" in record["failed"][0]["reason"]
    assert record["arms"]["diverging"]["runs"] == []
    assert record["arms"]["diverging"]["metrics"]["zeroshot_top1"] is None
    text = (study.out / "README.md").read_text()
    assert "## Failed runs" in text
    assert "| diverging | 0 | n/a | n/a | n/a | n/a |" in text
    assert [row[3] == "control" for row in headline_rows(record)] == [True, False, False]


@pytest.mark.parametrize("diverges", ["align-only", "all"])
def test_ablate__no_pair_finished_is_an_error(study: Study, grid_file: Path, diverges: str) -> None:
    other = {"align-only": "optim.lr = 1e30\n\n[arms.all]", "all": "\n[arms.all]\noptim.lr = 1e30"}
    grid_file.write_text(GRID.replace("\n[arms.all]", other[diverges]))
    broken = dataclasses.replace(study, grid=load_grid(str(grid_file)), seeds=1)
    with pytest.raises(InputError, match=r"no arm finished with a seed .*: step .*--set optim\.lr"):
        ablate(broken)
    assert not (study.out / "README.md").exists()


def test_ablate__a_file_is_no_folder_for_a_report(study: Study, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(InputError, match=r"file; name a folder|is a file, not a folder"):
            ablate(dataclasses.replace(study, out=out))


def test_cli__several_workers_take_turns(study: Study) -> None:
    from trainer.cli import app

    arguments = ["ablate", "--shards", study.shards[0], "--out", str(study.out)]
    result = CliRunner().invoke(app, [*arguments, "--workers", "2", "--jobs", "2"])
    assert isinstance(result.exception, InputError)
    assert "--workers: not with --jobs or --ray" in str(result.exception)


def test_cli__a_failed_run_gives_exit_code_3(study: Study, grid_file: Path) -> None:
    from trainer.cli import app

    grid_file.write_text(DIVERGING)
    options = [word for item in SETS for word in ("--set", item)]
    arguments = ["ablate", "--shards", study.shards[0], "--grid", str(grid_file), "--seeds", "1"]
    arguments += ["--out", str(study.out), "--device", "cpu", "--json", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    assert json.loads(result.stdout)["failed"][0]["arm"] == "diverging"


def fake(value: float, ranks: Sequence[int]) -> dict[str, Any]:
    return {
        "metrics": {"zeroshot_top1": value, "shape_map": value / 2},
        "protocol": {"n_classes": 3},
        "class_rank": list(ranks),
        "checkpoint": "abc",
        "step": 3,
        "samples": 34,
        "seconds": 10.0,
        "parameters": 5,
    }


def test_summarise__numbers_are_those_of_the_statistics(study: Study) -> None:
    three = dataclasses.replace(study, seeds=3)
    arms = plan(three, HeldOut.open(study.shards))
    runs = make_runs(three, arms)
    rng = np.random.default_rng(0)
    values = {arm: rng.random(3) for arm in ("align-only", "all")}
    ranks = {(arm, seed): rng.integers(1, 3, 9).tolist() for arm in values for seed in range(3)}
    results: dict[tuple[str, int], dict[str, Any] | None] = {
        (arm, seed): fake(float(values[arm][seed]), ranks[arm, seed]) for arm, seed in ranks
    }
    rows = HeldOut.open(study.shards).identity()
    record = summarise(three, arms, runs, results, {}, rows)
    own = record["arms"]["all"]
    assert own["metrics"]["zeroshot_top1"]["low"] == t_interval(values["all"].tolist()).low
    paired = paired_difference(values["all"].tolist(), values["align-only"].tolist())
    found = own["differences"]["zeroshot_top1"]
    assert (found["mean"], found["low"], found["p"]) == (paired.mean, paired.low, paired.p)
    assert found["p_holm"] == paired.p  # one arm: nothing to adjust for
    assert own["differences"]["shape_map"]["mean"] == pytest.approx(paired.mean / 2)
    assert record["arms"]["align-only"]["differences"] == {}

    # A missing run takes its pair away, and no other.
    results["align-only", 1] = None
    record = summarise(three, arms, runs, results, {}, rows)
    assert record["arms"]["all"]["differences"]["zeroshot_top1"]["n"] == 2
    assert record["arms"]["all"]["metrics"]["zeroshot_top1"]["n"] == 3

    texts = [element.text for element in ET.fromstring(chart_of(record)).iter() if element.text]
    assert "all" in texts
    assert sum(text.startswith("all: ") for text in texts) == 1
    assert "| all | 3 |" in markdown(record)
    assert "same batches and augmentations. The student" in markdown(record)
    own["changes"] = {"data": {"near": 4}}
    record["arms"]["all"] = own
    assert "same batches and augmentations (except `all`). The student" in markdown(record)
    record["arms"]["align-only"]["changes"] = {"data": {"near": 4}}  # its control as well
    assert "same batches and augmentations. The student" in markdown(record)


def test_plan__arm_that_needs_texts_where_there_are_none(
    study: Study, make_shards: MakeShards
) -> None:
    root = make_shards("mute", count=60, test_rows=3, textless=1)
    mute = dataclasses.replace(study, shards=(str(root),))
    with pytest.raises(InputError, match="arm align-only needs data that the shards lack"):
        plan(mute, HeldOut.open(mute.shards))


def test_over_objects__by_hand() -> None:
    # Two seeds, four objects; hits of the arm 1,1,0,1 and 1,0,0,1, of the control 1,0,0,0 twice.
    arm, control = [[1, 1, 2, 1], [1, 3, 2, 1]], [[1, 2, 2, 5], [1, 4, 2, 2]]
    found = over_objects([[arm[seed], control[seed]] for seed in range(2)])
    expected = t_interval([0.0, 0.5, 0.0, 1.0])
    assert found == expected


def test_adjust__holm_over_the_arms_that_have_a_p() -> None:
    def arm(p: float | None) -> dict[str, Any]:
        return {"differences": {"m": {"p": p}}}

    arms = {"control": {"differences": {}}, "a": arm(0.01), "b": arm(0.04), "c": arm(None)}
    adjust(arms, "m")
    found = [arms[name]["differences"]["m"]["p_holm"] for name in "abc"]
    assert found == [pytest.approx(0.02), pytest.approx(0.04), None]


def test_training_seconds__interruptions_do_not_count() -> None:
    records: list[dict[str, Any]] = [
        {"kind": "train", "samples": 100, "samples_per_s": 50.0},
        {"kind": "val"},
        {"kind": "train", "samples": 160, "samples_per_s": 20.0},
    ]
    assert training_seconds(records) == pytest.approx(2 + 3)


@pytest.mark.parametrize("ends", [(-3.2, 7.9), (0.0, 0.013), (-120.0, 4.0)])
def test_nice_ticks__round_values_inside_with_zero(ends: tuple[float, float]) -> None:
    ticks = nice_ticks(*ends)
    assert 2 <= len(ticks) <= 8
    assert all(ends[0] <= tick <= ends[1] for tick in ticks)
    assert 0 in ticks
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5, 10)) < 1e-6
