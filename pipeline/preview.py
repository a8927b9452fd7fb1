"""Contact sheets: many small pictures with labels in one image file."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.cameras import Cameras, ring
from pipeline.common import InputError, atomic_path
from pipeline.datasets.base import Dataset
from pipeline.renderers import get_renderer
from pipeline.renderers.base import RenderConfig, Renderer
from pipeline.scene import Mesh, MeshError

LABEL_FRACTION = 0.1  # height of the text relative to a tile's width
MIN_FONT, MAX_FONT = 9, 20  # pixels
GAP = 4  # pixels between tiles
INK, PAPER = (40, 40, 40), (255, 255, 255)
SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
QUALITIES = (92, 86, 80, 72, 64, 55, 45, 35)
MIN_SHRINK = 0.2
DEFAULT_COLUMNS, MAX_COLUMNS = 8, 16  # pictures in a line where nothing else is asked for


def contact_sheet(
    images: NDArray[np.uint8],
    labels: Sequence[str],
    columns: int,
    path: Path,
    max_bytes: int | None = None,
) -> None:
    """Write ``images`` (K, H, W, 3) uint8 sRGB as a grid with a label under each tile.

    The suffix of ``path`` picks JPEG, PNG or WebP. With ``max_bytes`` the file is kept at or below
    that size: first by a lower quality (JPEG, WebP) or 256 colours (PNG), then by a smaller sheet.
    The file appears under its name only when complete.

    Raises ``InputError`` for another suffix, no images, labels that are not one per image, or a
    limit that cannot be met.
    """
    kind = check_suffix(path)
    if images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise InputError(f"{path}: nothing to draw; give at least one picture")
    if len(labels) != len(images):
        raise InputError(f"{path}: {len(labels)} labels for {len(images)} pictures; give one each")
    if columns < 1:
        raise InputError(f"columns is {columns}; give 1 or more")
    sheet = _compose(images, labels, min(columns, len(images)))
    with atomic_path(path) as temporary:
        for candidate, options in _attempts(sheet, kind):
            candidate.save(temporary, format=kind, **options)
            if max_bytes is None or temporary.stat().st_size <= max_bytes:
                return
        raise InputError(
            f"{path}: {len(images)} pictures do not fit into {max_bytes} bytes; "
            "give fewer or a larger limit"
        )


def check_suffix(path: Path) -> str:
    """The image format that the suffix of ``path`` names. Raises ``InputError`` for another one."""
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: unknown image suffix; use .jpg, .png or .webp")
    return kind


def render_preview(
    items: Iterable[tuple[str, Mesh]],
    renderer: Renderer,
    cameras: Cameras,
    config: RenderConfig,
    path: Path,
    *,
    views: Sequence[int] = (0,),
    thumbnail: bool = False,
    columns: int = 8,
    max_tiles: int = 64,
    max_bytes: int | None = None,
) -> int:
    """Render (label, normalised mesh) pairs and write a contact sheet; returns the tiles drawn.

    Each object takes one tile per index in ``views``, and one more with ``thumbnail`` (see
    ``cameras.thumbnail_pose``); the label stands under the first. The iterable is read only as far
    as ``max_tiles`` allows.

    Raises ``InputError`` for a view that the cameras do not have, or when ``items`` is empty.
    """
    if not (views or thumbnail) or any(not 0 <= view < len(cameras) for view in views):
        raise InputError(f"views {list(views)}: the cameras have 0 to {len(cameras) - 1}")
    chosen = replace(cameras, poses=cameras.poses[list(views)])
    per_object = len(views) + thumbnail
    tiles: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for label, mesh in itertools.islice(items, max(1, max_tiles // per_object)):
        placed = chosen.with_thumbnail(mesh) if thumbnail else chosen
        tiles.extend(renderer.render(mesh, placed, config)[..., :3])
        labels += [label] + [""] * (per_object - 1)
    if not tiles:
        raise InputError(f"{path}: no object could be drawn; check the data set")
    contact_sheet(np.stack(tiles), labels, columns, path, max_bytes)
    return len(tiles)


def preview_dataset(
    dataset: Dataset,
    path: Path,
    *,
    tiles: int = 48,
    columns: int | None = None,
    cameras: Cameras | None = None,
    config: RenderConfig | None = None,
    view: str = "0",
    renderer: str = "raster",
    max_bytes: int | None = None,
) -> tuple[int, list[tuple[str, str]]]:
    """Draw objects spread evenly over a dataset in ``tiles`` pictures at most.

    ``view`` says which views of ``cameras`` (the ring if None) each object is drawn in: see
    ``parse_views``. Without ``columns`` a line holds one object, or eight where each takes one
    tile. Returns how many tiles were drawn, and the uid and reason of each
    object that could not be.

    Raises ``InputError`` when none can be drawn, for an unknown view, and as ``dataset.records``
    does.
    """
    cameras = ring(12) if cameras is None else cameras
    views, thumbnail = parse_views(view, len(cameras))
    per_object = len(views) + thumbnail
    objects = max(1, tiles // per_object)
    total = dataset.count()
    step = max(1, (total or objects) // objects)
    failed: list[tuple[str, str]] = []

    def items() -> Iterator[tuple[str, Mesh]]:
        for record in itertools.islice(dataset.records(), 0, None, step):
            try:
                label = record.texts[0] if record.texts else record.uid
                yield label, dataset.load(record).mesh
            except MeshError as error:
                failed.append((record.uid, f"{error.kind}: {error.message}"))

    drawn = render_preview(
        items(),
        get_renderer(renderer),
        cameras,
        RenderConfig(image_size=160) if config is None else config,
        path,
        views=views,
        thumbnail=thumbnail,
        columns=columns or _columns(per_object),
        max_tiles=tiles,
        max_bytes=max_bytes,
    )
    return drawn, failed


def _columns(per_object: int) -> int:
    """Pictures per line, so that where possible every object begins a line."""
    if per_object == 1:
        return DEFAULT_COLUMNS
    return next((n for n in range(MAX_COLUMNS, 1, -1) if per_object % n == 0), MAX_COLUMNS)


def parse_views(text: str, n_views: int) -> tuple[list[int], bool]:
    """Indices of views that ``all``, ``thumbnail`` or ``0,3,6`` name, and whether the thumbnail is.

    ``all,thumbnail`` are all views and then the thumbnail. Raises ``InputError`` for anything else.
    """
    views: list[int] = []
    thumbnail = False
    for word in text.split(","):
        word = word.strip().lower()
        if word == "all":
            views += range(n_views)
        elif word == "thumbnail":
            thumbnail = True
        elif word.isdecimal() and int(word) < n_views:
            views.append(int(word))
        else:
            raise InputError(
                f"--view {text}: not a view; use all, thumbnail or numbers of 0 to {n_views - 1}"
            )
    return views, thumbnail


def _compose(images: NDArray[np.uint8], labels: Sequence[str], columns: int) -> Image.Image:
    """The sheet at full size."""
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    height_px = min(MAX_FONT, max(MIN_FONT, int(width * LABEL_FRACTION)))
    font = ImageFont.load_default(size=height_px)
    band = int(1.5 * height_px) if any(labels) else 0
    cell_w, cell_h = width + GAP, height + band + GAP
    sheet = Image.new("RGB", (columns * cell_w + GAP, rows * cell_h + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = GAP + i % columns * cell_w, GAP + i // columns * cell_h
        sheet.paste(Image.fromarray(np.ascontiguousarray(image)), (x, y))
        text = _shortened(draw, label, font, width)
        draw.text((x + width / 2, y + height + band / 2), text, fill=INK, font=font, anchor="mm")
    return sheet


def _shortened(draw: ImageDraw.ImageDraw, label: str, font: Any, width: int) -> str:
    """The label on one line of at most ``width`` pixels.

    Cut in its middle: names of one folder often begin alike. Accents are left out, which the font
    that Pillow comes with would draw as boxes.
    """
    text = " ".join(label.split())
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = plain if plain.strip() else text
    shown, kept = text, len(text)
    while kept and draw.textlength(shown, font=font) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2].rstrip()}...{text[len(text) - kept // 2 :].lstrip()}"
    return shown


def _attempts(sheet: Image.Image, kind: str) -> Iterable[tuple[Image.Image, dict[str, Any]]]:
    """What to save, from the best to the smallest."""
    shrink = 1.0
    while shrink >= MIN_SHRINK:
        size = (max(1, round(sheet.width * shrink)), max(1, round(sheet.height * shrink)))
        scaled = sheet if shrink == 1 else sheet.resize(size, Image.Resampling.LANCZOS)
        if kind == "PNG":
            yield scaled, {"optimize": True}
            yield scaled.quantize(256), {"optimize": True}
        else:
            for quality in QUALITIES:
                extra = {"optimize": True} if kind == "JPEG" else {"method": 4}
                yield scaled, {"quality": quality, **extra}
        shrink *= 0.8
