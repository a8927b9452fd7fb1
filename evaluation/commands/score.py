"""``evaluation score``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evaluation.commands.options import (
    TIMEOUT_S,
    DeviceOption,
    SeedOption,
    TimeoutOption,
    UpAxisOption,
    check_result,
    counted,
)
from pipeline.common import InputError, content_hash
from pipeline.console import (
    EXIT_TOO_MANY_FAILURES,
    MAX_FAILURES,
    MODEL,
    OUTPUT,
    SEARCH,
    VIEWS,
    JsonOption,
    MaxFailuresOption,
    OverwriteOption,
    ProgressBar,
    note,
    print_json,
    print_table,
)
from pipeline.console import out as stdout

if TYPE_CHECKING:
    from evaluation.score import Asked, Failure, Scores
    from evaluation.student import Student
    from evaluation.teachers import QueryTeacher


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(score)


def score(
    meshes: Annotated[
        list[Path] | None, typer.Argument(help="Mesh files, or folders of them.", metavar="MESH...")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", help="Text that every mesh should match.", rich_help_panel=SEARCH),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Image that every mesh should match.", rich_help_panel=SEARCH),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Instead of these: CSV with mesh, text, image; one mesh per line.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="Student; without one, only views are scored.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            help="demo, MODEL:TAG, MODEL:/path; with --checkpoint: new location of its teacher.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    draws: Annotated[
        int,
        typer.Option(
            "--draws",
            min=1,
            help="Point samplings per mesh; their spread is reported.",
            rich_help_panel=VIEWS,
        ),
    ] = 3,
    views: Annotated[
        int, typer.Option("--views", min=1, max=120, help="Rendered views.", rich_help_panel=VIEWS)
    ] = 12,
    distractors: Annotated[
        Path | None,
        typer.Option(
            "--distractors",
            help="Texts that a good mesh should not match better, one per line. Default: 164 "
            "everyday things.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Also write all results: a .csv or .json file.", rich_help_panel=OUTPUT
        ),
    ] = None,
    up_axis: UpAxisOption = "auto",
    seed: SeedOption = 0,
    timeout: TimeoutOption = TIMEOUT_S,
    max_failures: MaxFailuresOption = MAX_FAILURES,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Score meshes, for example generated ones, against a text, an image, or both.

    Examples:

      evaluation score mug.glb --text "a red mug" --checkpoint runs/mrd

      evaluation score --prompts prompts.csv --teacher ViT-L-14:openai --out scores.csv
    """
    from evaluation import isolated
    from evaluation import score as scoring
    from evaluation.results import write_result
    from pipeline.cameras import ring

    if out is not None and out.suffix.lower() not in (".csv", ".json"):
        raise InputError(f"--out {out}: give a name that ends in .csv or .json")
    check_result(out, overwrite)
    asked = _asked(meshes or [], text, image, prompts)
    wrong = scoring.read_distractors(distractors)
    cameras = ring(views)
    failures: list[scoring.Failure] = []
    with isolated.IsolatedCalls(timeout) as call:
        call.start()  # while the models are loaded
        tower, student = _models(checkpoint, teacher, device)
        scorer = scoring.Scorer(
            *(tower, student, cameras),
            distractors=wrong,
            draws=draws,
            seed=seed,
            up_axis=up_axis,
            call=call,
        )
        with ProgressBar("score", len(asked), "meshes") as bar:
            scores = list(scoring.score_all(asked, scorer, failures, counted(bar, failures)))
    protocol = {
        "measure": "cosine",
        "views": cameras.name,
        "n_views": views,
        "draws": draws if student else 0,
        "seed": seed,
        "points": student.n_points if student else None,
        "distractors": "everyday things of the package" if distractors is None else "from a file",
        "n_distractors": len(wrong),
        "distractors_sha256": content_hash("\n".join(wrong)),
        "up_axis": up_axis,
        "ties": "count as lost",
        "interval": "95 %: t over meshes for means, Wilson for precisions",
    }
    found = scoring.record(scores, failures, tower, student.model if student else None, protocol)
    if out is not None and out.suffix.lower() == ".csv":
        scoring.write_csv(out, scores, failures)
    elif out is not None:
        write_result(out, found)
    if json_output:
        print_json(found)
    else:
        _show(scores, found["summary"], failures)
    if len(failures) > max_failures * len(asked):
        raise typer.Exit(EXIT_TOO_MANY_FAILURES)


def _asked(
    meshes: list[Path], text: str | None, image: Path | None, prompts: Path | None
) -> list[Asked]:
    """What is to be scored against what. Raises ``InputError`` that names the options."""
    from evaluation.score import Asked, read_prompts
    from evaluation.search import load_image
    from evaluation.sources import find_meshes

    if prompts is not None:
        if meshes or text is not None or image is not None:
            raise InputError("--prompts names the meshes and their prompts: leave the others out")
        return read_prompts(prompts)
    if not meshes:
        raise InputError("give mesh files, a folder of them, or --prompts FILE")
    if text is None and image is None:
        raise InputError("give --text, --image, or both: what the meshes should show")
    if text is not None and not text.strip():
        raise InputError('--text: is empty; give a prompt, as in --text "a red mug"')
    if image is not None:
        try:
            load_image(image, (0, 0, 0))  # before any mesh is drawn
        except InputError as error:
            raise InputError(f"--image {error}") from error
    wanted = text.strip() if text else None
    return [Asked(mesh.name, mesh.path, wanted, image) for mesh in find_meshes(meshes)]


def _models(
    checkpoint: Path | None, teacher: str | None, device: str
) -> tuple[QueryTeacher, Student | None]:
    """Teacher and student. Raises ``InputError`` without either."""
    from evaluation import student as students
    from evaluation import teachers

    target = students.pick_device(device)
    if checkpoint is not None:
        student = students.load_student(checkpoint, target)
        return teachers.open_teacher(student.teacher, teacher, target), student
    if teacher is None:
        raise InputError(
            "give --checkpoint RUN (a student, which also names its teacher) or --teacher MODEL:TAG"
        )
    return teachers.load_any(teacher, target), None


def _show(
    scores: list[Scores], summary: dict[str, Any], failures: list[Failure], most: int = 30
) -> None:
    from evaluation.results import percent

    for failure in failures[:20]:
        note(f"failed: {failure.asked.name}: {failure.reason}")
    kinds = [k for k in ("shape_text", "view_text", "shape_image", "view_image") if k in summary]
    ranked = [k for k in ("shape_rank", "view_rank") if any(getattr(s, k) for s in scores)]
    rows = []
    for one in scores[:most]:
        cells: list[object] = [one.mesh, one.text or one.image or "-"]
        for kind in kinds:
            value, spread = getattr(one, kind), getattr(one, f"{kind}_sd", None)
            told = "-" if value is None else f"{value:.3f}"
            cells.append(told + (f" ± {spread:.3f}" if spread is not None else ""))
        cells += [getattr(one, kind) or "-" for kind in ranked]
        rows.append(cells)
    print_table(f"Scores of {len(scores)} meshes", ["mesh", "prompt", *kinds, *ranked], rows)
    if len(scores) > most:
        note(f"{len(scores) - most} more: --out FILE.csv writes all")
    for witness in ("shape", "view"):
        share = summary.get(f"{witness}_precision")
        if share:
            told = f"retrieval precision by {witness}, percent: {percent(share)} of {share['n']}"
            stdout.print(told, highlight=False, markup=False)
