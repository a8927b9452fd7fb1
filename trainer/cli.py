"""Command line of the trainer: its commands, each a few lines over one library call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.common import InputError
from pipeline.console import (
    EXIT_TOO_MANY_FAILURES,
    INPUT,
    MODEL,
    OUTPUT,
    TRAINING,
    WORKERS,
    JsonOption,
    OverwriteOption,
    goes_on,
    interruption_leaves,
    make_app,
    note,
    print_json,
    print_table,
    run_app,
)
from trainer.options import (
    AddressOption,
    Axes,
    DeviceOption,
    ExportFormat,
    Layout,
    LeastOption,
    RestartsOption,
    ResultsOption,
    SetOption,
    ShardsOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from trainer.config import Recipe


app = make_app("trainer", "Train point-cloud encoders on shard sets.")


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Run folder to write.", rich_help_panel=OUTPUT)],
    shards: ShardsOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name of a recipe, or a TOML file. Default: tiny.", rich_help_panel=TRAINING
        ),
    ] = None,
    sets: SetOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an existing run.", rich_help_panel=TRAINING)
    ] = False,
    device: DeviceOption = "auto",
    workers: WorkersOption = 1,
    address: AddressOption = None,
    restarts: RestartsOption = 3,
    least: LeastOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a student.

    Examples:

      trainer run --shards shards --recipe tiny --out runs/mrd

      trainer run --shards shards --recipe tiny --out runs/align --set loss.distill.enabled=false

      trainer run --shards a --shards b --set data.weights=[1,4] --out runs/mixed

      trainer run --shards shards --recipe mrd-pointbert-72m --workers 8 --out runs/large

      trainer run --shards mine --recipe tiny --set model.init=runs/mrd --out runs/mine
    """
    from trainer.recipe import load_recipe

    name = recipe or (None if resume else "tiny")
    chosen = load_recipe(name, sets or []) if name else None
    _train(
        shards,
        chosen,
        out,
        resume=resume,
        overrides=[] if name else sets or [],
        device=device,
        workers=(workers, address, restarts, least),
        as_json=as_json,
    )


@app.command("resume")
def resume_run(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    shards: ShardsOption = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change of an option that affects only speed and memory, key=value; repeatable.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = 1,
    address: AddressOption = None,
    restarts: RestartsOption = 3,
    least: LeastOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a run from its newest checkpoint, as if it had never stopped.

    Bit for bit on a CPU with the same number of workers. --shards is needed if the sets have moved.

    Examples:

      trainer resume runs/mrd

      trainer resume runs/mrd --set train.micro_batch=64
    """
    _train(
        shards,
        None,
        run_folder,
        resume=True,
        overrides=sets or [],
        device=device,
        workers=(workers, address, restarts, least),
        as_json=as_json,
    )


def _train(
    shards: list[str] | None,
    recipe: Recipe | None,
    out: Path,
    *,
    resume: bool,
    overrides: list[str],
    device: str,
    workers: tuple[int, str | None, int, int | None],
    as_json: bool,
) -> None:
    from pipeline.heap import keep_freed
    from trainer.loop import Interrupted
    from trainer.run import Workers, train
    from trainer.run_folder import RUN

    keep_freed()
    interruption_leaves(
        lambda: (
            f"`trainer resume {out}` continues from the newest checkpoint"
            if (out / RUN).is_file()
            else "nothing was written"
        )
    )
    try:
        result = train(
            shards or [],
            recipe,
            out,
            resume=resume,
            overrides=overrides,
            device=device,
            workers=Workers(*workers),
        )
    except Interrupted as error:
        interruption_leaves(str(error))
        raise
    if as_json:
        print_json(result.to_json())
        return
    rows = [[key, value] for key, value in result.validation.items()]
    if rows:
        print_table(f"Held-out shapes at step {result.step}", ["metric", "value"], rows)
    note(f"checkpoint: {result.checkpoint}")


@app.command()
def backbones(as_json: JsonOption = False) -> None:
    """List the backbones with parameters, tokens, and compute cost per point cloud.

    Example:

      trainer backbones
    """
    from trainer.backbones.measure import measure_all

    rows = measure_all()
    if as_json:
        print_json(rows)
        return
    columns = ["name", "parameters_m", "tokens", "points", "gflop"]
    print_table(
        "Backbones with 1,280-dimensional embeddings (uni3d: 1,024); forward pass of one cloud, "
        "2 FLOP per multiply-add; options: docs/backbones.md",
        ["name", "parameters (M)", "tokens", "points", "GFLOP"],
        [[row[column] for column in columns] for row in rows],
    )


@app.command()
def recipes(
    keys: Annotated[
        bool,
        typer.Option("--keys", help="List every key that --set accepts.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the recipes included in the package.

    Examples:

      trainer recipes

      trainer recipes --keys
    """
    from trainer.config import Recipe
    from trainer.recipe import TWIN, flatten, load_about, load_recipe, recipe_names

    if keys:
        defaults = flatten(Recipe())
        if as_json:
            print_json(defaults)
            return
        print_table("Keys", ["key", "default"], [[k, str(v)] for k, v in defaults.items()])
        return
    loaded = {name: (load_recipe(name), load_about(name)) for name in recipe_names()}
    if as_json:
        print_json(
            {
                name: {"about": about.model_dump(), **recipe.model_dump(mode="json")}
                for name, (recipe, about) in loaded.items()
            }
        )
        return
    rows = [
        [
            name,
            recipe.data.batch_size,
            recipe.optim.lr,
            recipe.train.epochs,
            f"{about.gpus} x {about.gpu}" if about.gpus else "CPU",
            about.hours,
        ]
        for name, (recipe, about) in loaded.items()
        if not name.startswith(TWIN)
    ]
    print_table(
        "Recipes (hours: expected on these GPUs; --json shows their basis)",
        ["name", "batch", "lr", "epochs", "GPUs", "hours"],
        rows,
    )
    note(f"{TWIN}X is mrd-X (or X) without distillation, for every recipe that distils")


@app.command("import-weights")
def import_weights(
    layout: Annotated[Layout, typer.Argument(help="Origin of the weights.")],
    file: Annotated[Path, typer.Argument(help="Released file, .pt or .safetensors.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.", rich_help_panel=OUTPUT)],
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Teacher, as MODEL:TAG of open_clip. Default: that of the release.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    axes: Annotated[
        Axes | None,
        typer.Option(
            help="xyz: +y up; xzy: y and z swapped. Default: as released.", rich_help_panel=MODEL
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert released weights of OpenShape or Uni3D to a checkpoint.

    Examples:

      trainer import-weights openshape model.pt --out models/openshape-g14

      trainer import-weights uni3d uni3d-b/model.pt --out models/uni3d-b
    """
    from trainer.released import import_weights as convert

    config = convert(
        layout.value,
        file,
        out,
        teacher=teacher,
        axes=axes.value if axes is not None else None,
        overwrite=overwrite,
    )
    if as_json:
        print_json(config)
        return
    name, info = config["backbone"]["name"], config["teacher"]
    note(
        f"{name}, {config['n_parameters'] / 1e6:.1f}M parameters, teacher {info['model']}"
        f"/{info['pretrained']}: {out}"
    )


@app.command()
def ablate(
    shards: Annotated[
        list[str], typer.Option(help="Shard set to train on; repeatable.", rich_help_panel=INPUT)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the table, chart and results.", rich_help_panel=OUTPUT)
    ],
    grid: Annotated[
        str, typer.Option(help="Name of a grid, or a TOML file.", rich_help_panel=TRAINING)
    ] = "relations",
    recipe: Annotated[
        str, typer.Option(help="Name of a recipe, or a TOML file.", rich_help_panel=TRAINING)
    ] = "tiny",
    seeds: Annotated[
        int, typer.Option(help="Number of runs per arm.", rich_help_panel=TRAINING)
    ] = 5,
    sets: SetOption = None,
    eval_shards: Annotated[
        list[str] | None,
        typer.Option(
            help="Shard set to evaluate on; repeatable. Default: --split of --shards.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split to evaluate on.", rich_help_panel=INPUT)
    ] = "test",
    runs: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the runs; grids may share one. Default: OUT/runs.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Concurrent runs, each in its own process.", rich_help_panel=WORKERS)
    ] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run as Ray tasks.", rich_help_panel=WORKERS)
    ] = False,
    cpus: Annotated[
        int, typer.Option(min=1, help="Cores per run, with --ray.", rich_help_panel=WORKERS)
    ] = 1,
    workers: WorkersOption = 1,
    address: AddressOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the arms of a grid with several seeds and make paired comparisons.

    Run the same command again to resume, also with more seeds; --overwrite replaces the table of
    another study, but keeps its runs. The exit code is 3 if a run failed.

    Examples:

      trainer ablate --shards shards --grid relations --seeds 5 --out ablation/relations

      trainer ablate --shards shards --grid mine.toml --recipe tiny --jobs 8 --out ablation/mine
    """
    from trainer.ablate import Study, ablate, load_grid
    from trainer.ablate_report import HEADLINE, TITLES, headline_rows
    from trainer.jobs import Executor, Here, Processes, RayTasks, visible_gpus
    from trainer.run import choose_device

    if workers > 1 and (ray or jobs > 1):
        raise InputError(
            "--workers: not with --jobs or --ray; runs with several workers run one by one"
        )
    study = Study(
        load_grid(grid),
        recipe,
        tuple(sets or ()),
        seeds,
        tuple(shards),
        tuple(eval_shards or ()),
        split,
        out,
        runs or out / "runs",
        device,
        workers,
        address,
    )
    on_gpu = choose_device(device, address if ray or workers > 1 else None).type == "cuda"
    # Runs of several workers too get a process of their own: each starts Ray Train anew.
    executor: Executor = (
        Here()
        if jobs == workers == 1
        else Processes(jobs, visible_gpus() if on_gpu and workers == 1 else ())
    )
    if ray:
        executor = RayTasks(address, cpus, None if device == "auto" and address else int(on_gpu))
    goes_on(study.runs, "runs")
    record = ablate(study, executor, overwrite=overwrite)
    if as_json:
        print_json(record)
    else:
        title = f"{record['title']}: {TITLES[record['primary']]}, percent"
        print_table(title, HEADLINE, headline_rows(record))
        note(f"written to {out}")
    if record["failed"]:
        raise typer.Exit(EXIT_TOO_MANY_FAILURES)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or checkpoint.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write. Default: RUN-FORMAT, next to the run.", rich_help_panel=OUTPUT
        ),
    ] = None,
    to: Annotated[
        ExportFormat, typer.Option(help="Format.", rich_help_panel=OUTPUT)
    ] = ExportFormat.safetensors,
    result: ResultsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a student with its config and a model card, and check the file.

    A run folder stands for its newest checkpoint, RUN/best for its best by validation.

    Examples:

      trainer export runs/mrd

      trainer export runs/mrd --to onnx --out exports/mrd-onnx --result results/zeroshot.json
    """
    from trainer.export import default_out
    from trainer.export import export as write

    made = write(
        source,
        out or default_out(source, to.value),
        to.value,
        results=result or (),
        overwrite=overwrite,
    )
    if as_json:
        print_json(made.to_json())
        return
    note(
        f"exported {made.source} to {made.file}; largest difference from the student "
        f"{made.max_difference:.2g} on {made.clouds} random clouds"
    )


@app.command()
def push(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or checkpoint.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Model on the hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public.", rich_help_panel=OUTPUT)
    ] = False,
    result: ResultsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a student to the Hugging Face hub with the account that is logged in.

    Example:

      trainer push runs/mrd me/mrd-demo --result results/zeroshot.json
    """
    from trainer.export import push as upload

    page = upload(source, repository, private=not public, results=result or ())
    if as_json:
        print_json({"url": page})
        return
    note(f"pushed to {page}")


def main() -> None:
    """Console entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
