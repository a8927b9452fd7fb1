"""What the search page can ask for, without anything of HTTP.

Objects are named by their row in the index. Files are read at the paths that the index holds, below
the folder of meshes that was given at the start: nothing that a request says becomes a path. Meshes
and clouds of requests, and meshes of objects, are read in processes of their own, with limits.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.embeddings import normalise
from evaluation.gallery import PICTURE_POINTS
from evaluation.index import Index, load_index
from evaluation.isolated import IsolatedCalls
from evaluation.queries import Part, compose
from evaluation.score import Asked, Scorer, read_distractors
from evaluation.search import Embedder, hits_json
from evaluation.shapes import Cloud, render_mesh
from pipeline.cameras import ring
from pipeline.cloud_pictures import draw_cloud, png_bytes
from pipeline.common import InputError
from pipeline.console import note
from pipeline.scene import MeshError
from pipeline.shards import ShardSet

F32 = NDArray[np.float32]

MAX_HITS = 100
MAX_TEXT = 300  # characters
MAX_CLASSES = 200
SHAPE_S = 20.0  # that a mesh or a cloud may take
SHAPE_BYTES = 4 << 30  # and the memory of its process
CONDITION_S = 5.0  # that a condition of SQL may take
PICTURE_SIZE = 192  # pixels
CLASS_TEMPLATES = ("{}", "a {}", "a 3D model of a {}")


class UnknownObjectError(Exception):
    """A row that the index does not have, or of which there is no picture or shape."""


class SearchService:
    """One index, with the shard set and the meshes of its objects where they are given."""

    def __init__(
        self,
        index: Path,
        *,
        shards: str | None = None,
        meshes: Path | None = None,
        checkpoint: Path | None = None,
        teacher: str | None = None,
        device: str = "cpu",
        timeout_s: float = SHAPE_S,
        processes: IsolatedCalls | None = None,
    ) -> None:
        """Shapes are read in ``processes``; without, in ones with ``timeout_s`` for each shape.

        Raises ``InputError`` when anything is missing or does not fit together.
        """
        self.index: Index = load_index(index)
        # One try: whoever asks can ask again, and a place is taken for one limit at most.
        self._processes = processes or IsolatedCalls(timeout_s, SHAPE_BYTES, tries=1)
        self.embed = Embedder(self.index, checkpoint, teacher, device, call=self._processes)
        if meshes is not None and not meshes.is_dir():
            raise InputError(f"--meshes {meshes}: no such folder; give the folder of the meshes")
        self._meshes = None if meshes is None else meshes.resolve()
        self._shards = None if shards is None else ShardSet.open(shards)
        # Read here, once: requests come in several threads.
        self._places = {} if self._shards is None else self._shards.places
        if self._shards is not None and (told := self.index.about_others(self._shards)):
            note(told)
        if self.index.kind == "ivfpq":
            self.index.engine.make_direct_map()  # for `like`
        self._categories = np.asarray(self.index.ids.column("category").to_pylist(), object)
        self._models = threading.Lock()  # they are loaded once, by whoever comes first
        self._scorer: Scorer | None = None
        self._picture = lru_cache(maxsize=4096)(self._draw)

    def warm_up(self) -> None:
        """Load the teacher and start a process for shapes: the first query does not wait for it."""
        self._processes.start()
        with self._models:
            self.embed.teacher.encode_texts(["a mug"])
        self._processes.start(wait=True)

    def close(self) -> None:
        """End the processes that read shapes."""
        self._processes.close()

    def info(self) -> dict[str, Any]:
        """What the page says of the index, and what it can offer."""
        counts: dict[str, int] = {}
        for category, uid in zip(self._categories, self.index.uids(), strict=True):
            if category is not None and uid is not None:
                counts[category] = counts.get(category, 0) + 1
        meta = self.index.meta
        columns = ["uid", "source", "category", "texts"]
        if self._shards is not None:
            columns += ["n_faces", "n_vertices", "has_color", "split", "n_bytes"]
        return {
            "name": self.index.path.name,
            "objects": len(self.index),
            "model": meta.model.name,
            "teacher": meta.teacher.label,
            "shapes": meta.model.kind == "student",
            "viewer": self._shards is not None or self._meshes is not None,
            "categories": dict(sorted(counts.items())),
            "columns": columns,
        }

    def search(
        self,
        parts: Sequence[Part] = (),
        *,
        like: int | None = None,
        category: str | None = None,
        where: str | None = None,
        k: int = 24,
    ) -> list[dict[str, Any]]:
        """The best ``k`` objects for parts of a query, for a row of the index, or for both.

        Raises ``InputError`` for a query of nothing, a wrong condition, or unreadable files, and
        ``UnknownObjectError`` for a row that is not there.
        """
        vectors: dict[int, F32] = {}
        asked = [*parts]
        if like is not None:
            self._known(like)
            asked.append(Part("shape", f"row {like}"))
            # What is had back from codes is no unit vector.
            vectors[len(asked) - 1] = normalise(self.index.engine.reconstruct(like))
        if not asked:
            raise InputError("the query is empty: say what to look for, or give a picture or shape")
        clouds = [self._cloud_of(p) if i not in vectors else None for i, p in enumerate(asked)]
        with self._models:
            found = [
                vectors[i] if i in vectors else self.embed(part, cloud)
                for i, (part, cloud) in enumerate(zip(asked, clouds, strict=True))
            ]
        embedded = {id(part): vector for part, vector in zip(asked, found, strict=True)}
        query = compose(asked, lambda part: embedded[id(part)])
        hits = self.index.search(query, min(k, MAX_HITS) + 1, self._allowed(category, where))
        kept = [hit for hit in hits if hit.row != like][: min(k, MAX_HITS)]
        told = hits_json(kept)
        for rank, (entry, hit) in enumerate(zip(told, kept, strict=True), 1):
            entry |= {"rank": rank, "row": hit.row, "viewer": self._kind(hit.row)}
        return told

    def _cloud_of(self, part: Part) -> Cloud | None:
        """The cloud of a part that is a shape. The lock is not held while it is read."""
        if part.kind != "shape":
            return None
        with self._models:
            _ = self.embed.student
        return self.embed.cloud(part)

    def _allowed(self, category: str | None, where: str | None) -> NDArray[np.bool_] | None:
        allowed = None
        if category:
            # An object that was removed, or replaced, keeps its row.
            allowed = (self._categories == category) & self.index.alive
            if not allowed.any():
                raise InputError(f"category {category}: has no objects")
        if where and where.strip():
            chosen = self.index.rows_where(where, self._shards, CONDITION_S)
            allowed = chosen if allowed is None else allowed & chosen
            if not allowed.any():
                raise InputError("no object of that category fulfils the condition")
        return allowed

    def picture(self, row: int) -> bytes:
        """A PNG of an object. Raises ``UnknownObjectError``."""
        self._known(row)
        found = self._picture(row)
        if found is None:
            raise UnknownObjectError(f"no picture of row {row}")
        return found

    def _draw(self, row: int) -> bytes | None:
        """As ``picture``; None, which is remembered, where a mesh that may hang is all there is."""
        path = self.mesh_path(row)
        if path is not None:
            try:
                return png_bytes(self._processes(render_mesh, path, PICTURE_SIZE))
            except MeshError:
                pass  # its cloud may still be there
        cloud = self._cloud(row)
        if cloud is None:
            return None
        xyz, rgb, colored = cloud
        return png_bytes(draw_cloud(xyz, rgb, colored, PICTURE_SIZE))

    def cloud(self, row: int) -> bytes:
        """Points of an object: n (little-endian int32), n x 3 float32, n x 3 sRGB bytes.

        Raises ``UnknownObjectError``.
        """
        self._known(row)
        found = self._cloud(row)
        if found is None:
            raise UnknownObjectError(f"no cloud of row {row}")
        xyz, rgb, _ = found
        head = np.asarray([len(xyz)], "<i4").tobytes()
        return head + np.ascontiguousarray(xyz, "<f4").tobytes() + rgb.tobytes()

    def _cloud(self, row: int) -> tuple[F32, NDArray[np.uint8], bool] | None:
        place = self._places.get(self.index.item(row).uid)
        if place is None or self._shards is None:
            return None
        group, at = place
        batch = self._shards.read(group, ["xyz", "rgb", "has_color"])
        assert batch.rgb is not None
        assert batch.has_color is not None
        points = slice(0, PICTURE_POINTS)
        xyz = batch.xyz_float()[at, points]
        return xyz, batch.rgb[at, points], bool(batch.has_color[at])

    def mesh_path(self, row: int) -> Path | None:
        """The mesh file of an object, if it lies in the folder of meshes."""
        if self._meshes is None:
            return None
        path = (self._meshes / self.index.item(row).source).resolve()
        return path if path.is_relative_to(self._meshes) and path.is_file() else None

    def model(self, row: int) -> Path:
        """A ``.glb`` file as the viewer takes it. Raises ``UnknownObjectError``."""
        self._known(row)
        path = self.mesh_path(row)
        if path is None or path.suffix.lower() != ".glb":
            raise UnknownObjectError(f"no .glb of row {row}")
        return path

    def _kind(self, row: int) -> str | None:
        """What the viewer can show of an object: ``mesh``, ``cloud`` or nothing."""
        path = self.mesh_path(row)
        if path is not None and path.suffix.lower() == ".glb":
            return "mesh"
        return "cloud" if self.index.item(row).uid in self._places else None

    def _known(self, row: int) -> None:
        uids = self.index.ids.num_rows
        if not 0 <= row < uids or self.index.removed(row):
            raise UnknownObjectError(f"no row {row}")

    def score(self, mesh: Path, text: str) -> dict[str, Any]:
        """How well a mesh shows a text; see ``evaluation.score``. Raises ``InputError``."""
        with self._models:
            if self._scorer is None:
                student = self.embed.student if self.index.meta.model.kind == "student" else None
                wrong = read_distractors(None)
                self._scorer = Scorer(
                    self.embed.teacher, student, ring(12), distractors=wrong, call=self._processes
                )
        asked = Asked(mesh.name, mesh, checked_text(text), None)
        seen = self._scorer.look(mesh)
        with self._models:
            return asdict(self._scorer(asked, seen))

    def classify(self, mesh: Path, names: Sequence[str]) -> list[dict[str, Any]]:
        """Probabilities of classes for a mesh or cloud, best first. Raises ``InputError``."""
        wanted = list(dict.fromkeys(name.strip() for name in names if name.strip()))
        if not 2 <= len(wanted) <= MAX_CLASSES:
            raise InputError(f"give 2 to {MAX_CLASSES} classes, one per line")
        for name in wanted:
            checked_text(name)
        part = Part("shape", str(mesh))
        cloud = self._cloud_of(part)
        with self._models:
            shape = self.embed(part, cloud)
            texts = self.embed.teacher.encode_prompts(wanted, CLASS_TEMPLATES)
        logits = self.index.meta.teacher.logit_scale * (texts @ shape).astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")
        return [
            {"name": wanted[i], "probability": float(shares[i]), "cosine": float(texts[i] @ shape)}
            for i in order
        ]


def checked_text(text: str) -> str:
    """A text of a request, without blanks around it. Raises ``InputError``."""
    found = " ".join(text.split())
    if not found:
        raise InputError("the text is empty: enter one")
    if len(found) > MAX_TEXT:
        raise InputError(f"the text has {len(found)} characters: give at most {MAX_TEXT}")
    return found
