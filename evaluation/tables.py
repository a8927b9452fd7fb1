"""Results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.published import Table, beside
from evaluation.results import percent
from pipeline.common import content_hash
from pipeline.console import out, print_table, table_width

Record = dict[str, Any]
WIDE = 110  # columns of a terminal from which on intervals fit


def zeroshot_tables(record: Record) -> None:
    """The figures of one classification, its worst classes and confusions."""
    comparison_tables([record])
    grouped = [
        [
            group["name"],
            group["count"],
            group["n_classes"],
            *[_share(group[f"top{k}"], k > 1) for k in (1, 3, 5)],
            _hundred(group["class_mean"]),
        ]
        for group in record.get("groups", [])
    ]
    if grouped:
        columns = ["classes", "objects", "classes present", "top-1", "top-3", "top-5", "class mean"]
        print_table("By class, each against all classes, percent", columns, grouped)
    drawn = record.get("draws")
    if drawn:
        top1, each = drawn["top1"], drawn["top1"]["each"]
        out.print(
            f"top-1 of one draw of points, percent: {100 * top1['mean']:.1f} ± "
            f"{100 * top1['sd']:.1f} (sd over {len(each)}); above: for their mean embedding",
            highlight=False,
        )
    rated = [row for row in record["per_class"] if row["count"]]
    worst = sorted(rated, key=lambda row: (row["recall"], row["name"]))[:5]
    rows = [
        [row["name"], row["count"], _hundred(row["recall"]), _hundred(row["precision"])]
        for row in worst
    ]
    print_table("Worst classes", ["class", "objects", "recall %", "precision %"], rows)
    pairs = [
        [pair["true"], pair["predicted"], pair["count"]] for pair in record["most_confused"][:5]
    ]
    if pairs:
        print_table("Most confused", ["true", "predicted", "objects"], pairs)


def one_table(record: Record) -> None:
    """The figures of one retrieval benchmark (the teacher's ceiling below) or of one probe."""
    comparison_tables([record])


def comparison_tables(records: Sequence[Record]) -> None:
    """All results side by side: one table per benchmark and task, to the terminal's width."""
    for title, columns, rows in comparisons(records, compact=table_width() < WIDE):
        print_table(title, columns, rows)


def comparisons(records: Sequence[Record], compact: bool = False) -> list[Table]:
    """(title, columns, rows) of every table; results of other objects never share one.

    Shares are in percent, the first with its 95 % interval (the results hold them all);
    ``compact`` leaves intervals, nDCG and chance out. What papers report of a benchmark follows it.
    """
    tables = {
        "zeroshot": _zeroshot_comparison,
        "recall": _recall_comparison,
        "probe": _probe_comparison,
        "parts": _parts_comparison,
    }
    found = []
    for heading, group in groups(records):
        found.append(tables[group[0]["task"]](group, heading, compact))
        others = beside(group[0])
        if others is not None:
            found.append(others)
    return found


def groups(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Results that can be compared with each other, in order, each with its ``title_of``.

    Where several have the same title, it is followed by what sets them apart.
    """
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        key = (record["task"], record["benchmark"], record["uid_hash"], *details(record).values())
        found.setdefault(key, []).append(record)
    headed: dict[tuple[str, str], list[list[Record]]] = {}
    for group in found.values():
        headed.setdefault((group[0]["task"], title_of(group[0])), []).append(group)
    result = []
    for group in found.values():
        title = title_of(group[0])
        alike = [details(other[0]) for other in headed[group[0]["task"], title]]
        told = [
            f"{name} {value or 'not recorded'}"
            for name, value in details(group[0]).items()
            if len({other[name] for other in alike}) > 1
        ]
        result.append((", ".join([title, *told]), group))
    return result


def details(record: Record) -> dict[str, str]:
    """What two results of the same objects must share to be compared, apart from the model.

    The teacher is not among it: a model is measured with its own. Older results do not tell of
    their labels and queries, and are comparable with their like.
    """
    protocol, task = record["protocol"], record["task"]
    found = {
        "protocol": str(protocol.get("name", "")),
        "images of": str(protocol.get("image_queries", "")),
        "texts": str(protocol.get("text_source", "")),
        "queries": str(record.get("query_hash", "")),
        "labels": str(record.get("label_hash", "")),
    }
    if task == "zeroshot":
        found["classes"] = content_hash("\n".join(record["confusion"]["classes"]))[:8]
        if not found["labels"]:  # next to nothing is known of them, but how many are of which
            counts = str([row["count"] for row in record["per_class"]])
            found["labels"] = f"not recorded (counts {content_hash(counts)[:8]})"
        found["class texts"] = _class_texts(protocol.get("templates"))
        draws = protocol.get("draws", 1)  # not recorded of views, which have no points
        found["draws"] = "1" if draws == 1 else f"{draws} from seed {protocol.get('draw_seed')}"
    if task in ("probe", "parts"):
        found["classifier"] = f"{protocol['classifier']} on {protocol['n_train']}"
        found["neighbours"] = str(protocol.get("neighbours", ""))
    return found


def _class_texts(templates: list[str] | None) -> str:
    if not templates:
        return "" if templates is None else "of the data"
    if len(templates) == 1:
        return f"by template {templates[0]!r}"
    return f"by {len(templates)} templates ({content_hash(chr(10).join(templates))[:8]})"


def teacher_of(record: Record) -> tuple[str, str]:
    """The teacher of a result, by its names."""
    teacher = record["teacher"]
    return str(teacher.get("model")), str(teacher.get("pretrained"))


def title_of(record: Record) -> str:
    """Benchmark, variant and size, as every table of it is headed."""
    variant = "" if record["variant"] == "all" else f", {record['variant']}"
    whole = record.get("benchmark_counts") or [record["count"]]
    count = str(record["count"])
    if record["count"] not in whole:
        count += f" of {' or '.join(f'{number:,}' for number in whole)}"
    classes_told = ""
    classes, known = record["protocol"].get("n_classes"), record.get("benchmark_classes")
    if None not in (classes, known) and classes != known:
        classes_told = f", {classes:,} of {known:,} classes"
    protocol = record["protocol"].get("name", "ours")
    told = "" if protocol == "ours" else f", protocol of {protocol}"
    size = f"{count} objects{classes_told}"
    return f"{record['benchmark']}{variant}, {size} (set {record['uid_hash']}){told}"


def _zeroshot_comparison(group: list[Record], heading: str, compact: bool) -> Table:
    first = group[0]
    classes, chance = first["protocol"]["n_classes"], first["metrics"]["chance_top1"]
    rows = [
        [
            record["model"]["name"],
            _share(record["metrics"]["top1"], compact),
            *[_share(record["metrics"][f"top{k}"], True) for k in (3, 5)],
            _hundred(record["metrics"]["class_mean"]),
            _hundred(record["metrics"]["macro_f1"]),
        ]
        for record in group
    ]
    title = f"Zero-shot on {heading}: {classes} classes, chance {100 * chance:.1f} %, percent"
    return title, ["model", "top-1", "top-3", "top-5", "class mean", "macro F1"], rows


def _recall_comparison(group: list[Record], heading: str, compact: bool) -> Table:
    first = group[0]
    rows = [
        _recall_row(record["model"]["name"], name, figures, compact)
        for record in group
        for name, figures in record["directions"].items()
    ]
    # The ceiling is the same for every student of a teacher: it depends on the objects and the
    # teacher alone.
    shown = set()
    several = len({teacher_of(record) for record in group}) > 1
    for record in group:
        teacher = teacher_of(record)
        if record.get("teacher_ceiling") and teacher not in shown and not _told(record, group):
            shown.add(teacher)
            told = f"teacher {' '.join(teacher)}" if several else "teacher"
            ceiling = record["teacher_ceiling"].items()
            rows += [_recall_row(told, name, figures, compact) for name, figures in ceiling]
    title = f"Retrieval on {heading}, texts: {first['protocol']['text_source']}, percent"
    columns = ["model", "direction", "R@1", "R@5", "R@10", "rank", "mAP", "queries"]
    return title, columns if compact else [*columns, "nDCG", "chance"], rows


def _told(record: Record, group: list[Record]) -> bool:
    """Whether a teacher's own result says what the ceiling of ``record`` says.

    One of a single view says other things; so does one from before it left out the view that asks.
    """

    def rows(figures: dict[str, Any]) -> list[list[str]]:
        named = {name.replace("3d", "views"): shares for name, shares in figures.items()}
        return [_recall_row("", name, shares, False) for name, shares in named.items()]

    return any(
        other["model"]["kind"] == "teacher-views"
        and teacher_of(other) == teacher_of(record)
        and rows(other["directions"]) == rows(record["teacher_ceiling"])
        for other in group
    )


def _recall_row(model: str, direction: str, figures: dict[str, Any], compact: bool) -> list[str]:
    row = [
        model,
        direction,
        _share(figures["recall@1"], compact),
        *[_share(figures[f"recall@{k}"], True) for k in (5, 10)],
        _number(figures["median_rank"]),
        _hundred(figures["map"]),
        str(figures["n_queries"]),
    ]
    more = [_hundred(figures.get("ndcg")), _hundred(figures["chance_recall@1"])]
    return row if compact else [*row, *more]


def _probe_comparison(group: list[Record], heading: str, compact: bool) -> Table:
    first = group[0]
    shots = [entry["shots"] for entry in first["few_shot"]]
    rows = []
    for record in group:
        few = {entry["shots"]: entry for entry in record["few_shot"]}
        cells = [_share(few[k]["top1"], compact) if k in few else "-" for k in shots]
        nearest = [_share(entry["top1"], True) for entry in record["knn"]]
        rows.append(
            [record["model"]["name"], *cells, _share(record["linear"]["top1"], True), *nearest]
        )
    protocol = first["protocol"]
    title = (
        f"Probes on {heading}: {protocol['n_classes']} classes, "
        f"{protocol['n_train']} training objects, top-1 in percent"
    )
    names = [f"{k} shot{'s' if k > 1 else ''}" for k in shots]
    nearest_names = [f"{entry['k']}-NN" for entry in first["knn"]]
    return title, ["model", *names, "linear", *nearest_names], rows


def _parts_comparison(group: list[Record], heading: str, compact: bool) -> Table:
    first = group[0]
    names = [row["name"] for row in first["per_class"]]
    rows = [
        [
            record["model"]["name"],
            _share(record["metrics"]["instance_miou"], compact),
            _hundred(record["metrics"]["class_miou"]),
            *([] if compact else [_hundred(row["miou"]) for row in record["per_class"]]),
        ]
        for record in group
    ]
    protocol = first["protocol"]
    title = (
        f"Parts of {heading}: {protocol['n_parts']} parts of {protocol['n_classes']} "
        f"categories, {protocol['n_train']} training shapes, mIoU in percent"
    )
    columns = ["model", "instance mIoU", "class mIoU"]
    return title, columns if compact else [*columns, *names], rows


def _share(share: dict[str, Any], compact: bool) -> str:
    return _hundred(share["value"]) if compact else percent(share)


def _hundred(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
