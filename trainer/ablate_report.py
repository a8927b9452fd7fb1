"""The record of a study, its table in Markdown and its chart in SVG.

Two intervals stand beside the difference of an arm to its control. The one *over seeds* says how
much it varies from training to training, on these objects. The one *over objects* says how much it
would vary with other objects of the same kind, for these trained students. A gain that should
hold for other trainings on other objects has both on one side of 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common import InputError, atomic_path, versions, write_json
from trainer.ablate import Arm, Run, Study
from trainer.statistics import CONFIDENCE, Interval, holm, paired_difference, t_interval

FORMAT, VERSION = "mrd3d-ablation", 1
RESULTS, TABLE, CHART = "results.json", "README.md", "differences.svg"
PRIMARY = "zeroshot_top1"
TITLES = {
    "zeroshot_top1": "zero-shot top-1",
    "zeroshot_top3": "zero-shot top-3",
    "zeroshot_top5": "zero-shot top-5",
    "zeroshot_class_mean": "zero-shot class mean",
    "text_recall@1": "text to 3D R@1",
    "text_recall@5": "text to 3D R@5",
    "image_recall@1": "image to 3D R@1",
    "image_recall@5": "image to 3D R@5",
    "shape_map": "shape to shape mAP",
}

Results = Mapping[tuple[str, int], dict[str, Any] | None]


def summarise(
    study: Study,
    arms: Sequence[Arm],
    runs: Sequence[Run],
    results: Results,
    failed: Mapping[tuple[str, int], str],
    rows: dict[str, Any],
) -> dict[str, Any]:
    """Everything that a study found, for JSON.

    Raises ``InputError`` when no arm was finished with a seed that its control was finished with.
    """
    grid = study.grid
    finished = [result for result in results.values() if result is not None]
    if not any(
        results[arm, run.seed] and results[control, run.seed]
        for arm, control in grid.against.items()
        for run in runs
    ):
        reason = next(iter(failed.values()), "no run was started")
        raise InputError(
            f"--grid {grid.name}: no arm finished with a seed that its control finished with; "
            f"the first error was: {reason}"
        )
    metrics = [name for name in TITLES if all(name in item["metrics"] for item in finished)]
    primary = PRIMARY if PRIMARY in metrics else metrics[0]
    seeds = sorted({run.seed for run in runs})
    folder_of = {(run.arm, run.seed): run.folder.name for run in runs}
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "grid": grid.name,
        "title": grid.title,
        "about": grid.about,
        "control": grid.control,
        "recipe": study.recipe,
        "sets": list(study.sets),
        "seeds": seeds,
        "primary": primary,
        "rows": rows,
        "protocol": finished[0]["protocol"],
        "data": arms[0].data,
        "confidence": CONFIDENCE,
        "arms": {},
        "failed": [
            {"arm": arm, "seed": seed, "reason": reason} for (arm, seed), reason in failed.items()
        ],
        "versions": versions("mrd3d", "torch", "numpy", "scipy"),
    }
    for arm in arms:
        own = {seed: result for seed in seeds if (result := results[arm.name, seed]) is not None}
        record["arms"][arm.name] = {
            "changes": grid.arms[arm.name],
            "against": grid.against.get(arm.name),
            "steps": arm.steps,
            "samples": arm.samples,
            "begins_with": arm.begins or None,
            "parameters": next((item["parameters"] for item in own.values()), None),
            "seconds": _interval([item["seconds"] for item in own.values()]),
            "runs": [
                {
                    "seed": seed,
                    "folder": folder_of[arm.name, seed],
                    "checkpoint": item["checkpoint"],
                    "steps": item["step"],
                    "samples": item["samples"],
                    "seconds": item["seconds"],
                    "metrics": item["metrics"],
                }
                for seed, item in own.items()
            ],
            "metrics": {
                name: _interval([item["metrics"][name] for item in own.values()])
                for name in metrics
            },
            "differences": _differences(arm.name, grid.against, results, seeds, metrics),
        }
    for name in metrics:
        adjust(record["arms"], name)
    return record


def _interval(values: list[float]) -> dict[str, Any] | None:
    return _plain(asdict(t_interval(values))) if values else None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """NaN becomes None: JSON has no NaN."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in values.items()
    }


def _differences(
    arm: str, against: Mapping[str, str], results: Results, seeds: Sequence[int], names: list[str]
) -> dict[str, Any]:
    """Paired differences to the control by metric; {} for a control and without a pair."""
    if arm not in against:
        return {}
    found = [(results[arm, seed], results[against[arm], seed]) for seed in seeds]
    pairs = [(ours, theirs) for ours, theirs in found if ours is not None and theirs is not None]
    if not pairs:
        return {}
    differences: dict[str, Any] = {}
    for name in names:
        ours = [pair[0]["metrics"][name] for pair in pairs]
        theirs = [pair[1]["metrics"][name] for pair in pairs]
        paired = paired_difference(ours, theirs)
        differences[name] = {
            **_plain(asdict(paired)),
            "each": [a - b for a, b in zip(ours, theirs, strict=True)],
        }
    if PRIMARY in differences:
        ranks = [[item["class_rank"] for item in pair] for pair in pairs]
        differences[PRIMARY]["over_objects"] = _plain(asdict(over_objects(ranks)))
    return differences


def over_objects(ranks: Sequence[Sequence[Sequence[int]]]) -> Interval:
    """Interval of the difference in top-1 over objects, from ranks of (arm, control) per seed.

    Each object has a difference in hits, averaged over the seeds; the t-interval of these means.
    """
    hits = np.asarray(ranks) == 1  # (seeds, 2, objects)
    each = hits[:, 0].mean(0) - hits[:, 1].mean(0)
    return t_interval(each.tolist())


def adjust(arms: dict[str, Any], metric: str) -> None:
    """Add ``p_holm`` to the differences of a metric: adjusted for all arms of the study."""
    tested = [arm["differences"][metric] for arm in arms.values() if arm["differences"]]
    values = [math.nan if item["p"] is None else item["p"] for item in tested]
    for item, p in zip(tested, holm(values), strict=True):
        item["p_holm"] = None if math.isnan(p) else p


def check_report(
    study: Study, arms: Sequence[Arm], rows: dict[str, Any], overwrite: bool = False
) -> None:
    """Raise ``InputError`` where the report of ``study`` would take the place of another's.

    The same study, with more seeds say, goes on in its folder.
    """
    option = f"--out {study.out}"
    remedy = "name another folder, or add --overwrite to replace it (its runs stay)"
    try:
        old: Any = json.loads((study.out / RESULTS).read_text())
    except FileNotFoundError:
        there = [name for name in (TABLE, CHART) if (study.out / name).exists()]
        if there and not overwrite:
            raise InputError(
                f"{option}: has a {there[0]} that belongs to no study; {remedy}"
            ) from None
        return
    except ValueError:
        old = None
    ours = {
        "grid": study.grid.name,
        "control": study.grid.control,
        "recipe": study.recipe,
        "sets": list(study.sets),
        "data": arms[0].data,
        "rows": rows,
        "arms": {arm.name: study.grid.arms[arm.name] for arm in arms},
    }
    theirs = dict(old) if isinstance(old, dict) else {}
    if isinstance(theirs.get("arms"), dict):
        theirs["arms"] = {name: arm.get("changes") for name, arm in theirs["arms"].items()}
    differing = [
        key for key, value in json.loads(json.dumps(ours)).items() if theirs.get(key) != value
    ]
    if differing and not overwrite:
        raise InputError(f"{option}: holds another study (other {differing[0]}); {remedy}")


def write_report(out: Path, record: dict[str, Any]) -> None:
    """Write ``results.json``, ``README.md`` and ``differences.svg`` into a folder."""
    write_json(out / RESULTS, record)
    chart = chart_of(record)
    for name, text in ((TABLE, markdown(record)), (CHART, chart)):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text)


def points(value: float | None, signed: bool = False) -> str:
    """A share in percent, with a sign where it is a difference."""
    return "n/a" if value is None else f"{100 * value:{'+' if signed else ''}.1f}"


def spread(found: dict[str, Any] | None) -> str:
    """Mean and half width of an interval in percent."""
    if found is None:
        return "n/a"
    if found["low"] is None:
        return points(found["mean"])
    return f"{points(found['mean'])} ± {points(found['mean'] - found['low'])}"


def between(found: dict[str, Any] | None) -> str:
    """Ends of an interval of a difference."""
    if found is None or found["low"] is None:
        return "n/a"
    return f"{points(found['low'], True)} to {points(found['high'], True)}"


def headline_rows(record: dict[str, Any]) -> list[list[str]]:
    """The table of the primary metric: arm, runs, mean, difference, intervals, p, seconds."""
    rows = []
    for name, arm in record["arms"].items():
        compared = arm["against"] is not None
        found = arm["differences"].get(record["primary"], {})
        seconds, p = arm["seconds"], found.get("p_holm")
        rows.append(
            [
                name,
                str(len(arm["runs"])),
                spread(arm["metrics"][record["primary"]]),
                points(found.get("mean"), True) if compared else "control",
                between(found or None) if compared else "",
                between(found.get("over_objects")) if compared else "",
                "" if p is None else f"{p:.3f}",
                "n/a" if seconds is None else f"{seconds['mean']:.0f}",
            ]
        )
    return rows


HEADLINE = ["arm", "runs", "mean", "diff.", "over seeds", "over objects", "p (Holm)", "s"]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(columns), ["---"] * len(columns), *[list(row) for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seen(arm: dict[str, Any]) -> list[Any]:
    """What decides the batches of an arm and their augmentations."""
    return [arm["changes"].get(section, {}) for section in ("data", "augment")]


def markdown(record: dict[str, Any]) -> str:
    """The report: what was run, the primary metric, all metrics, what failed."""
    arms, rows, protocol = record["arms"], record["rows"], record["protocol"]
    primary = TITLES[record["primary"]]
    samples = sorted({arm["samples"] for arm in arms.values()})
    sets = ", ".join(item["name"] for item in rows["shards"])
    split = f"split {rows['split']}" if rows["split"] else "all rows"
    options = "".join(f" --set {item}" for item in record["sets"])
    classes = protocol.get("n_classes")
    means = protocol.get("classes_by_mean_of_names", 0)
    chosen = list(next(iter(arms.values()))["metrics"])
    everything = [
        [name, *[spread(arm["metrics"][metric]) for metric in chosen]] for name, arm in arms.items()
    ]
    changes = [
        [
            name,
            str(len(arm["runs"])),
            *[_difference(arm["differences"].get(metric)) for metric in chosen],
        ]
        for name, arm in arms.items()
        if arm["differences"]
    ]
    # Of these the arm that they are compared with has other batches, or other augmentations.
    apart = [
        f"`{name}`"
        for name, arm in arms.items()
        if arm["against"] and _seen(arm) != _seen(arms[arm["against"]])
    ]
    parts = [
        f"# {record['title']}",
        record["about"],
        f"Recipe `{record['recipe']}`{options}, grid `{record['grid']}`, seeds "
        f"{', '.join(map(str, record['seeds']))}. Every run sees "
        f"{' or '.join(f'{n:,}' for n in samples)} samples of {record['data']['n_train']:,} "
        "shapes; compared runs of one seed start from the same weights and see the same batches "
        f"and augmentations{f' (except {_listed(apart)})' if apart else ''}. The student is "
        "measured after the last step; no checkpoint is selected.",
        f"Measured on {rows['n_rows']:,} objects unseen in training ({sets}, {split})"
        + (
            "; the training data of the initial weights is unknown"
            if any(arm.get("begins_with") for arm in arms.values())
            else ""
        )
        + (f", {classes} categories" if classes else "")
        + (f", {means} of them represented by the mean of their training names" if means else "")
        + (f"; text queries: {protocol['text_source']}s" if "text_source" in protocol else "")
        + ".",
        f"## {primary[0].upper()}{primary[1:]}",
        table(HEADLINE, headline_rows(record)),
        f"In percent. Mean ± half of the 95 % t-interval; diff.: difference to "
        f"{_controls(record)}, paired by seed, with its 95 % t-interval over seeds (other "
        "trainings, these objects) and over objects (other objects, these students); p of the "
        "paired t-test, adjusted by Holm's method for all arms (n/a: too few runs, or "
        "runs that agree on every object); s: training seconds of a run.",
        f"![Differences to the control]({CHART})",
        "## All figures",
        table(["arm", *[TITLES[metric] for metric in chosen]], everything),
        "## Differences to the control",
        table(["arm", "pairs", *[TITLES[metric] for metric in chosen]], changes),
        "In percent, with the 95 % t-interval over seeds; `*`: p < 0.05 after Holm's adjustment "
        "among the arms.",
    ]
    if record["failed"]:
        lines = [f"- {f['arm']}, seed {f['seed']}: {f['reason']}" for f in record["failed"]]
        parts += ["## Failed runs", "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _controls(record: dict[str, Any]) -> str:
    names = list(dict.fromkeys(a["against"] for a in record["arms"].values() if a["against"]))
    return " or ".join(f"`{name}`" for name in names)


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return "n/a"
    star = "*" if found["p_holm"] is not None and found["p_holm"] < 1 - CONFIDENCE else ""
    return f"{points(found['mean'], True)} ({between(found)}){star}"


def chart_of(record: dict[str, Any]) -> str:
    """Differences of the primary metric: a dot per seed, mean and interval per arm. SVG."""
    arms = [
        (name, arm["differences"][record["primary"]])
        for name, arm in record["arms"].items()
        if arm["differences"]
    ]
    # A letter of this font is seldom wider.
    left = max([170, *(20 + 7 * len(name) for name, _ in arms)])
    right, row, top, width = 24, 30, 34, left + 470
    height = top + row * len(arms) + 34
    values = [0.0]
    for _, found in arms:
        ends = [found["low"], found["high"]]
        values += [*found["each"], *[end for end in ends if end is not None]]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.01
    low, high = low - pad, high + pad

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    title = f"{TITLES[record['primary']]}: difference to the control, points"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" role="img"><title>{escape(title)}</title>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="18" fill="#222222">{escape(title)}</text>',
    ]
    base = top + row * len(arms)
    for value in nice_ticks(100 * low, 100 * high):
        x = across(value / 100)
        color = "#555555" if value == 0 else "#dddddd"
        parts.append(
            f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{base}" stroke="{color}"/>'
            f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle" fill="#555555">'
            f"{value:+g}</text>".replace("+0<", "0<")
        )
    for number, (name, found) in enumerate(arms):
        y = top + row * number + row / 2
        parts.append(
            f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end" fill="#222222">'
            f"{escape(name)}</text>"
        )
        parts += [
            f'<circle cx="{across(value):.1f}" cy="{y + 7:.1f}" r="2.5" fill="#9aa5b1"/>'
            for value in found["each"]
        ]
        if found["low"] is not None:
            parts.append(
                f'<line x1="{across(found["low"]):.1f}" y1="{y:.1f}" '
                f'x2="{across(found["high"]):.1f}" y2="{y:.1f}" stroke="#1f5fa8" '
                f'stroke-width="3"/>'
            )
        parts.append(
            f'<circle cx="{across(found["mean"]):.1f}" cy="{y:.1f}" r="5" fill="#1f5fa8">'
            f"<title>{escape(name)}: {points(found['mean'], True)} ({between(found)})</title>"
            "</circle>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def nice_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round values between two others, 0 among them if it lies there."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 10) + 0.0 for number in range(first, last + 1)]
