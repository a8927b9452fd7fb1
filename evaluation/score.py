"""How well a mesh shows what a text or a picture asks for: scores of generated shapes.

Two witnesses, which fail in different ways: the student looks at points of the surface, the
teacher at rendered views. For a mesh M, a text T and a reference picture R, with unit embeddings,

    shape_text  = cos(student(points of M), teacher(T))      mean over ``draws`` samplings
    shape_image = cos(student(points of M), teacher(R))      the same
    view_text   = mean over views v of cos(teacher(v), teacher(T)); view_text_best: the largest
    view_image  = mean over views v of cos(teacher(v), teacher(R)); view_image_best: the largest

Cosines are comparable among meshes under one teacher and one checkpoint only, and a text's own
level differs from another's. What can be compared across texts is the *retrieval precision*: the
share of cases in which the asked text scores higher than all distractor texts (R-precision, Park
et al., NeurIPS Datasets and Benchmarks 2021; used for text-to-3D since DreamFusion, 2022). Ties
count as lost, and scores that differ by at most ``trainer.metrics.TIE`` are tied.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.embeddings import ModelInfo
from evaluation.results import plain, proportion
from evaluation.search import load_image
from evaluation.shapes import Caller, Seen, here, look, usable
from evaluation.sources import Advance
from evaluation.student import Student
from evaluation.teachers import QueryTeacher
from pipeline.cameras import Cameras
from pipeline.common import InputError, atomic_path, versions
from pipeline.datasets.tables import delimiter
from pipeline.renderers.base import RenderConfig
from trainer.metrics import TIE

FORMAT = "mrd3d-scores"
VERSION = 1
F32 = NDArray[np.float32]
KNOWN_TEXTS = 1024  # whose embeddings are kept: a server is asked for ever new ones


@dataclass(frozen=True)
class Asked:
    """A mesh, and what it was to show."""

    name: str
    path: Path
    text: str | None = None
    image: Path | None = None


@dataclass(frozen=True)
class Failure:
    """A mesh that could not be scored."""

    place: int  # among all that were asked for
    asked: Asked
    reason: str

    @property
    def line(self) -> dict[str, str | None]:
        """What was asked, in the columns of ``Scores``."""
        image = self.asked.image
        return {
            "mesh": self.asked.name,
            "text": self.asked.text,
            "image": None if image is None else str(image),
        }


@dataclass(frozen=True)
class Scores:
    """Figures of one mesh; None where there was no text, no picture, or no student.

    ``*_sd`` is the standard deviation over the draws of points (n - 1; None for one draw).
    ``*_rank`` is the rank of the asked text among itself and the distractors, 1 the best: of the
    mean over the draws, and of the mean of the views.
    """

    mesh: str
    text: str | None
    image: str | None
    shape_text: float | None = None
    shape_text_sd: float | None = None
    shape_image: float | None = None
    shape_image_sd: float | None = None
    view_text: float | None = None
    view_text_best: float | None = None
    view_image: float | None = None
    view_image_best: float | None = None
    shape_rank: int | None = None
    shape_precision: float | None = None  # share of the draws in which the text came first
    view_rank: int | None = None
    n_distractors: int | None = None


COLUMNS = tuple(field.name for field in fields(Scores))
MEANS = (
    "shape_text", "shape_image", "view_text", "view_text_best", "view_image", "view_image_best",
)  # fmt: skip


class Scorer:
    """Scores meshes one at a time. ``student`` may be None: views alone are then looked at."""

    def __init__(
        self,
        teacher: QueryTeacher,
        student: Student | None,
        cameras: Cameras,
        *,
        distractors: Sequence[str] = (),
        draws: int = 3,
        seed: int = 0,
        up_axis: str = "auto",
        config: RenderConfig | None = None,
        call: Caller = here,
    ) -> None:
        """``draws`` samplings of points with the seeds ``seed``, ``seed + 1``, ...

        ``call`` is how meshes are read: see ``evaluation.isolated``.
        """
        from pipeline.objects import teacher_size

        self._teacher, self._student, self._cameras = teacher, student, cameras
        self._draws, self._seed, self._up_axis = draws, seed, up_axis
        self._config = config or RenderConfig()
        self._call = call
        self._size = teacher_size(teacher.info)
        self._distractors = list(dict.fromkeys(distractors))
        self._compared = [_same(text) for text in self._distractors]
        self._wrong: F32 | None = None  # the distractors' embeddings, once they are needed
        self._text = lru_cache(maxsize=KNOWN_TEXTS)(self._encoded)

    def look(self, path: Path) -> Seen:
        """Read a mesh. It may take long, and may be done in several threads.

        Raises ``InputError`` when the mesh is unusable.
        """
        draws, pool, count = 0, 0, 0
        if self._student is not None:
            draws, pool, count = self._draws, self._student.pool_points, self._student.n_points
        seeds = range(self._seed, self._seed + draws)
        with usable(path, "scored"):
            axis, cameras, config = self._up_axis, self._cameras, self._config
            return self._call(look, path, axis, cameras, config, self._size, seeds, pool, count)

    def __call__(self, asked: Asked, seen: Seen | None = None) -> Scores:
        """The figures of one mesh; ``seen`` is what ``look`` gave, if it was read already.

        Raises ``InputError`` when the mesh, or the picture, is unusable.
        """
        wanted: dict[str, F32] = {}
        if asked.text is not None:
            wanted["text"] = self._text(asked.text)
        if asked.image is not None:
            wanted["image"] = self._image(asked.image)
        if seen is None:
            seen = self.look(asked.path)
        views = np.asarray(self._teacher.encode_images(seen.views), np.float32)  # (V, D)
        shapes = self._shapes(seen)
        found: dict[str, Any] = {}
        for kind, vector in wanted.items():
            by_view = views @ vector
            found[f"view_{kind}"] = float(by_view.mean())
            found[f"view_{kind}_best"] = float(by_view.max())
            if shapes is not None:
                by_draw = shapes @ vector
                found[f"shape_{kind}"] = float(by_draw.mean())
                if len(by_draw) > 1:
                    found[f"shape_{kind}_sd"] = float(by_draw.std(ddof=1))
        if asked.text is not None:
            found |= self._precision(asked.text, wanted["text"], views, shapes)
        image = None if asked.image is None else str(asked.image)
        return Scores(asked.name, asked.text, image, **found)

    def _precision(
        self, text: str, vector: F32, views: F32, shapes: F32 | None
    ) -> dict[str, float | int]:
        wanted = _same(text)
        others = [i for i, other in enumerate(self._compared) if other != wanted]
        if not others:
            return {}
        if self._wrong is None:
            self._wrong = np.asarray(self._teacher.encode_texts(self._distractors), np.float32)
        wrong = self._wrong[others]
        found: dict[str, float | int] = {
            "n_distractors": len(others),
            "view_rank": _rank(views.mean(0), vector, wrong),
        }
        if shapes is not None:
            found["shape_rank"] = _rank(shapes.mean(0), vector, wrong)
            firsts = [_rank(shape, vector, wrong) == 1 for shape in shapes]
            found["shape_precision"] = float(np.mean(firsts))
        return found

    def _shapes(self, seen: Seen) -> F32 | None:
        """(draws, D) of as many samplings of points."""
        if self._student is None:
            return None
        return self._student.embed(
            np.stack([cloud.xyz for cloud in seen.clouds]),
            np.stack([cloud.rgb for cloud in seen.clouds]),
            np.array([cloud.has_color for cloud in seen.clouds]),
        )

    def _encoded(self, text: str) -> F32:
        return np.asarray(self._teacher.encode_texts([text])[0], np.float32)

    def _image(self, path: Path) -> F32:
        picture = load_image(path, self._config.background)
        return np.asarray(self._teacher.encode_images(picture[None])[0], np.float32)


def _same(text: str) -> str:
    """What a text is compared by: a distractor must not be the text itself."""
    return " ".join(text.casefold().split())


def _rank(vector: F32, right: F32, wrong: F32) -> int:
    """Rank of ``right`` (D,) among itself and ``wrong`` (N, D) by inner product with ``vector``."""
    return 1 + int(np.count_nonzero(wrong @ vector >= float(right @ vector) - TIE))


def score_all(
    asked: Sequence[Asked],
    scorer: Callable[[Asked], Scores],
    failures: list[Failure],
    advance: Advance | None = None,
) -> Iterator[Scores]:
    """Scores of every mesh in order; those that failed are added to ``failures``."""
    for place, one in enumerate(asked):
        try:
            yield scorer(one)
        except InputError as error:
            failures.append(Failure(place, one, str(error)))
        if advance:
            advance(1)


def summarise(scores: Sequence[Scores]) -> dict[str, Any]:
    """Means over the meshes with their 95 % t-intervals, and the precisions with Wilson's.

    The intervals are over meshes. A mean over one mesh has none.
    """
    from trainer.statistics import t_interval

    found: dict[str, Any] = {"meshes": len(scores)}
    for name in MEANS:
        values = [float(value) for s in scores if (value := getattr(s, name)) is not None]
        if values:
            interval = t_interval(values)
            found[name] = {
                "mean": interval.mean,
                "low": plain(interval.low),
                "high": plain(interval.high),
                "n": len(values),
            }
    for name in ("shape", "view"):
        ranks = [rank for s in scores if (rank := getattr(s, f"{name}_rank")) is not None]
        if ranks:
            hits = sum(rank == 1 for rank in ranks)
            found[f"{name}_precision"] = {**proportion(hits, len(ranks)), "n": len(ranks)}
    return found


def record(
    scores: Sequence[Scores],
    failures: Sequence[Failure],
    teacher: QueryTeacher,
    model: ModelInfo | None,
    protocol: dict[str, Any],
) -> dict[str, Any]:
    """Everything about a scoring, for JSON."""
    info = teacher.info
    return {
        "format": FORMAT,
        "version": VERSION,
        "teacher": {"model": info.model, "pretrained": info.pretrained, "width": info.width},
        "model": None if model is None else {k: asdict(model)[k] for k in ("name", "hash", "step")},
        "protocol": protocol,
        "summary": {**summarise(scores), "failed": len(failures)},
        "scores": [asdict(one) for one in scores],
        "failures": [{**failure.line, "reason": failure.reason} for failure in failures],
        "versions": versions("mrd3d", "torch", "numpy", "open_clip_torch"),
    }


def write_csv(path: Path, scores: Sequence[Scores], failures: Sequence[Failure]) -> None:
    """One line a mesh, in the columns of ``Scores`` and the order in which they were asked for.

    ``error`` tells why a line has no figures.
    """
    failed = {failure.place: failure for failure in failures}
    scored = iter(scores)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "error"], restval="")
        writer.writeheader()
        for place in range(len(scores) + len(failed)):
            failure = failed.get(place)
            if failure is None:
                values = asdict(next(scored))
            else:
                values = {**failure.line, "error": failure.reason}
            writer.writerow({k: "" if v is None else v for k, v in values.items()})


def read_distractors(path: Path | None) -> list[str]:
    """Texts of a file, one a line; without a file the everyday things of the package.

    Raises ``InputError`` when it cannot be read or holds none.
    """
    if path is None:
        packaged = resources.files("evaluation") / "data" / "distractors.txt"
        return packaged.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--distractors {path}: not a readable text file; write one text per line"
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"--distractors {path}: holds no text; write one per line")
    return found


def read_prompts(path: Path) -> list[Asked]:
    """Meshes and what they were to show, from a CSV with the columns mesh, text, image.

    ``mesh`` and ``image`` are relative to the file. ``text`` (or ``prompt``) or ``image`` may be
    missing or empty, not both. Raises ``InputError`` that names the line. A mesh that is not there
    fails when it is scored.
    """
    remedy = "give a CSV with the columns mesh, text and, optionally, image"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter(file))
            rows, names = list(reader), list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--prompts {path}: not a readable table; {remedy}") from error
    wording = "text" if "text" in names else "prompt"
    if "mesh" not in names or not {wording, "image"} & set(names):
        told = ", ".join(names)[:300] or "none"
        raise InputError(f"--prompts {path}: its columns are {told}; {remedy}")
    found = []
    for line, row in enumerate(rows, 2):
        mesh, text, image = ((row.get(c) or "").strip() for c in ("mesh", wording, "image"))
        if not mesh or not (text or image):
            raise InputError(f"--prompts {path}, line {line}: no mesh, or no prompt; {remedy}")
        found.append(
            Asked(mesh, path.parent / mesh, text or None, path.parent / image if image else None)
        )
    if not found:
        raise InputError(f"--prompts {path}: holds no line; {remedy}")
    return found
