"""How clouds and class names reach the models: our way, and those of OpenShape and Uni3D.

Read in their public code (OpenShape_code ``src/data.py`` and ``train.py``, Uni3D
``data/datasets.py`` and ``main.py``):

- both centre a cloud at the mean of its points and divide by the largest norm, where shards have it
  centred at the middle of its bounding box;
- points without colour are 0.4 in both, as here;
- OpenShape compares with class features that come with its data, Uni3D with the mean of 64 prompts;
- Uni3D puts the names of LVIS into prompts as they are, with underscores, and leaves articles
  as its templates have them: "a axe";
- OpenShape exchanges y and z of its clouds. That belongs to the weights, and is an option of the
  backbone (``axes``) which ``trainer import`` sets: no protocol turns anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.benchmarks.labels import LabelSet, key
from evaluation.benchmarks.templates import FIELD, MANIFEST
from evaluation.embeddings import normalise
from evaluation.sources import Centre
from pipeline.common import InputError
from pipeline.shards import Batch, ShardSet

F32 = NDArray[np.float32]
IMPORTED = "openshape"  # the dataset of every set that ``pipeline import`` makes of a release


@dataclass(frozen=True)
class Protocol:
    """One way of measuring."""

    name: str
    templates: str  # what --templates is by default
    centre: Centre  # of clouds: "box" (as shards have it) or "mean"
    released_texts: bool  # class features that come with the set are used where there are any
    released_names: bool  # underscores of names stay
    fit_articles: bool  # before a name: a axe becomes an axe

    def record(self) -> dict[str, str]:
        """What a result says of it."""
        return {"name": self.name, "centre": self.centre}


PROTOCOLS = {
    "ours": Protocol(
        "ours", MANIFEST, "box", released_texts=False, released_names=False, fit_articles=True
    ),
    "openshape": Protocol(
        "openshape", FIELD, "mean", released_texts=True, released_names=False, fit_articles=False
    ),
    "uni3d": Protocol(
        "uni3d", FIELD, "mean", released_texts=False, released_names=True, fit_articles=False
    ),
}


def protocol(name: str) -> Protocol:
    """The protocol of a name. Raises ``InputError``."""
    if name not in PROTOCOLS:
        raise InputError(f"--protocol {name}: use {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def stored_class_texts(shards: ShardSet, labels: LabelSet) -> F32 | None:
    """(C, D) features of the class names that came with a release; None unless it has them all.

    They are texts of source ``category`` of a set that ``pipeline import`` made. In any other set
    such texts are our own, made of the manifest's templates.
    """
    if not _imported(shards.manifest.dataset):
        return None
    found: dict[str, F32] = {}
    wanted = {key(name) for name in labels.names}
    for batch in shards.batches(["texts", "text_sources", "text_embeds"]):
        _take(batch, wanted, found)
        if len(found) == len(wanted):
            return normalise(np.stack([found[key(name)] for name in labels.names]))
    return None


def _imported(dataset: dict[str, Any]) -> bool:
    """Whether a set was imported, or merged of such sets alone."""
    if dataset.get("name") == "merged":
        return all(map(_imported, dataset.get("sets") or [{}]))
    return dataset.get("name") == IMPORTED


def _take(batch: Batch, wanted: set[str], found: dict[str, F32]) -> None:
    assert batch.texts is not None
    assert batch.text_sources is not None
    for row, (texts, sources) in enumerate(zip(batch.texts, batch.text_sources, strict=True)):
        for place, (text, source) in enumerate(zip(texts, sources, strict=True)):
            name = key(text)
            if source == "category" and name in wanted and name not in found:
                found[name] = np.asarray(batch.texts_of(row)[place], np.float32)
