"""Dataset ``abo``: the 3D models of Amazon Berkeley Objects with the texts of their listings.

``3dmodels/metadata/3dmodels.csv.gz`` (``3dmodel_id,path,...``) lists the models, whose files lie in
``3dmodels/original/<path>`` (glTF 2.0, +y up, +z to the front). ``listings/metadata/
listings_<0-f>.json.gz`` hold one JSON object per product and line; texts are lists of
``{"language_tag", "value"}``. Of the 147,702 products 7,953 have a model.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.datasets.layouts import (
    LayoutDataset,
    Texts,
    as_words,
    csv_rows,
    lines_of,
    make_record,
)
from pipeline.datasets.sources import Source, SourceOptions

_MODELS = "3dmodels/metadata/3dmodels.csv.gz"
_LISTINGS = "listings/metadata"
_FILES = "3dmodels/original"
# English by preference; tags beyond these come last, in their order.
_ENGLISH = ("en_US", "en_GB", "en_CA", "en_AU", "en_IN", "en_SG", "en_AE")


@dataclass(frozen=True)
class AboDataset(LayoutDataset):
    """Models in the order of their table. ``uid`` is ``abo/<3dmodel_id>``.

    The category is the product type. Texts, English only: the item name, the bullet points, the
    keywords, the product type, and one of product type, colour and material. Where several listings
    share a model, the one with the best English name speaks for it, and of those the one whose item
    is the model's own. The listings stream; what is held is the texts of products with a model.
    """

    NAME: ClassVar[str] = "abo"
    EXPECTED: ClassVar[str] = (
        f"{_MODELS}, {_FILES}/ and {_LISTINGS}/listings_*.json.gz, as unpacked"
    )
    GET: ClassVar[str] = (
        "download abo-3dmodels.tar and abo-listings.tar from "
        "https://amazon-berkeley-objects.s3.amazonaws.com/archives/, unpack both into one folder "
        "and give it as --root"
    )

    def count(self) -> int:
        """How many models the table names; the listings are not read."""
        self._check()
        if not (self.root / _MODELS).is_file():
            raise self._wrong_layout(self.root)
        return sum(1 for _ in self._models())

    def _objects(self) -> Iterator[Record]:
        if not (self.root / _MODELS).is_file() or not (self.root / _FILES).is_dir():
            raise self._wrong_layout(self.root)
        listings = self._best_listings({model for model, _ in self._models()})
        for model, path in self._models():
            folder, _, file = f"{_FILES}/{path}".rpartition("/")
            listing = listings.get(model)
            yield make_record(
                self.NAME,
                model,
                folder,
                file,
                category=listing[0] if listing else None,
                texts=listing[1] if listing else (),
            )

    def _tables(self) -> list[Path]:
        return [path for path in (self.root / _MODELS, *self._listing_files()) if path.is_file()]

    def _listing_files(self) -> list[Path]:
        return sorted((self.root / _LISTINGS).glob("listings_*.json.gz"))

    def _models(self) -> Iterator[tuple[str, str]]:
        """(3dmodel_id, path) of every model, each once, in the order of the table."""
        rows = csv_rows(self.root / _MODELS, gzip.open, ("3dmodel_id", "path"), self.GET)
        seen = set()
        for row in rows:
            model, file = row["3dmodel_id"], row["path"]
            if model and file and model not in seen:
                seen.add(model)
                yield model, file

    def _best_listings(self, models: set[str]) -> dict[str, tuple[str, Texts]]:
        """(category, texts) of the listing that speaks for each model."""
        files = self._listing_files()
        if not files:
            raise self._wrong_layout(self.root)
        best: dict[str, tuple[tuple[int, bool], str, Texts]] = {}
        for path in files:
            for line in lines_of(path, gzip.open, self.GET):
                if '"3dmodel_id"' not in line:  # most products; parsing them all takes long
                    continue
                try:
                    product: Any = json.loads(line)
                    model = str(product["3dmodel_id"])
                    if model not in models:
                        continue
                    rank = (_english_rank(product), product.get("item_id") != model)
                    if model not in best or rank < best[model][0]:
                        best[model] = (rank, *_category_and_texts(product))
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                    raise InputError(
                        f"{path}: a line is not a product ({error}); {self.GET}"
                    ) from None
        return {model: (category, texts) for model, (_, category, texts) in best.items()}


def _english(entries: Any) -> list[str]:
    """The distinct English values of a field, all of the one variety of English preferred."""
    by_tag: dict[str, list[str]] = {}
    for entry in entries or ():
        tag, value = str(entry.get("language_tag") or ""), str(entry.get("value") or "").strip()
        if tag.startswith("en") and value:
            by_tag.setdefault(tag, []).append(value)
    if not by_tag:
        return []
    return list(dict.fromkeys(by_tag[min(by_tag, key=_preference)]))


def _preference(tag: str) -> tuple[int, str]:
    return (_ENGLISH.index(tag) if tag in _ENGLISH else len(_ENGLISH), tag)


def _english_rank(product: Any) -> int:
    """How good the English name of a product is: its place in ``_ENGLISH``; last: it has none."""
    tags = [str(entry.get("language_tag") or "") for entry in product.get("item_name") or ()]
    ranks = [_preference(tag)[0] for tag in tags if tag.startswith("en")]
    return min(ranks, default=len(_ENGLISH) + 1)


def _category_and_texts(product: Any) -> tuple[str, Texts]:
    kind = product.get("product_type")
    if isinstance(kind, list):  # [{"value": "CHAIR"}] in the files, a plain text in their README
        kind = kind[0].get("value") if kind else None
    category = as_words(kind)
    texts: Texts = [(name, "title") for name in _english(product.get("item_name"))[:1]]
    texts += [(point, "description") for point in _english(product.get("bullet_point"))]
    texts.append((", ".join(_english(product.get("item_keywords"))), "tags"))
    texts.append((category, "category"))
    color, material = (_english(product.get(name))[:1] for name in ("color", "material"))
    if color or material:
        said = [word for word in (category, *color, *material) if word]
        texts.append((", ".join(said), "attributes"))
    return category, texts


def _build(options: SourceOptions) -> AboDataset:
    assert options.root is not None
    return AboDataset(options.root, up_axis=options.up_axis or "auto")


SOURCE = Source(
    name="abo",
    summary="Amazon Berkeley Objects: models of products with the English texts of their listings",
    licence="CC BY 4.0 (releases before 2023: CC BY-NC 4.0); credit to Amazon.com",
    size="7,953 models; about 150 GB, and 83 MB of listings",
    get=AboDataset.GET,
    layout=AboDataset.EXPECTED,
    options=("root", "up_axis"),
    required=("root",),
    build=_build,
)
