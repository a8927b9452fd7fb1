"""How the rows of a shard set were made, and the check that two sets may be mixed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common import InputError, canonical_json, content_hash
from pipeline.shards.storage import Storage, shown

CONTRACT_VERSION = 2
# Fields that came with a version, and are absent from sets that do without: a set says the lowest
# version that can read it, so older installations read whatever they can.
_SINCE = {"thumbnails": 2, "kept_images": 2}
_SINCE_NO_FINGERPRINT = 2
FORMAT = "mrd3d-shards"
MANIFEST = "manifest.json"
VECTORS = "vectors"  # model of a teacher that is a file of text embeddings by name

# Two runs of one model on different machines agree to this cosine; another model, another
# checkpoint or preprocessing falls below.
FINGERPRINT_COSINE = 0.999

_MAX_VALUE_BYTES = 2**31 - 1  # of one fixed-size binary value in Arrow


@dataclass(frozen=True)
class TeacherInfo:
    """Which image-text model made the embeddings, and how to recognise it again.

    ``fingerprint_image`` and ``fingerprint_text`` are its L2-normalised embeddings, ``width``
    floats each, of one fixed image and one fixed text (see ``pipeline.teacher``). Both are empty
    where they are not known: embeddings that others made and released come without the means to
    compute them. Such a teacher is recognised by its name alone.
    """

    model: str
    pretrained: str
    config: dict[str, Any]
    width: int
    logit_scale: float  # multiplier of cosines, already exponentiated
    fingerprint_image: list[float]
    fingerprint_text: list[float]

    @classmethod
    def from_json(cls, value: Any, name: str, remedy: str) -> TeacherInfo:
        """The teacher that a record of the file ``name`` tells of.

        Raises ``InputError`` that names the field that is missing, of a wrong kind or damaged.
        """
        if not isinstance(value, dict):
            raise InputError(f"{name}: field teacher is not an object; {remedy}")
        _check_fields(cls, value, name, "teacher.", remedy, CONTRACT_VERSION)
        if not 1 <= value["width"] <= _MAX_VALUE_BYTES // 4:
            raise InputError(f"{name}: field teacher.width is {value['width']}; {remedy}")
        teacher = cls(**value)
        teacher.check_values(name, remedy)
        return teacher

    def check_values(self, name: str, remedy: str, *, known: bool = False) -> None:
        """Raise ``InputError`` for values that cannot be; ``known``: also without fingerprints."""
        if not 0 < self.logit_scale < 1e6:
            raise InputError(f"{name}: teacher.logit_scale is not a positive number; {remedy}")
        if not (known or self.fingerprint_image or self.fingerprint_text):
            return
        for part in ("fingerprint_image", "fingerprint_text"):
            values = getattr(self, part)
            try:
                with np.errstate(over="ignore", invalid="ignore"):
                    norm = float(np.linalg.norm(np.asarray(values, np.float64)))
            except OverflowError:  # an integer of hundreds of digits
                norm = math.inf
            if len(values) != self.width or not abs(norm - 1) < 1e-2:
                raise InputError(f"{name}: teacher.{part} is damaged; {remedy}")

    @property
    def label(self) -> str:
        """Short name for tables and messages."""
        return f"{self.model}/{self.pretrained}" if self.pretrained else self.model

    def prompts(self, templates: Sequence[str]) -> list[str]:
        """The templates that names are put into: of a file of vectors they are in these already."""
        return ["{}"] if self.model == VECTORS else list(templates)

    @property
    def has_images(self) -> bool:
        """Whether it embeds pictures; a file of text vectors alone does not."""
        return self.config.get("images", "") is not None

    @property
    def has_fingerprint(self) -> bool:
        """Whether the model can be recognised by what it computes, not by its name only."""
        return bool(self.fingerprint_image and self.fingerprint_text)

    def mismatch(self, other: TeacherInfo) -> str | None:
        """Why embeddings of the two cannot be compared, or None when they can."""
        if self.width != other.width:
            return f"width {self.width} against {other.width}"
        if _quick_gelu(self) != _quick_gelu(other):
            return "one was made with QuickGELU, the other with GELU"
        if not (self.has_fingerprint and other.has_fingerprint):
            if (self.model, self.pretrained) != (other.model, other.pretrained):
                return f"{self.label} against {other.label}, and no fingerprint to compare"
            return None
        for part in ("image", "text"):
            ours = np.asarray(getattr(self, f"fingerprint_{part}"), np.float64)
            theirs = np.asarray(getattr(other, f"fingerprint_{part}"), np.float64)
            cosine = float(ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs)))
            if not cosine >= FINGERPRINT_COSINE:
                return f"{part} fingerprints differ (cosine {cosine:.3f})"
        return None


def _quick_gelu(info: TeacherInfo) -> bool:
    model = info.config.get("model_cfg")
    return bool(model.get("quick_gelu", False)) if isinstance(model, dict) else False


@dataclass(frozen=True)
class Manifest:
    """Everything that the rows of a set have in common."""

    teacher: TeacherInfo
    dataset: dict[str, Any]  # name, options
    n_points: int  # N
    n_fps: int  # how many leading points are in farthest-point order
    n_views: int  # V; 0: no image embeddings, the column is absent
    sampling_seed: int
    renderer: dict[str, Any]  # name, version, settings
    cameras: dict[str, Any]  # name, fov_y_deg, poses
    templates: list[str]  # prompt templates averaged over for name texts
    up_axis: str = "+y"
    versions: dict[str, str] | None = None  # of the libraries; told, never compared
    thumbnails: bool = False  # rows may hold the embedding of a thumbnail beside the views
    kept_images: str | None = None  # format of the views in the side files, None: not kept
    contract_version: int = 0  # 0: the lowest that can read the set

    def __post_init__(self) -> None:
        """Find the version."""
        if self.contract_version == 0:
            used = [since for name, since in _SINCE.items() if getattr(self, name)]
            used += [] if self.teacher.has_fingerprint else [_SINCE_NO_FINGERPRINT]
            object.__setattr__(self, "contract_version", max(used, default=1))

    def without_views(self) -> Manifest:
        """The same of a set without embeddings of pictures."""
        return replace(
            self,
            n_views=0,
            thumbnails=False,
            kept_images=None,
            cameras={"name": "none"},
            contract_version=0,
        )

    @property
    def config_hash(self) -> str:
        """16 hex digits over every field that decides what the rows hold."""
        return content_hash(canonical_json(self._comparable()))[:16]

    def _comparable(self) -> dict[str, Any]:
        value = self._fields()
        value.pop("versions")
        # Compared by cosine, not by digits: they vary in the last bits between machines.
        value["teacher"].pop("fingerprint_image")
        value["teacher"].pop("fingerprint_text")
        return {key: _rounded(item) for key, item in value.items()}

    def _fields(self) -> dict[str, Any]:
        """All fields but those newer than the set's version."""
        value = asdict(self)
        return {k: v for k, v in value.items() if _SINCE.get(k, 1) <= self.contract_version}

    def difference(self, other: Manifest) -> str | None:
        """First field in which the two differ, with both values, or None."""
        found = _first_difference(self._comparable(), other._comparable(), "")
        if found:
            return found
        reason = self.teacher.mismatch(other.teacher)
        return f"teacher: {reason}" if reason else None

    def to_json(self) -> str:
        """Text of ``manifest.json``."""
        value = {"format": FORMAT, **self._fields(), "config_hash": self.config_hash}
        return json.dumps(value, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: bytes | str, name: str) -> Manifest:
        """Parse and validate. ``name`` is the file as shown in messages.

        Raises ``InputError`` for anything that is not a manifest of this or an older contract.
        """
        remedy = "make the set again with `pipeline embed`"
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}: not JSON ({error}); {remedy}") from error
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise InputError(f"{name}: not the manifest of a shard set; {remedy}")
        version = value.get("contract_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise InputError(f"{name}: contract_version {version!r} is not a number; {remedy}")
        if version > CONTRACT_VERSION:
            raise InputError(
                f"{name}: contract version {version} is newer than {CONTRACT_VERSION}, "
                "the newest that this installation reads; upgrade mrd3d"
            )
        told = value.get("config_hash")
        value = {k: v for k, v in value.items() if k not in ("format", "config_hash")}
        _check_fields(cls, value, name, "", remedy, version)
        _check_fields(TeacherInfo, value["teacher"], name, "teacher.", remedy, version)
        manifest = cls(**{**value, "teacher": TeacherInfo(**value["teacher"])})
        manifest._check_values(name, remedy)
        try:
            found = manifest.config_hash
        except (RecursionError, ValueError) as error:  # nested deeply; text that is not Unicode
            raise InputError(f"{name}: damaged ({type(error).__name__}); {remedy}") from error
        if told != found:
            raise InputError(
                f"{name}: config_hash is not that of the fields, so the file was edited or "
                f"damaged; put the original back or {remedy}"
            )
        return manifest

    def _check_values(self, name: str, remedy: str) -> None:
        positive = {"n_points": self.n_points, "teacher.width": self.teacher.width}
        for key, number in positive.items():
            if number < 1:
                raise InputError(f"{name}: {key} is {number}, must be at least 1; {remedy}")
        if not 0 <= self.n_fps <= self.n_points:
            raise InputError(f"{name}: n_fps {self.n_fps} is not in 0..n_points; {remedy}")
        if self.n_views < 0:
            raise InputError(f"{name}: n_views {self.n_views} is negative; {remedy}")
        if max(6 * self.n_points, 2 * max(1, self.n_views) * self.teacher.width) > _MAX_VALUE_BYTES:
            raise InputError(
                f"{name}: {self.n_points} points or {self.n_views} views of width "
                f"{self.teacher.width} do not fit into a column; {remedy}"
            )
        if self.up_axis != "+y":
            raise InputError(f"{name}: up_axis {self.up_axis!r}, shards are always +y; {remedy}")
        known = self.contract_version < _SINCE_NO_FINGERPRINT
        self.teacher.check_values(name, remedy, known=known)


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float),
    "dict[str, Any]": (dict,),
    "dict[str, str] | None": (dict, type(None)),
    "list[str]": (list,),
    "list[float]": (list,),
    "TeacherInfo": (dict,),
}


def _check_fields(
    owner: type, value: Any, name: str, prefix: str, remedy: str, version: int
) -> None:
    known = {f.name: f for f in fields(owner) if _SINCE.get(f.name, 1) <= version}
    for key in value:
        if key not in known:
            raise InputError(f"{name}: unknown field {prefix}{key}; {remedy}")
    for key, field in known.items():
        if key not in value:
            raise InputError(f"{name}: field {prefix}{key} is missing; {remedy}")
        expected = _TYPES[str(field.type)]
        item = value[key]
        bad = not isinstance(item, expected) or (isinstance(item, bool) and bool not in expected)
        if not bad and field.type == "list[float]":
            bad = any(isinstance(x, bool) or not isinstance(x, int | float) for x in item)
        if not bad and field.type == "list[str]":
            bad = any(not isinstance(x, str) for x in item)
        if bad:
            raise InputError(f"{name}: field {prefix}{key} is not a {field.type}; {remedy}")


def _rounded(value: Any) -> Any:
    """The value with floats of 9 digits: the last bits of a computed one vary between machines."""
    if isinstance(value, float):
        return float(f"{value:.9g}") + 0.0  # + 0.0: no negative zero
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _first_difference(ours: Any, theirs: Any, path: str) -> str | None:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(set(ours) | set(theirs)):
            where = f"{path}.{key}" if path else str(key)
            if key not in ours or key not in theirs:
                return f"{where}: {'missing' if key not in ours else 'extra'}"
            found = _first_difference(ours[key], theirs[key], where)
            if found:
                return found
        return None
    if canonical_json(ours) == canonical_json(theirs):
        return None
    return f"{path}: {_short(ours)} against {_short(theirs)}"


def _short(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_manifest(root: str | Path) -> Manifest:
    """Manifest of the shard set at ``root``. Raises ``InputError`` when there is none."""
    storage = Storage.at(root)
    if not storage.exists(MANIFEST):
        raise InputError(
            f"{shown(root)}: no {MANIFEST}, so this is not a shard set; "
            "give the folder that `pipeline embed --out` wrote"
        )
    return Manifest.from_json(storage.read(MANIFEST), storage.show(MANIFEST))


def unstarted(roots: Iterable[str]) -> list[str]:
    """Those of the shard sets that have not been started."""
    return [root for root in roots if not Storage.at(root).exists(MANIFEST)]


@contextmanager
def taken_back(roots: Iterable[str]) -> Iterator[None]:
    """Where the block fails, unstart the sets that hold nothing.

    An empty set would refuse the next run for the options that were wrong in this one. To be used
    under the sets' locks, while nobody writes to them.
    """
    try:
        yield
    except BaseException:
        for root in roots:
            storage = Storage.at(root)
            if not storage.list("part-", ".parquet") and not storage.list("failures-", ".parquet"):
                storage.delete(MANIFEST)
        raise


# What decides a field on the command line of `pipeline embed`.
_OPTIONS = {
    "teacher": "--teacher",
    "dataset": "--dataset and its options",
    "n_points": "--points",
    "n_fps": "--points",
    "n_views": "--views",
    "renderer": "--renderer, --image-size, --background and --light",
    "cameras": "--cameras, --views and --fov",
    "thumbnails": "--thumbnail",
    "kept_images": "--keep-images",
}


def create_or_open(root: str | Path, manifest: Manifest) -> Manifest:
    """Start a shard set at ``root``, or check that an existing one was made the same way.

    Returns the manifest that counts: the one on disk when there is one. Raises ``InputError``
    that names the first field that differs.
    """
    storage = Storage.at(root)
    if storage.exists(MANIFEST):
        existing = Manifest.from_json(storage.read(MANIFEST), storage.show(MANIFEST))
        found = manifest.difference(existing)
        if found:
            options = _OPTIONS.get(found.partition(":")[0].partition(".")[0], "the same options")
            remedy = f"give {options} as before, or another --out"
            if found.startswith("dataset.options.metadata"):
                remedy = (
                    "metadata.csv, or the table given with --metadata, has changed since; put it "
                    "back as it was, or embed everything into another --out"
                )
            raise InputError(
                f"{storage.show(MANIFEST)}: this run differs from the set in {found}; {remedy}"
            )
        return existing
    if storage.list("part-", ".parquet"):
        raise InputError(
            f"{shown(root)}: holds parts but no {MANIFEST}; use an empty folder for --out"
        )
    storage.write(MANIFEST, manifest.to_json().encode())
    return manifest
