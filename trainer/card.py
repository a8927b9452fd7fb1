"""The model card: what a student is, what it was trained on, how it did, how to use it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import Recipe
from trainer.recipe import flatten, parse_recipe

ALIGN = {"infonce": "InfoNCE", "siglip": "SigLIP", "multi_positive": "multi-positive InfoNCE"}
FEW_SHAPES = 100_000  # below it a card warns: published students saw several times more
DEMO = "demo"  # teacher that comes with the pipeline

TEMPLATE = """# {name}

A point-cloud encoder that embeds into the space of an image-text model.

- Backbone: {backbone}, {parameters:.2f}M parameters, {n_points} points per \
cloud{centroids}
- Teacher: {teacher}, {width} dimensions
- Objective: {objective}
- Training: {training}

## Input and output

Input: clouds of {n_points} points in the unit sphere, {up_axis} up, in farthest-point order, with \
colours in [0, 1]; a cloud without colour gets {neutral:.1f}. Output: {width} numbers, to be \
compared by cosine with the teacher's image and text embeddings.
{usage}
## Data

{data}

## Results

{results}

## Limits

{limits}

## Recipe

{recipe}

## Note

The objective is an implementation based on the abstract and public summaries of multi-modal \
relation distillation (MRD, arXiv 2407.14007); the paper's code was never released. The licences \
and limits of the training shapes and of the teacher apply to this model too.
"""


def write_card(run: Path, header: dict[str, Any], progress: dict[str, Any], total: int) -> None:
    """Write ``README.md`` of a run folder from its checkpoint header and its progress."""
    config = {
        **header,
        "step": progress["step"],
        "samples_seen": progress["samples"],
        "validation": progress["last"],
    }
    (run / "README.md").write_text(model_card(run.name, config, total=total))


def model_card(
    name: str,
    config: Mapping[str, Any],
    *,
    total: int | None = None,
    usage: str = "",
    results: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card of a checkpoint with this ``config.json``, in Markdown.

    ``total`` steps were planned; ``usage`` is Markdown on how to load it; ``results`` are result
    records of the evaluation of this very checkpoint.
    """
    backbone, teacher = config["backbone"], config["teacher"]
    groups = backbone["options"].get("centroids")  # a backbone of another package may have none
    recipe = parse_recipe(config["recipe"], "recipe") if config.get("recipe") else None
    return TEMPLATE.format(
        name=name,
        backbone=backbone["name"],
        parameters=config["n_parameters"] / 1e6,
        n_points=config["n_points"],
        centroids=f", {groups} centroids" if groups is not None else "",
        teacher=_teacher(teacher),
        width=teacher["width"],
        objective=_objective(recipe),
        training=_training(config, total),
        up_axis=config["up_axis"],
        neutral=config["neutral_rgb"] / 255,
        usage=f"\n{usage.strip()}\n" if usage else "",
        data=_data(config),
        results=_results(config, results),
        limits="\n".join(f"- {line}" for line in _limits(config, recipe)),
        recipe=_recipe(recipe),
    )


def _teacher(teacher: Mapping[str, Any]) -> str:
    return str(teacher["model"]) + (f" / {teacher['pretrained']}" if teacher["pretrained"] else "")


def _objective(recipe: Recipe | None) -> str:
    if recipe is None:
        return "that of the publication"
    distill = recipe.loss.distill
    terms = [name for name in ("intra_image", "intra_text", "cross") if getattr(distill, name)]
    objective = f"contrastive alignment ({ALIGN[recipe.loss.align.kind]})"
    if distill.enabled:
        objective += (
            f" and relation distillation ({', '.join(terms)}; {distill.representation}, "
            f"{distill.discrepancy}, {distill.weighting} weights, weight {distill.weight:g})"
        )
    return objective


def _training(config: Mapping[str, Any], total: int | None) -> str:
    released = config.get("released")
    if released:
        return (
            f"weights released by others ({released['layout']}, {released['file']}, sha256 "
            f"{released['sha256'][:16]})"
        )
    planned = f" of {total}" if total is not None else ""
    ema = ", weights averaged over the steps" if config["ema"] else ""
    init = (config.get("recipe") or {}).get("model", {}).get("init")
    begun = f", starting from the weights of {init}" if init else ""
    return f"{config['step']}{planned} steps, {config['samples_seen']} samples seen{ema}{begun}"


def _data(config: Mapping[str, Any]) -> str:
    data = config["data"]
    sets = [
        f"- {item['name']}: {item['n_rows']} shapes, config {item['config_hash']}"
        for item in data.get("shards", [])
    ]
    if not sets:
        return "As described in the publication of the weights."
    chosen = (
        f"{data['n_val']} shapes, selected by hash of their uid, were held out of training. A "
        "run's best checkpoint is selected on them, not on a benchmark."
    )
    return "\n".join(sets) + f"\n\n{chosen}"


def _results(config: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    metrics = {k: v for k, v in (config.get("validation") or {}).items() if k != "rows"}
    parts = []
    if metrics:
        lines = [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
        parts += [
            "Validation on the held-out shapes. Retrieval is among these shapes only, so it "
            "depends on their number.",
            "\n".join(["| metric | value |", "|---|---|", *lines]),
        ]
    for record in results:
        parts += [
            f"{record['task'].capitalize()} on {record['benchmark']}, {record['variant']}, "
            f"{record['count']} objects:",
            "\n".join(["| metric | value | 95 % |", "|---|---|---|", *_figures(record)]),
        ]
    return "\n\n".join(parts) if parts else "None."


def _figures(record: Mapping[str, Any]) -> list[str]:
    """Lines of a table for the shares of a result record."""
    groups = {"": record.get("metrics", {}), **record.get("directions", {})}
    lines = []
    for group, values in groups.items():
        for name, share in values.items():
            known = share.get("value") if isinstance(share, dict) else None
            if known is not None:
                ends = f"{100 * share['low']:.1f} to {100 * share['high']:.1f}"
                lines.append(f"| {f'{group} {name}'.strip()} | {100 * known:.1f} % | {ends} |")
    return lines


def _limits(config: Mapping[str, Any], recipe: Recipe | None) -> list[str]:
    """What the facts of the training say about where the student fails."""
    teacher, data = config["teacher"], config["data"]
    limits = []
    if teacher["model"] == DEMO:
        limits.append(
            "The teacher is the demo model, which knows 89 kinds of procedural objects: names of "
            "other things mean nothing to it, and from their pictures it gets shape and colour "
            "at most."
        )
    trained = data.get("n_train")
    if trained is not None and trained < FEW_SHAPES:
        limits.append(
            f"Trained on {trained:,} shapes: expect it to recognise other kinds of objects only by "
            "chance."
        )
    limits += [
        f"Objects must be {config['up_axis']} up; training included only rotations about that "
        "axis, and slight tilts."
        if recipe is None or recipe.augment.yaw
        else f"Objects must be {config['up_axis']} up and oriented as in training.",
        "Complete single objects only: no scenes, no partial scans.",
        "The student inherits the confusions of the teacher and the biases of the teacher's data.",
    ]
    if recipe is not None and math.isclose(recipe.augment.drop_color, 0.0):
        limits.append("Clouds without colour were not seen in training.")
    return limits


def _recipe(recipe: Recipe | None) -> str:
    if recipe is None:
        return "That of the publication."
    return "\n".join(f"    {key} = {value}" for key, value in flatten(recipe).items())
