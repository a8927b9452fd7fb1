"""Objects to shard rows: all views and texts of many objects through the teacher at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.captions import expand
from pipeline.objects import Processed
from pipeline.shards import Row
from pipeline.teacher import Teacher

# Names repeat from object to object; a bounded memory of their embeddings saves the text tower.
_REMEMBERED = 100_000


class Encoder:
    """Encodes objects with one teacher. Holds no state that changes what a row holds."""

    def __init__(self, teacher: Teacher, templates: Sequence[str]) -> None:
        self.teacher, self.templates = teacher, tuple(templates)
        self._known: dict[str, NDArray[np.float32]] = {}

    def encode(self, objects: Sequence[Processed]) -> list[Row]:
        """Rows of ``objects``, in order."""
        if not objects:
            return []
        views = [len(item.images) for item in objects]
        images = self.teacher.encode_images(np.concatenate([item.images for item in objects]))
        per_object = np.split(images, np.cumsum(views)[:-1])
        prompts = [
            [
                expand(text, source, self.templates)
                for text, source in zip(item.texts, item.text_sources, strict=True)
            ]
            for item in objects
        ]
        known = self._embed({p for texts in prompts for group in texts for p in group})
        rows = []
        for item, image_embeds, texts in zip(objects, per_object, prompts, strict=True):
            record = item.record
            rows.append(
                Row(
                    uid=record.uid,
                    dataset=record.dataset,
                    source=record.source,
                    category=record.category,
                    split=record.split,
                    xyz=item.xyz,
                    rgb=item.rgb,
                    has_color=item.has_color,
                    image_embeds=image_embeds,
                    texts=item.texts,
                    text_sources=item.text_sources,
                    text_embeds=self._averaged(texts, known),
                    sha256=item.sha256,
                    n_faces=item.n_faces,
                    n_vertices=item.n_vertices,
                    n_bytes=item.n_bytes,
                )
            )
        return rows

    def _averaged(
        self, texts: list[list[str]], known: dict[str, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        if not texts:
            return np.zeros((0, self.teacher.info.width), np.float32)
        means = np.stack([np.mean([known[p] for p in group], axis=0) for group in texts])
        return np.asarray(means / np.linalg.norm(means, axis=-1, keepdims=True), np.float32)

    def _embed(self, prompts: set[str]) -> dict[str, NDArray[np.float32]]:
        new = sorted(prompts - self._known.keys())
        embeds = dict(zip(new, self.teacher.encode_texts(new), strict=True)) if new else {}
        found = {p: self._known[p] if p in self._known else embeds[p] for p in prompts}
        if len(self._known) + len(embeds) <= _REMEMBERED:
            self._known.update(embeds)
        return found
