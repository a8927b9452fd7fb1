"""A study: arms that differ in some keys of a recipe, each trained with several seeds.

A grid file names the arms, each with what it changes in the recipe, and the control. Every arm is
trained with every seed on equal data for equally many samples; arms with the same seed begin with
the same weights and see the same batches and augmentations, so they are compared pair by pair.
The student after the last step is measured on rows that no training has seen
(``trainer.heldout``).

    title = "..."
    about = "..."
    control = "align-only"

    [arms.align-only]
    loss.distill.enabled = false

    [arms.all]
    against = "align-only"          # another control than the file's, where it needs one
    loss.distill.weight = 0.3

Runs are kept in folders named by the hash of all that decides them, so a study goes on where it
was stopped, and studies that share arms and folder share runs.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import InputError, canonical_json, check_place, content_hash
from pipeline.console import note
from trainer.backbones import resolve_options
from trainer.config import Recipe
from trainer.heldout import HeldOut
from trainer.index import Corpus
from trainer.initial import pinned
from trainer.jobs import RESULT, Executor, Here, Job
from trainer.recipe import load_recipe, merged, parse_recipe
from trainer.run import require_points
from trainer.run_folder import FREE, absolute

GRIDS = Path(__file__).parent / "ablations"
AGAINST = "against"  # key of an arm that names its control
HASH_DIGITS = 12
SAME_SAMPLES = 0.02  # by how much the samples of arms may differ: epochs end in whole batches


@dataclass(frozen=True)
class Grid:
    """The arms of a study."""

    name: str
    title: str
    about: str
    control: str
    arms: dict[str, dict[str, Any]]  # nested values put over the recipe
    against: dict[str, str]  # control of every arm but the controls


@dataclass(frozen=True)
class Study:
    """What is trained on what, and measured where."""

    grid: Grid
    recipe: str
    sets: tuple[str, ...]
    seeds: int
    shards: tuple[str, ...]
    eval_shards: tuple[str, ...]  # empty: the shards' own rows of ``split``
    split: str
    out: Path
    runs: Path  # folder of the jobs
    device: str
    workers: int = 1  # processes of a run
    address: str | None = None  # of the Ray cluster that these run on


@dataclass(frozen=True)
class Arm:
    """One arm, resolved."""

    name: str
    recipe: Recipe
    steps: int
    samples: int  # of the whole run
    data: dict[str, Any]  # ``Corpus.record``
    begins: str = ""  # hash of the weights that it begins with; "": with random ones


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    folder: Path


def grid_names() -> list[str]:
    """Names of the grids that come with the package."""
    return sorted(path.stem for path in GRIDS.glob("*.toml"))


def load_grid(name: str) -> Grid:
    """A grid by name (``relations``, ``ablations/relations.toml``), or by path.

    Raises ``InputError`` for an unknown name, a file that is not a grid, and a control that is
    no arm.
    """
    path = Path(name)
    if not path.is_file():
        stem = name.removeprefix(f"{GRIDS.name}/").removesuffix(".toml")
        path = GRIDS / f"{stem}.toml"
    if not path.is_file():
        known = grid_names()
        near = difflib.get_close_matches(name.removesuffix(".toml"), known, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise InputError(f"--grid {name}: no such file or grid{hint}; known are {', '.join(known)}")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error}); correct the file") from error
    arms, control = values.pop("arms", None), values.pop("control", None)
    title, about = values.pop("title", path.stem), values.pop("about", "")
    if values:
        raise InputError(
            f"{path}: unknown key {next(iter(values))}; it has title, about, control "
            "and [arms.NAME]"
        )
    if not isinstance(arms, dict) or not all(isinstance(arm, dict) for arm in arms.values()):
        raise InputError(f"{path}: no arms; add tables [arms.NAME] with what each changes")
    if control not in arms:
        raise InputError(
            f"{path}: control {control!r} is not an arm; name one of {', '.join(arms)}"
        )
    if len(arms) < 2:
        raise InputError(f"{path}: one arm only; add one to compare it with")
    for arm in arms:
        if not arm or any(letter in arm for letter in "/\\|\n"):
            raise InputError(f"{path}: arm {arm!r}: choose a name without slashes and bars")
    against = {arm: values.pop(AGAINST) for arm, values in arms.items() if AGAINST in values}
    for arm, other in against.items():
        if other not in arms or other == arm:
            raise InputError(f"{path}: arm {arm}: {AGAINST} {other!r} is not another arm")
    controls = {control, *against.values()}
    against |= {arm: control for arm in arms if arm not in controls | against.keys()}
    return Grid(path.stem, str(title), str(about), control, arms, against)


def arm_recipes(grid: Grid, recipe: str, sets: Sequence[str]) -> dict[str, Recipe]:
    """The recipe of every arm: the named one, then ``sets``, then what the arm changes.

    Raises ``InputError`` for unknown keys and values out of range, and for two equal arms.
    """
    base = load_recipe(recipe, sets).model_dump(mode="json")
    found: dict[str, Recipe] = {}
    for name, values in grid.arms.items():
        made = parse_recipe(merged(base, values), f"grid {grid.name}, arm {name}")
        resolve_options(made.model.backbone, made.model.options)  # raises for unknown ones
        twin = next((other for other, theirs in found.items() if theirs == made), None)
        if twin is not None:
            raise InputError(
                f"grid {grid.name}: arms {twin} and {name} are the same with --recipe {recipe}; "
                "remove one"
            )
        found[name] = made
    return found


def plan(study: Study, heldout: HeldOut) -> list[Arm]:
    """The arms, with their data opened and checked.

    Raises ``InputError`` when an arm cannot be trained on the shards, sees rows that are held
    out, or sees another number of samples than the control.
    """
    arms = []
    for name, recipe in arm_recipes(study.grid, study.recipe, study.sets).items():
        require_points(recipe)
        # Now, for all of its runs: a run that is named may be trained on meanwhile.
        model, begins = pinned(recipe.model)
        recipe = recipe.model_copy(update={"model": model})
        corpus = Corpus(study.shards, recipe)
        if corpus.left_out:
            raise InputError(
                f"grid {study.grid.name}: arm {name} needs data that the shards lack "
                f"({', '.join(corpus.left_out)} would be switched off); embed with texts and "
                "views, or switch them off with --set"
            )
        order = corpus.order(recipe.train.seed)
        steps = recipe.train.steps or recipe.train.epochs * order.steps
        arms.append(Arm(name, recipe, steps, order.rows_until(steps), corpus.record(), begins))
        reason = corpus.teacher.mismatch(heldout.teacher)
        if reason:
            raise InputError(
                f"--eval-shards: made by another teacher than --shards ({reason}); "
                "embed them with the same one"
            )
        heldout.require_unseen(trained_uids(corpus, recipe))
    of = {arm.name: arm for arm in arms}
    for name, other in study.grid.against.items():
        ours, theirs = of[name].samples, of[other].samples
        if abs(ours - theirs) > SAME_SAMPLES * theirs:
            raise InputError(
                f"grid {study.grid.name}: arm {name} sees {ours} samples, {other} {theirs}; "
                "set train.epochs, or train.steps in proportion, so that they are equal"
            )
    return arms


def trained_uids(corpus: Corpus, recipe: Recipe) -> list[str]:
    """Objects that a training reads, its validation slice included."""
    return [
        uid
        for shards in corpus.sets
        for batch in shards.batches(["split"])
        for uid, split in zip(batch.uid, batch.split or [], strict=True)
        if split is None or split in recipe.data.splits
    ]


def run_key(recipe: Recipe, data: dict[str, Any], begins: str = "") -> str:
    """Hash of all that decides a run: the recipe, and rows and embeddings of the shards.

    ``begins`` (hash of the weights) stands for the path of those that it begins with.
    """
    values = recipe.model_dump(mode="json")
    if begins:
        values["model"] |= {"init": begins, "trunk": ""}
    for key in FREE:
        section, name = key.split(".")
        values[section].pop(name, None)
    configs = [item["config_hash"] for item in data["shards"]]
    hashes = [data[key] for key in ("uid_hash", "split_hash", "part_hash")]
    return content_hash(canonical_json([values, configs, hashes]))[:HASH_DIGITS]


def make_runs(study: Study, arms: Sequence[Arm]) -> list[Run]:
    """Folders of all runs, with their ``job.json``.

    Seed by seed, so that a study that is stopped early has whole pairs. A run that is there
    already is found by its content, whatever its arm was called.
    """
    runs = []
    first = arms[0].recipe.train.seed
    for seed in range(first, first + study.seeds):
        for arm in arms:
            values = arm.recipe.model_dump(mode="json")
            values["train"]["seed"] = seed
            recipe = parse_recipe(values, arm.name)
            key = run_key(recipe, arm.data, arm.begins)
            known = sorted(study.runs.glob(f"*.{key}"))
            folder = known[0] if known else study.runs / f"{arm.name}.{seed}.{key}"
            job = Job(
                recipe=recipe.model_dump(mode="json"),
                shards=absolute(study.shards),
                eval_shards=absolute(study.eval_shards or study.shards),
                split=study.split,
                or_all=bool(study.eval_shards),
                device=study.device,
                workers=study.workers,
                address=study.address,
            )
            job.write(folder)
            runs.append(Run(arm.name, seed, folder))
    return runs


def result_of(run: Run, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Figures of a run that is finished and was measured on these rows."""
    try:
        value: dict[str, Any] = json.loads((run.folder / RESULT).read_text())
    except (OSError, ValueError):
        return None
    return value if value.get("rows") == identity else None


def ablate(
    study: Study, executor: Executor | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Do what is left of a study and write its record, table and chart into ``study.out``.

    Returns the record (``trainer.ablate_report.summarise``). Runs that fail are named in it; the
    next call tries them again. Raises ``InputError`` for anything wrong before the first run, also
    for the report of another study in ``study.out`` (which ``overwrite`` replaces), and when no
    pair of runs was finished.
    """
    from trainer.ablate_report import check_report, summarise, write_report

    check_place(study.out, "--out", folder=True)
    if study.seeds < 1:
        raise InputError(f"--seeds {study.seeds}: give at least 1, or 5 for useful intervals")
    heldout = HeldOut.open(
        study.eval_shards or study.shards, study.split, or_all=bool(study.eval_shards)
    )
    arms = plan(study, heldout)
    identity = heldout.identity()
    check_report(study, arms, identity, overwrite)
    runs = make_runs(study, arms)
    left = [run for run in runs if result_of(run, identity) is None]
    note(
        f"{len(arms)} arms x {study.seeds} seeds, {arms[0].samples} samples per run; "
        f"{len(runs) - len(left)} of {len(runs)} runs are done; evaluated on "
        f"{identity['n_rows']} objects"
    )
    failed = execute(left, executor or Here(), len(runs))
    results = {(run.arm, run.seed): result_of(run, identity) for run in runs}
    record = summarise(study, arms, runs, results, failed, identity)
    write_report(study.out, record)
    return record


def execute(left: Sequence[Run], executor: Executor, total: int) -> dict[tuple[str, int], str]:
    """Do the jobs of some runs; why each of those that failed did."""
    of = {run.folder: run for run in left}
    failed: dict[tuple[str, int], str] = {}
    finished = total - len(left)

    def done(folder: Path, reason: str | None) -> None:
        nonlocal finished
        run = of[folder]
        finished += 1
        note(f"{finished}/{total} {run.arm}, seed {run.seed}: {reason or 'done'}")
        if reason is not None:
            failed[run.arm, run.seed] = reason

    executor(list(of), done)
    return failed
