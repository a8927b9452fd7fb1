"""ModelNet40 and ScanObjectNN as the OpenShape release has them, to shards.

    meta_data/modelnet40/test_split.json     [{name, category}, ...]
    meta_data/modelnet40/test_pc.npy         as many {xyz (P, 3), rgb (P, 3) in 0-255}
    meta_data/scanobjectnn/xyz_label.npy     {xyz (B, P, 3), label (B,), rgb where there is one}
    meta_data/*/cat_name_pt_feat.npy         category -> {open_clip_text_feat (1, 1280)}

There are no pictures of them: rows have a cloud, the category as their one text with its released
embedding, and the split ``test``. (The third set, Objaverse-LVIS, is a list of training objects:
``pipeline.imports.run`` with ``only_lvis``.)
"""

from __future__ import annotations

import json
import mmap
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalog import clean_temporaries, failed_uids
from pipeline.clouds import cloud_points, make_cloud
from pipeline.common import InputError, content_hash
from pipeline.console import ProgressBar, note
from pipeline.imports.layout import META, meta_file
from pipeline.imports.openshape import (
    F32,
    STAGE,
    as_words,
    colors,
    items,
    make_manifest,
    matrix,
    plain,
    unit,
)
from pipeline.imports.run import ImportSummary
from pipeline.imports.unpickle import BadPickleError, UnsafePickleError, load_npy
from pipeline.lock import exclusive
from pipeline.meshes import UP_AXES
from pipeline.scene import MeshError
from pipeline.shards import (
    Failure,
    Manifest,
    Row,
    ShardSet,
    create_or_open,
    mark_unfinished,
    record_contents,
    write_failures,
    write_part,
)

SETS = ("modelnet40", "scanobjectnn")
# In the order of their labels.
SCANOBJECTNN = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed",
    "pillow", "sink", "sofa", "toilet",
)  # fmt: skip
_MAX_STEPS = 20_000_000  # of 2,468 clouds with two arrays each: some 100,000


@dataclass(frozen=True)
class EvalOptions:
    """One import of an evaluation set."""

    root: Path
    out: str
    name: str  # of ``SETS``
    up_axis: str = "+y"
    n_points: int = 10_000
    rows_per_part: int = 256
    max_failures: float = 0.05
    retry_failures: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class _Shape:
    name: str
    category: str
    values: dict[str, Any]  # xyz, rgb or none


def import_eval(options: EvalOptions) -> ImportSummary:
    """Import an evaluation set of the release until every shape is a row or a failure.

    The clouds are read through a memory map. Raises ``InputError`` for bad options, files that
    are missing or not as expected, a set made with other options, or another run at work on it.
    """
    begun = time.perf_counter()
    if options.up_axis not in UP_AXES:
        raise InputError(f"--up-axis {options.up_axis}: use one of {', '.join(UP_AXES)}")
    shapes = _modelnet40(options.root) if options.name == "modelnet40" else _scan(options.root)
    embeds = _category_embeds(options.root, options.name)
    # Scans come with 2,048 points: repeats of them would add nothing.
    sizes = [len(s.values["xyz"]) for s in shapes if isinstance(s.values.get("xyz"), np.ndarray)]
    n_points = min(options.n_points, max(sizes, default=options.n_points))
    recorded = {"kind": options.name, "up_axis": options.up_axis}
    manifest = create_or_open(options.out, make_manifest(recorded, n_points, 0))
    summary = ImportSummary(limit=options.max_failures)
    with exclusive(options.out):
        clean_temporaries(options.out)
        mark_unfinished(options.out)
        _write(shapes, embeds, manifest, options, summary)
        record_contents(options.out)
    summary.seconds = time.perf_counter() - begun
    return summary


def _write(
    shapes: list[_Shape],
    embeds: dict[str, F32],
    manifest: Manifest,
    options: EvalOptions,
    summary: ImportSummary,
) -> None:
    shards = ShardSet.open(options.out)
    done = set(shards.uids())
    if not options.retry_failures:
        failed = failed_uids(options.out)
        done |= failed
        summary.failed_before = len(failed)
    left = [shape for shape in shapes if f"{options.name}/{shape.name}" not in done]
    summary.skipped = len(shapes) - len(left)
    left = left[: options.limit]
    reasons: Counter[str] = Counter()
    with ProgressBar("import", len(left), "objects") as bar:
        for start in range(0, len(left), options.rows_per_part):
            rows, failures = [], []
            for shape in left[start : start + options.rows_per_part]:
                try:
                    rows.append(_row(shape, embeds, manifest, options))
                except MeshError as error:
                    uid = f"{options.name}/{shape.name}"
                    failures.append(
                        Failure(uid, options.name, shape.name, STAGE, error.kind, error.message)
                    )
            if rows:
                write_part(options.out, manifest, rows)
            if failures:
                write_failures(options.out, failures)
            summary.imported += len(rows)
            summary.failed += len(failures)
            reasons.update(f"{item.stage}: {item.error}" for item in failures)
            bar.advance(len(rows) + len(failures), f"{summary.failed} failed")
    summary.reasons = dict(reasons.most_common())


def _row(shape: _Shape, embeds: dict[str, F32], manifest: Manifest, options: EvalOptions) -> Row:
    xyz = matrix(shape.values, "xyz", 3)
    found = shape.values.get("rgb")
    rgb = None if found is None else colors(found, len(xyz))
    turned = xyz.astype(np.float64) @ np.array(UP_AXES[options.up_axis], np.float64).T
    cloud = make_cloud(turned, rgb)
    uid = f"{options.name}/{shape.name}"
    points = cloud_points(cloud, manifest.n_points, int(content_hash(uid)[:12], 16), manifest.n_fps)
    width = manifest.teacher.width
    texts = [as_words(shape.category)] if shape.category in embeds else []
    text_embeds = [unit(embeds[shape.category], width, "the category's feature")] if texts else []
    return Row(
        uid=uid,
        dataset=options.name,
        source=shape.name,
        category=as_words(shape.category),
        split="test",
        xyz=points.xyz,
        rgb=points.rgb,
        has_color=points.has_color,
        image_embeds=np.zeros((0, width), np.float32),
        texts=texts,
        text_sources=["category"] * len(texts),
        text_embeds=np.stack(text_embeds) if texts else np.zeros((0, width), np.float32),
        sha256=content_hash(np.ascontiguousarray(xyz).tobytes()),
        n_faces=0,
        n_vertices=0,
        n_bytes=int(xyz.nbytes) + (0 if found is None else int(found.nbytes)),
    )


def _modelnet40(root: Path) -> list[_Shape]:
    path = meta_file(root, "modelnet40/test_split.json")
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON ({error}); download it again") from error
    clouds_path = meta_file(root, "modelnet40/test_pc.npy")
    clouds = items(_mapped(clouds_path))
    if not isinstance(entries, list) or len(entries) != len(clouds):
        raise InputError(f"{path}: not a list of the {len(clouds)} shapes of {clouds_path.name}")
    shapes = []
    for entry, cloud in zip(entries, clouds, strict=True):
        name, category = (
            (entry.get("name"), entry.get("category")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(name, str) or not isinstance(category, str) or not name:
            raise InputError(f"{path}: a shape has no name or no category; download it again")
        values = plain(cloud)
        shapes.append(_Shape(name, category, values if isinstance(values, dict) else {}))
    _refuse_repeats(path, shapes)
    return shapes


def _scan(root: Path) -> list[_Shape]:
    path = meta_file(root, "scanobjectnn/xyz_label.npy")
    values = _mapped(path)
    values = values if isinstance(values, dict) else {}
    xyz, labels, rgb = (values.get(name) for name in ("xyz", "label", "rgb"))
    clouds, numbers = items(xyz) if _is_list(xyz) else xyz, np.asarray(labels).reshape(-1)
    if clouds is None or labels is None or len(clouds) != len(numbers):
        raise InputError(f"{path}: no xyz with as many labels; download it again")
    if numbers.dtype.kind not in "iu" or not ((numbers >= 0) & (numbers < 15)).all():
        raise InputError(f"{path}: a label is not a number from 0 to 14; download it again")
    shapes = []
    for place, number in enumerate(numbers):
        cloud = {"xyz": clouds[place], **({} if rgb is None else {"rgb": rgb[place]})}
        shapes.append(_Shape(f"{place:05d}", SCANOBJECTNN[int(number)], cloud))
    return shapes


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (
        isinstance(value, np.ndarray) and value.dtype == object
    )


def _refuse_repeats(path: Path, shapes: list[_Shape]) -> None:
    names = Counter(shape.name for shape in shapes)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise InputError(f"{path}: {twice[0]} comes twice; download it again")


def _category_embeds(root: Path, name: str) -> dict[str, F32]:
    path = root / META / name / "cat_name_pt_feat.npy"
    if not path.is_file():
        note(f"{path} not found: objects get no text")
        return {}
    values = _mapped(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a dictionary of categories; download it again")
    return {
        category: plain(entry).get("open_clip_text_feat")
        for category, entry in values.items()
        if isinstance(category, str) and isinstance(plain(entry), dict)
    }


def _mapped(path: Path) -> Any:
    """The value of an .npy file, its arrays views of the mapped file."""
    try:
        with path.open("rb") as stream:
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        return load_npy(data, _MAX_STEPS)
    except (BadPickleError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        kind = "unsafe_pickle: " if isinstance(error, UnsafePickleError) else ""
        raise InputError(f"{path}: {kind}{error}; download it again") from error
