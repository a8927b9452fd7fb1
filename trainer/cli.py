"""Command line of the trainer: ``run``, ``backbones``, ``recipes``, ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import JsonOption, make_app, note, print_json, print_table, run_app

app = make_app("trainer", "Shards to a checkpoint: train a point-cloud encoder.")


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    shards: Annotated[
        list[str] | None, typer.Option(help="Shard set; repeat it to train on several.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Name of a recipe, or a TOML file. [tiny]")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override of the recipe, key=value; repeat it for more."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an existing run.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a student.

    Examples:
      trainer run --shards shards --recipe tiny --out runs/mrd
      trainer run --shards shards --recipe tiny --out runs/align --set loss.distill.enabled=false
      trainer run --out runs/mrd --resume
    """
    from trainer.config import load_recipe
    from trainer.loop import Interrupted
    from trainer.run import train

    name = recipe or (None if resume and not sets else "tiny")
    chosen = load_recipe(name, sets or []) if name else None
    try:
        result = train(shards or [], chosen, out, resume=resume, device=device)
    except Interrupted:  # a note has said where it stands and how to go on
        raise typer.Exit(130) from None
    if as_json:
        print_json(result.to_json())
        return
    rows = [[key, value] for key, value in result.validation.items()]
    if rows:
        print_table(f"Held-out shapes at step {result.step}", ["metric", "value"], rows)
    note(f"checkpoint: {result.checkpoint}")


@app.command()
def backbones(as_json: JsonOption = False) -> None:
    """List the backbones with parameters, tokens and arithmetic of one cloud."""
    from trainer.backbones.measure import measure_all

    rows = measure_all()
    if as_json:
        print_json(rows)
        return
    columns = ["name", "parameters_m", "centroids", "neighbours", "points", "gflop"]
    print_table(
        "Backbones (1,280-d embedding; forward of one cloud, 2 FLOP a multiply-add)",
        ["name", "parameters (M)", "centroids", "neighbours", "points", "GFLOP"],
        [[row[column] for column in columns] for row in rows],
    )


@app.command()
def recipes(
    keys: Annotated[bool, typer.Option("--keys", help="List every key that --set takes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the recipes that come with the package."""
    from trainer.config import Recipe, flatten, load_recipe, recipe_names

    if keys:
        defaults = flatten(Recipe())
        if as_json:
            print_json(defaults)
            return
        print_table("Keys", ["key", "default"], [[k, str(v)] for k, v in defaults.items()])
        return
    loaded = {name: load_recipe(name) for name in recipe_names()}
    if as_json:
        print_json({name: item.model_dump(mode="json") for name, item in loaded.items()})
        return
    rows = [
        [name, r.model.backbone, r.data.n_points, r.data.batch_size, r.optim.lr, r.train.epochs]
        for name, r in loaded.items()
    ]
    print_table("Recipes", ["name", "backbone", "points", "batch", "lr", "epochs"], rows)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Copy the best checkpoint of a run without the optimiser's state."""
    from trainer.checkpoint import export as copy

    chosen = copy(source, out)
    note(f"exported {chosen} to {out}")


def main() -> None:
    """Console entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
