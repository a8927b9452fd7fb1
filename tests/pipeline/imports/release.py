"""A small release of OpenShape's layout, with content that depends on the ids alone."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.shards import TeacherInfo

WIDTH, VIEWS, POINTS = 6, 3, 80
ABOVE = "objaverse-processed/merged_for_training_final"


@pytest.fixture
def small_teacher(monkeypatch: pytest.MonkeyPatch) -> TeacherInfo:
    """Makes the importer expect the width of these releases, and not import open_clip."""
    teacher = TeacherInfo("ViT-bigG-14", "laion2b_s39b_b160k", {}, WIDTH, 100.0, [], [])
    monkeypatch.setattr("pipeline.imports.openshape.released_teacher", lambda: teacher)
    return teacher


def feature(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """One released text feature: not normalised, (1, D)."""
    return {
        "original": rng.normal(size=(1, WIDTH)).astype(np.float32) * 20,
        "prompt_avg": rng.normal(size=(1, WIDTH)).astype(np.float32) * 20,
    }


def make_object(place: str, **changes: Any) -> dict[str, Any]:
    """The dictionary of one file; ``place`` is dataset/group/id or dataset/id."""
    rng = np.random.default_rng(list(place.encode()))
    dataset, *group, name = place.split("/")
    values: dict[str, Any] = {
        "dataset": dataset,
        "group": group[0] if group else "",
        "id": name,
        "text": [f"thing {name}"],
        "text_feat": [feature(rng)],
        "blip_caption": f"a thing called {name}",
        "blip_caption_feat": feature(rng),
        "msft_caption": f"the thing {name}",
        "msft_caption_feat": feature(rng),
        "retrieval_text": ["found one", "found two"],
        "retrieval_text_feat": [feature(rng), feature(rng)],
        "xyz": rng.uniform(-1, 1, (POINTS, 3)) * [1.0, 0.5, 0.25] + [0.1, 0.2, 0.3],
        "rgb": rng.integers(0, 256, (POINTS, 3)) / 255.0,
        "image_feat": rng.normal(size=(VIEWS, WIDTH)).astype(np.float32) * 20,
    }
    if dataset == "Objaverse":
        values["thumbnail_feat"] = rng.normal(size=(1, WIDTH)).astype(np.float32)
    values.update(changes)
    return values


def npy(value: Any) -> bytes:
    """The bytes that ``numpy.save`` writes."""
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w:gz") -> None:
    """An archive as ``tar`` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


@dataclass
class Release:
    """A release on disk: two shards of Objaverse, ShapeNet and ABO."""

    root: Path
    places: list[str] = field(default_factory=list)  # in the order of the archives
    lvis: dict[str, str] = field(default_factory=dict)  # place: category
    no_text: set[str] = field(default_factory=set)  # ids

    def entry(self, place: str) -> dict[str, str]:
        """Item of a list."""
        dataset, *group, name = place.split("/")
        path = f"/mnt/data/{ABOVE}/{place}.npy"
        return {"dataset": dataset, "group": "".join(group), "id": name, "data_path": path}

    def write_lists(self, listed: Iterable[str] | None = None) -> None:
        """meta_data of the release; ``listed``: what train_all.json names."""
        meta = self.root / "meta_data"
        (meta / "split").mkdir(parents=True, exist_ok=True)
        entries = [self.entry(place) for place in (self.places if listed is None else listed)]
        (meta / "split" / "train_all.json").write_text(json.dumps(entries))
        lvis = [
            {
                "uid": place.rsplit("/", 1)[1],
                "group": place.split("/")[1],
                "category": category,
                "data_path": f"/mnt/data/{ABOVE}/{place}.npy",
            }
            for place, category in self.lvis.items()
        ]
        (meta / "split" / "lvis.json").write_text(json.dumps(lvis))
        flags = {
            place.rsplit("/", 1)[1]: {
                "flag": "N" if place.rsplit("/", 1)[1] in self.no_text else "Y"
            }
            for place in self.places
        }
        (meta / "gpt4_filtering.json").write_text(json.dumps(flags))


ARCHIVES = {
    "Objaverse/000-000.tar.gz": [f"Objaverse/000-000/{i:04x}" for i in range(5)],
    "Objaverse/000-001.tar.gz": [f"Objaverse/000-001/{i:04x}" for i in range(5, 9)],
    "ShapeNet.tar.gz": ["ShapeNet/02691156/aa", "ShapeNet/03001627/aa"],
    "ABO.tar.gz": ["ABO/B0001"],
}


def make_release(root: Path, *, unpacked: bool = False, **objects: Any) -> Release:
    """Write a release; ``objects`` replace the values of places (``/`` written as ``__``)."""
    release = Release(root)
    for archive, places in ARCHIVES.items():
        members = []
        for place in places:
            value = objects.get(place.replace("/", "__"), make_object(place))
            data = value if isinstance(value, bytes) else npy(value)
            members.append((f"{ABOVE}/{place}.npy", data))
        release.places += places
        if unpacked:
            for name, data in members:
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        else:
            write_tar(root / archive, members)
    release.lvis = {
        "Objaverse/000-000/0001": "bow_(weapon)",
        "Objaverse/000-001/0006": "mug",
    }
    release.no_text = {"0002"}
    release.write_lists()
    return release
