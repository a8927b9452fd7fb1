"""The model card of a run: what it is, what it was trained on, how it did, how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config import flatten, parse_recipe

TEMPLATE = """# {name}

A point-cloud encoder whose embeddings live in the space of an image-text model.

- Backbone: {backbone}, {parameters:.2f}M parameters, {n_points} points per cloud, {centroids} \
centroids
- Teacher: {teacher}, {width} dimensions
- Objective: {objective}
- Trained for {step} of {total} steps, {samples} samples seen{ema}

## Input and output

Clouds of {n_points} points in the unit sphere, {up_axis} up, in farthest-point order, with \
colours in [0, 1]; a cloud without colour gets {neutral:.1f}. The output is {width} numbers, to be \
compared by cosine with the teacher's image and text embeddings.

## Data

{data}

{held_out} shapes, chosen by hash of their uid, were held out of training. The best checkpoint \
was chosen on them, on no benchmark.

## Validation on the held-out shapes

{validation}

Retrieval is among the held-out shapes only, so it depends on their number.

## Recipe

{recipe}

## Note

The objective is an implementation after the abstract and public summaries of multi-modal \
relation distillation (MRD, arXiv 2407.14007); no code of the paper was released. The licence and \
the limits of the training shapes and of the teacher apply to this model too.
"""


def write_card(run: Path, header: dict[str, Any], progress: dict[str, Any], total: int) -> None:
    """Write ``README.md`` of a run folder from its checkpoint header and its progress."""
    data, backbone, teacher = header["data"], header["backbone"], header["teacher"]
    recipe = parse_recipe(header["recipe"], "recipe")
    distill = recipe.loss.distill
    terms = [name for name in ("intra_image", "intra_text", "cross") if getattr(distill, name)]
    objective = "contrastive alignment"
    if distill.enabled:
        objective += (
            f" and relation distillation ({', '.join(terms)}; {distill.representation}, "
            f"{distill.discrepancy}, {distill.weighting} weights, weight {distill.weight:g})"
        )
    sets = "\n".join(
        f"- {item['name']}: {item['n_rows']} shapes, config {item['config_hash']}"
        for item in data["shards"]
    )
    metrics = {k: v for k, v in progress["last"].items() if k != "rows"}
    lines = [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    table = "\n".join(["| metric | value |", "|---|---|", *lines]) if lines else "None was made."
    pretrained = f" / {teacher['pretrained']}" if teacher["pretrained"] else ""
    text = TEMPLATE.format(
        name=run.name,
        backbone=backbone["name"],
        parameters=header["n_parameters"] / 1e6,
        n_points=header["n_points"],
        centroids=backbone["options"]["centroids"],
        teacher=teacher["model"] + pretrained,
        width=teacher["width"],
        objective=objective,
        step=progress["step"],
        total=total,
        samples=progress["samples"],
        ema=", weights averaged over the steps" if header["ema"] else "",
        up_axis=header["up_axis"],
        neutral=header["neutral_rgb"] / 255,
        data=sets,
        held_out=data["n_val"],
        validation=table,
        recipe="\n".join(f"    {key} = {value}" for key, value in flatten(recipe).items()),
    )
    (run / "README.md").write_text(text)
