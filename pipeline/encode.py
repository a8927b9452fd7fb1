"""Objects to shard rows: all views and texts of many objects through the teacher at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.captions import TokenCounter, clean_name, expand
from pipeline.objects import Processed, teacher_size
from pipeline.shards import Row
from pipeline.teacher import AnyTeacher

# Names repeat from object to object; a bounded memory of their embeddings saves the text tower.
_REMEMBERED = 100_000


class Encoder:
    """Encodes objects with one teacher. Holds no state that changes what a row holds.

    ``counts`` tells of the texts encoded so far: ``texts``; ``texts_cut``, longer than the
    teacher's context, and ``tokens_cut``, what it did not read of them;
    ``objects_without_text``; and what cleaning counted (``pipeline.captions.Texts``). Of a teacher
    that knows some texts only, the others are left out (``texts_unknown``), and an object of which
    none is left has its category, where that is known.
    """

    def __init__(self, teacher: AnyTeacher, templates: Sequence[str]) -> None:
        self.teacher, self.templates = teacher, tuple(templates)
        self._size = teacher_size(teacher.info)
        self._tokens = TokenCounter(teacher.tokenizer)
        self.counts: Counter[str] = Counter()
        self._known: dict[str, NDArray[np.float32]] = {}

    def encode(self, objects: Sequence[Processed]) -> list[Row]:
        """Rows of ``objects``, in order."""
        if not objects:
            return []
        objects = [self._with_known_texts(item) for item in objects]
        embeds = self._pictures(objects)
        prompts = [
            [
                expand(text, source, self.templates)
                for text, source in zip(item.texts, item.text_sources, strict=True)
            ]
            for item in objects
        ]
        self._count(objects, prompts)
        known = self._embed({p for texts in prompts for group in texts for p in group})
        rows = []
        for item, (views, thumbnail), texts in zip(objects, embeds, prompts, strict=True):
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
                    image_embeds=views,
                    thumbnail_embed=thumbnail,
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

    def _with_known_texts(self, item: Processed) -> Processed:
        pairs = list(zip(item.texts, item.text_sources, strict=True))
        known = [pair for pair in pairs if self.teacher.knows(pair[0])]
        if known == pairs:
            return item
        self.counts["texts_unknown"] += len(pairs) - len(known)
        category = clean_name(item.record.category or "")
        if not known and category and self.teacher.knows(category):
            known = [(category, "category")]
        return replace(
            item, texts=tuple(t for t, _ in known), text_sources=tuple(s for _, s in known)
        )

    def take_counts(self) -> dict[str, int]:
        """The counts since the last call."""
        taken = {key: n for key, n in self.counts.items() if n}
        self.counts.clear()
        return taken

    def _count(self, objects: Sequence[Processed], prompts: list[list[list[str]]]) -> None:
        for item, texts in zip(objects, prompts, strict=True):
            self.counts.update(item.text_counts)
            self.counts["texts"] += len(texts)
            self.counts["objects_without_text"] += not texts
            for group in texts:
                excess = max(self._tokens.excess(prompt) for prompt in group)
                self.counts["texts_cut"] += excess > 0
                self.counts["tokens_cut"] += excess

    def _pictures(
        self, objects: Sequence[Processed]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        """Embeddings (V, D) of the views and (D,) of the thumbnail, if there is one, by object.

        V is 0 for a teacher without an image tower.
        """
        if not self.teacher.has_images:
            nothing = np.zeros((0, self.teacher.info.width), np.float32)
            yield from ((nothing, None) for _ in objects)
            return
        size = self._size if self._size in objects[0].images else None  # None: as rendered
        pictures = []
        for item in objects:
            pictures.append(item.images[size])
            if size in item.thumbnail:
                pictures.append(item.thumbnail[size][None])
        embeds = self.teacher.encode_images(np.concatenate(pictures))
        at = 0
        for item in objects:
            end = at + len(item.images[size])
            if size in item.thumbnail:
                yield embeds[at:end], embeds[end]
                at = end + 1
            else:
                yield embeds[at:end], None
                at = end

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
