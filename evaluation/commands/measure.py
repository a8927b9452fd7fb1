"""``evaluation zeroshot``, ``recall`` and ``probe``: the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evaluation.commands.options import (
    BatchOption,
    BenchmarkOption,
    CheckpointOption,
    DeviceOption,
    ResultOption,
    SeedOption,
    ShardsOption,
    SplitOption,
    TeacherOption,
    TeacherViewsOption,
    ViewsOption,
    check_result,
    make_encoder,
)
from pipeline.common import InputError
from pipeline.console import (
    INPUT,
    MEASURE,
    VIEWS,
    JsonOption,
    OverwriteOption,
    ProgressBar,
    note,
    print_json,
)

if TYPE_CHECKING:
    from evaluation.benchmarks.known.base import Benchmark, Variant
    from evaluation.sources import Encoder
    from pipeline.shards import ShardSet

MANY_COMPARISONS = 10_000_000_000  # minutes on two cores


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(zeroshot)
    app.command()(recall)
    app.command()(probe)


def zeroshot(
    shards: ShardsOption,
    checkpoint: CheckpointOption = None,
    teacher_views: TeacherViewsOption = False,
    views: ViewsOption = "mean",
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="Class names: one per line, a JSON list, or a JSON object category -> name. "
            "Default: the categories of the shards.",
            rich_help_panel=MEASURE,
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            help="ours, openshape or uni3d: see docs/evaluation.md.",
            rich_help_panel=MEASURE,
        ),
    ] = "ours",
    templates: Annotated[
        str | None,
        typer.Option(
            "--templates",
            help="Prompt templates: manifest (those of the shards), field64, bare, or a file with "
            "one per line. Default: those of the protocol.",
            rich_help_panel=MEASURE,
        ),
    ] = None,
    split: SplitOption = None,
    draws: Annotated[
        int,
        typer.Option(
            "--draws",
            min=1,
            help="Point samplings per cloud to average; their spread is reported.",
            rich_help_panel=VIEWS,
        ),
    ] = 1,
    seed: SeedOption = 0,
    benchmark: BenchmarkOption = None,
    out: ResultOption = None,
    teacher: TeacherOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Classify shapes by the nearest class text.

    A --benchmark that `evaluation benchmarks` lists determines the classes and the split.

    Examples:

      evaluation zeroshot --checkpoint runs/mrd --shards shards/test --out zeroshot.json

      evaluation zeroshot --checkpoint pb32m --shards mn40 --benchmark modelnet40 --protocol uni3d
    """
    from evaluation import teachers
    from evaluation.benchmarks.labels import from_categories, from_file
    from evaluation.benchmarks.protocols import protocol as protocol_of
    from evaluation.benchmarks.templates import load_templates
    from evaluation.benchmarks.zeroshot import class_texts
    from evaluation.benchmarks.zeroshot import zeroshot as run
    from evaluation.sources import split_categories
    from evaluation.student import pick_device
    from evaluation.tables import zeroshot_tables
    from pipeline.heap import keep_freed
    from pipeline.shards import ShardSet

    check_result(out, overwrite)
    keep_freed()
    chosen = protocol_of(protocol)
    opened = ShardSet.open(shards)
    known, selection = _selection(benchmark, opened, split)
    split = selection.split if selection else split
    prompts = load_templates(templates or chosen.templates, opened.manifest)
    if labels:
        classes = from_file(labels)
    else:
        found = split_categories(opened, split)
        classes = (
            known.labels(found, as_released=chosen.released_names)
            if known
            else from_categories(found)
        )
    encoder = make_encoder(
        opened, checkpoint, teacher_views, views, device, batch_size, draws, seed, chosen.centre
    )
    texts = class_texts(
        opened,
        classes,
        lambda: teachers.open_teacher(opened.manifest.teacher, teacher, pick_device(device)),
        prompts,
        chosen,
        asked=templates is not None,
    )
    with ProgressBar("zeroshot", len(opened), "objects") as bar:
        record = run(
            opened,
            encoder,
            classes,
            texts,
            split=split,
            benchmark=benchmark,
            protocol=chosen,
            groups=known.groups() if known and not labels else None,
            advance=bar.advance,
        )
    record |= selected(known, selection) | seen(encoder, opened, split)
    tell(record, out, json_output, zeroshot_tables)


def recall(
    shards: ShardsOption,
    checkpoint: CheckpointOption = None,
    teacher_views: TeacherViewsOption = False,
    views: ViewsOption = "mean",
    texts: Annotated[
        str | None,
        typer.Option(
            "--texts",
            help="Texts used as queries: a source of the shards (caption, name ...) or all. "
            "Default: captions if there are any, otherwise names.",
            rich_help_panel=MEASURE,
        ),
    ] = None,
    view_shards: Annotated[
        str | None,
        typer.Option(
            "--view-shards",
            help="Set of the same objects from other cameras, whose first view is the query. "
            "Default: the first view in the shards themselves.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    split: SplitOption = None,
    benchmark: BenchmarkOption = None,
    out: ResultOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Measure retrieval from text, image and shape to shape, and back.

    Examples:

      evaluation recall --checkpoint runs/mrd --shards shards/test --out recall.json

      evaluation recall --checkpoint runs/mrd --shards shards/test --view-shards shards/other
    """
    from evaluation.benchmarks.recall import prepare
    from evaluation.tables import one_table
    from pipeline.shards import ShardSet

    check_result(out, overwrite)
    opened = ShardSet.open(shards)
    known, selection = _selection(benchmark, opened, split)
    split = selection.split if selection else split
    encoder = make_encoder(opened, checkpoint, teacher_views, views, device, batch_size)
    with ProgressBar("recall", len(opened), "objects") as bar:
        ready = prepare(
            opened,
            encoder,
            text_source=texts,
            view_shards=ShardSet.open(view_shards) if view_shards else None,
            split=split,
            benchmark=benchmark,
            advance=bar.advance,
        )
    if ready.n_comparisons > MANY_COMPARISONS:
        remedy = "; --split test measures fewer objects" if split is None else ""
        note(f"{ready.n_comparisons / 1e9:,.0f} billion comparisons follow{remedy}")
    with ProgressBar("rank", ready.n_queries, "queries") as bar:
        record = ready.measure(bar.advance)
    record |= selected(known, selection) | seen(encoder, opened, split)
    tell(record, out, json_output, one_table)


def probe(
    shards: ShardsOption,
    checkpoint: CheckpointOption = None,
    teacher_views: TeacherViewsOption = False,
    views: ViewsOption = "mean",
    train_shards: Annotated[
        str | None,
        typer.Option(
            "--train-shards",
            help="Shard set to train on; default: the same one.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Split to test on.", rich_help_panel=INPUT)
    ] = "test",
    shots: Annotated[
        str,
        typer.Option(
            "--shots",
            help="Training objects per class for the few-shot probes.",
            rich_help_panel=MEASURE,
        ),
    ] = "1,2,4,8,16",
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, help="Number of random draws per shot count.", rich_help_panel=MEASURE
        ),
    ] = 10,
    c: Annotated[
        float | None,
        typer.Option(
            "--c",
            min=1e-6,
            help="Inverse regularisation strength of the classifiers. Default: chosen for each "
            "one on its training objects.",
            rich_help_panel=MEASURE,
        ),
    ] = None,
    benchmark: BenchmarkOption = None,
    out: ResultOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Fit classifiers on frozen embeddings: few-shot, with all labels, and nearest neighbours.

    Trains on rows of the split train (or without a split), tests on rows of the split test.

    Example:

      evaluation probe --checkpoint runs/mrd --shards shards/modelnet --out probe.json
    """
    from evaluation.benchmarks.probe import prepare
    from evaluation.sources import require_split
    from evaluation.tables import one_table
    from pipeline.shards import ShardSet

    check_result(out, overwrite)
    counts = parse_shots(shots)
    opened = ShardSet.open(shards)
    known, selection = _selection(benchmark, opened, split)
    learned = ShardSet.open(train_shards) if train_shards else None
    require_split(opened, split)
    encoder = make_encoder(opened, checkpoint, teacher_views, views, device, batch_size)
    if learned is not None:  # also that its clouds and its teacher fit
        make_encoder(learned, checkpoint, teacher_views, views, device, batch_size)
    ready = prepare(
        opened,
        encoder,
        train=learned,
        split=split,
        shots=counts,
        seeds=seeds,
        c=c,
        benchmark=benchmark,
    )
    with ProgressBar("probe", ready.n_rows, "objects") as bar:
        fit, test = ready.embed(bar.advance)
    with ProgressBar("fit", ready.n_classifiers, "classifiers") as bar:
        record = ready.measure(fit, test, bar.advance)
    record |= selected(known, selection)
    tell(record, out, json_output, one_table)


def _selection(
    name: str | None, shards: ShardSet, split: str | None
) -> tuple[Benchmark | None, Variant | None]:
    """The benchmark of a name, if it is a known one, and which variant of it the set is.

    None for the variant where a split of the user's own was asked for.
    """
    from evaluation.benchmarks.known import find

    known = find(name)
    variant = known.variant(shards) if known else None
    if variant is not None and split not in (None, variant.split):
        variant = None
    return known, variant


def selected(known: Benchmark | None, variant: Variant | None) -> dict[str, Any]:
    """What a result says of the variant of a known benchmark that it is of."""
    if known is None or variant is None:
        return {}
    told: dict[str, Any] = {"variant": variant.name, "benchmark_counts": list(variant.counts)}
    return told if known.n_classes is None else {**told, "benchmark_classes": known.n_classes}


def seen(encoder: Encoder, shards: ShardSet, split: str | None) -> dict[str, Any]:
    """What a result says where the student was trained on objects that are measured."""
    from evaluation.sources import StudentEncoder

    manifest = shards.manifest
    if not (
        isinstance(encoder, StudentEncoder)
        and encoder.student.has_seen(manifest.config_hash, split)
    ):
        return {}
    note(
        f"{encoder.model.name} was trained on this set, so these figures are not those of unseen "
        "objects: divide the set with `pipeline split` before training, and measure --split test"
    )
    return {"trained_on": True}


def tell(
    record: dict[str, Any], out: Path | None, json_output: bool, show: Callable[..., None]
) -> None:
    """Write a result where asked, and print it."""
    from evaluation.results import write_result

    if out:
        write_result(out, record)
    if json_output:
        print_json(record)
    else:
        show(record)


def parse_shots(text: str) -> tuple[int, ...]:
    """``1,2,4`` as numbers. Raises ``InputError`` for anything else."""
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < 1:
        raise InputError(f"--shots {text}: give positive numbers separated by commas, e.g. 1,4,16")
    return found
