"""Objects of the OpenShape release as rows: its clouds, texts and embeddings in our contract.

What a file holds, found in the code that reads it (OpenShape, ``src/data.py``) and in its README:
``xyz`` (P, 3), ``rgb`` (P, 3) in [0, 1], ``image_feat`` (12, 1280), ``thumbnail_feat`` (Objaverse
only), ``text`` with ``text_feat``, ``blip_caption``, ``msft_caption`` and ``retrieval_text`` with
features of the same name. A text's feature is a dictionary of ``original`` and ``prompt_avg``, the
mean over the field's 64 templates. Features are not normalised.

What becomes of it:

- Frame: stored clouds are +y up, as the assets are (the reader's own switch for them is ``y_up``;
  what it does then, exchanging y and z, is a reflection that takes them to its +z frame, and is
  not done here). ``up_axis`` says otherwise; the turn is a proper rotation. Centred and scaled as
  all clouds are (``pipeline.clouds``), in farthest-point order.
- Texts: raw ones (source ``name``) and captions (``caption``: BLIP, then Azure) with
  ``prompt_avg``, retrieved ones (``retrieved``) with ``original``, as the release is trained with.
- A feature that is zero or not finite fails the object: it would be noise with a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.clouds import cloud_points, make_cloud
from pipeline.common import content_hash, versions
from pipeline.imports.exported import own_row
from pipeline.imports.layout import OBJAVERSE
from pipeline.imports.unpickle import BadPickleError, UnsafePickleError, load_npy
from pipeline.meshes import UP_AXES
from pipeline.scene import MeshError
from pipeline.shards import Manifest, Row, TeacherInfo
from pipeline.templates import field_templates

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

STAGE = "import"
N_VIEWS = 12
WIDTH = 1280
_LEAST_NORM = 1e-6
_TEXT_VERSIONS = {"name": "prompt_avg", "caption": "prompt_avg", "retrieved": "original"}


@dataclass(frozen=True)
class ObjectRules:
    """How objects become rows. Sent to every worker once; 46,000 and 240,000 entries at most."""

    manifest: Manifest
    up_axis: str
    categories: dict[str, str]  # of Objaverse ids: the LVIS name as words
    without_raw_text: frozenset[str]  # Objaverse ids
    holdout_lvis: bool
    only_lvis: bool
    category_embeds: dict[str, F32] | None = None  # of LVIS names; None: not a text
    as_exported: bool = False  # files of ``pipeline export``: exactly the rows that they were

    def wanted(self, place: tuple[str, ...], listed: frozenset[tuple[str, ...]] | None) -> bool:
        """Whether an object is to be imported; ``listed`` None: no list counts."""
        lvis = place[0] == OBJAVERSE and place[-1] in self.categories
        if self.only_lvis:
            return lvis
        return listed is None or place in listed or (self.holdout_lvis and lvis)

    def split(self, place: tuple[str, ...]) -> str:
        """``test`` for LVIS objects where they are held out or all there is, else ``train``."""
        lvis = place[0] == OBJAVERSE and place[-1] in self.categories
        return "test" if lvis and (self.holdout_lvis or self.only_lvis) else "train"


def released_teacher() -> TeacherInfo:
    """The teacher of the release: OpenCLIP ViT-bigG-14, known by name only.

    Its fingerprint could be computed by whoever has the weights; the release holds none.
    """
    import open_clip

    model, tag = "ViT-bigG-14", "laion2b_s39b_b160k"
    config = {**(open_clip.get_model_config(model) or {}), "quick_gelu": False}
    # CLIP training clamps the multiplier at 100, where large models end.
    return TeacherInfo(model, tag, {"model_cfg": config}, WIDTH, 100.0, [], [])


def make_manifest(options: dict[str, Any], n_points: int, n_views: int) -> Manifest:
    """The manifest of a set that is imported with ``options`` (told, and compared on resuming)."""
    return Manifest(
        teacher=released_teacher(),
        dataset={"name": "openshape", "options": options},
        n_points=n_points,
        n_fps=min(2048, n_points),
        n_views=n_views,
        sampling_seed=0,
        renderer={"name": "openshape", "version": "release", "settings": {"image_size": 512}},
        cameras={"name": "openshape", "views": n_views},
        templates=list(field_templates()),
        versions=versions("mrd3d", "numpy", "numba", "pyarrow"),
        thumbnails=n_views > 0,
    )


def uid_of(place: tuple[str, ...]) -> str:
    """``objaverse/<id>``, ``shapenet/<synset>/<id>``, ``abo/<id>``, ``3d-future/<id>``.

    Shards of Objaverse are left out: its ids are unique. Those of ShapeNet are not.
    """
    dataset = place[0].lower()
    return f"{dataset}/{place[-1]}" if place[0] == OBJAVERSE else "/".join((dataset, *place[1:]))


def source_of(place: tuple[str, ...]) -> str:
    """Path of the object in the release, from the dataset on."""
    return "/".join(place) + ".npy"


def make_row(data: bytes, place: tuple[str, ...], rules: ObjectRules) -> Row:
    """The row of one file. Raises ``MeshError`` that says what is wrong with it."""
    try:
        values = load_npy(data)
    except UnsafePickleError as error:
        raise MeshError("unsafe_pickle", error.name, stage=STAGE) from error
    except BadPickleError as error:
        raise MeshError("damaged", str(error), stage=STAGE) from error
    if not isinstance(values, dict):
        raise MeshError("wrong_shape", "not a dictionary, as the release has it", stage=STAGE)
    manifest = rules.manifest
    own = own_row(values) if rules.as_exported else None
    exact = own is not None
    xyz, rgb, has_color = _points(values, place, rules) if own is None else own.points(values)
    texts = list(_texts(values, place, rules)) if own is None else own.texts(values)
    category = rules.categories.get(place[-1]) if place[0] == OBJAVERSE else None
    if category is not None and rules.category_embeds is not None:
        texts.insert(0, (category, "category", rules.category_embeds[category]))
    width = manifest.teacher.width
    embeds = [
        unit(embed, width, f"the feature of a {source} text", exact=exact)
        for _, source, embed in texts
    ]
    row = Row(
        uid=uid_of(place),
        dataset=place[0].lower(),
        source=source_of(place),
        category=category,
        split=rules.split(place),
        xyz=xyz,
        rgb=rgb,
        has_color=has_color,
        image_embeds=_views(values, manifest, exact),
        texts=[text for text, _, _ in texts],
        text_sources=[source for _, source, _ in texts],
        text_embeds=np.stack(embeds) if embeds else np.zeros((0, width), np.float32),
        sha256=hashlib.sha256(data).hexdigest(),
        n_faces=0,
        n_vertices=0,
        n_bytes=len(data),
        thumbnail_embed=_thumbnail(values, manifest, exact),
    )
    return row if own is None else replace(row, **own.columns)


def unit(value: Any, width: int, what: str, *, exact: bool = False) -> F32:
    """A released feature, (D,) or (1, D), as a unit vector; with ``exact`` it is one already.

    Raises ``MeshError``.
    """
    array = np.asarray(value) if isinstance(value, np.ndarray) else np.zeros(0)
    if array.dtype.kind != "f" or array.size != width:
        found = f"{array.dtype} {array.shape}" if array.size else "missing"
        raise MeshError("wrong_shape", f"{what} is {found}, expected {width} numbers", stage=STAGE)
    vector = array.reshape(-1).astype(np.float32)
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm < _LEAST_NORM:
        kind = "zero" if norm < _LEAST_NORM else "not finite"
        raise MeshError("bad_embedding", f"{what} is {kind}", stage=STAGE)
    return vector if exact else vector / np.float32(norm)


def _points(
    values: dict[Any, Any], place: tuple[str, ...], rules: ObjectRules
) -> tuple[F32, U8, bool]:
    xyz = matrix(values, "xyz", 3)
    rgb = colors(values["rgb"], len(xyz)) if values.get("rgb") is not None else None
    turned = xyz.astype(np.float64) @ np.array(UP_AXES[rules.up_axis], np.float64).T
    cloud = make_cloud(turned, rgb)
    seed = int(content_hash("/".join(place))[:12], 16)
    points = cloud_points(cloud, rules.manifest.n_points, seed, rules.manifest.n_fps)
    return points.xyz, points.rgb, points.has_color


def matrix(values: dict[Any, Any], name: str, columns: int) -> NDArray[Any]:
    """A float array (P, columns) of a file. Raises ``MeshError``."""
    array = values.get(name)
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise MeshError("wrong_shape", f"{name} is missing or no floats", stage=STAGE)
    if array.ndim != 2 or array.shape[1] != columns:
        raise MeshError(
            "wrong_shape", f"{name} is {array.shape}, expected (points, {columns})", stage=STAGE
        )
    return array


def colors(rgb: Any, count: int) -> U8:
    """sRGB (P, 3) in 0-255 of a cloud's colours in 0-1, or in 0-255. Raises ``MeshError``."""
    if not isinstance(rgb, np.ndarray) or rgb.shape != (count, 3) or rgb.dtype.kind not in "fiu":
        raise MeshError("wrong_shape", "rgb is not (points, 3) numbers", stage=STAGE)
    values = rgb.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-3 and high <= 255.5):  # NaN is neither
        raise MeshError("bad_color", f"rgb reaches from {low:.3g} to {high:.3g}", stage=STAGE)
    # Colours in 0-255 are whole numbers: one that is 1 at most in them would be all black.
    scale = 1.0 if high > 1.001 or rgb.dtype.kind in "iu" else 255.0
    scaled: U8 = np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8)
    return scaled


def _views(values: dict[Any, Any], manifest: Manifest, exact: bool) -> F32:
    width, n_views = manifest.teacher.width, manifest.n_views
    if not n_views:
        return np.zeros((0, width), np.float32)
    found = values.get("image_feat")
    shape = found.shape if isinstance(found, np.ndarray) else "missing"
    if not isinstance(found, np.ndarray) or found.size != n_views * width:
        raise MeshError(
            "wrong_shape", f"image_feat is {shape}, expected {(n_views, width)}", stage=STAGE
        )
    views = found.reshape(n_views, width)
    return np.stack([unit(view, width, "image_feat", exact=exact) for view in views])


def _thumbnail(values: dict[Any, Any], manifest: Manifest, exact: bool) -> F32 | None:
    found = plain(values.get("thumbnail_feat"))
    if (
        not manifest.thumbnails
        or found is None
        or (isinstance(found, np.ndarray | list | tuple | str) and not len(found))
    ):
        return None
    return unit(found, manifest.teacher.width, "thumbnail_feat", exact=exact)


def _texts(
    values: dict[Any, Any], place: tuple[str, ...], rules: ObjectRules
) -> Iterator[tuple[str, str, Any]]:
    """Text, source and released feature of every text that is not blank."""
    raw = not (place[0] == OBJAVERSE and place[-1] in rules.without_raw_text)
    keys = [("text", "name")] if raw else []
    keys += [("blip_caption", "caption"), ("msft_caption", "caption")]
    for key, source in [*keys, ("retrieval_text", "retrieved")]:
        texts, features = items(values.get(key)), items(values.get(f"{key}_feat"))
        if not any(isinstance(text, str) and text.strip() for text in texts):
            continue
        if len(features) != len(texts):
            raise MeshError(
                "wrong_shape", f"{key} has {len(texts)} texts, {len(features)} features",
                stage=STAGE,
            )  # fmt: skip
        for text, feature in zip(texts, features, strict=True):
            if isinstance(text, str) and text.strip():
                version = _TEXT_VERSIONS[source]
                found = plain(feature)
                embed = found.get(version) if isinstance(found, dict) else None
                yield " ".join(text.split()), source, plain(embed)


def plain(value: Any) -> Any:
    """The object in a 0-d object array, which numpy makes of dictionaries; else the value."""
    if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 0:
        return value.item()
    return value


def items(value: Any) -> list[Any]:
    """A value, several values, or none, as a list."""
    value = plain(value)
    if value is None:
        return []
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return list(value.reshape(-1))
    return list(value) if isinstance(value, list | tuple) else [value]


def as_words(category: str) -> str:
    """``bow_(weapon)`` as ``bow (weapon)``, as the other sources spell it."""
    return " ".join(category.replace("_", " ").split())
