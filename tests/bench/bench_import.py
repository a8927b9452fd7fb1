"""Speed of ``pipeline import openshape`` on archives of the release's format, on one core."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.imports.archives import read_tar
from pipeline.imports.openshape import make_row
from pipeline.imports.run import ImportOptions, _rules, import_openshape
from pipeline.imports.unpickle import load_npy
from pipeline.shards.writer import encode_part

RELEASE = 876_000  # objects
WIDTH, VIEWS, POINTS, RETRIEVED = 1280, 12, 10_000, 5
_SHARD = "000-000"
_FOLDER = f"objaverse-processed/merged_for_training_final/Objaverse/{_SHARD}"


def run(count: int = 512) -> list[list[object]]:
    """Rows of (stage, ms an object, objects/s, hours for the release), processor time.

    Objects are noise: it shrinks less than real ones do (the release has 234 kB an object, these
    have 280 kB), so that reading is not timed too well.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "release"
        _release(root, count)
        archive = root / "Objaverse" / f"{_SHARD}.tar.gz"
        rules = _rules(ImportOptions(root, "out"))
        files = [m.data for m in read_tar(archive, ".npy", 1 << 26) if m.data is not None]
        places = [("Objaverse", _SHARD, f"{i:032x}") for i in range(count)]
        made = [make_row(files[0], places[0], rules)]  # imports and first touches

        def convert() -> None:
            made[:] = [make_row(data, at, rules) for data, at in zip(files, places, strict=True)]

        def write() -> None:
            for start in range(0, count, 256):
                encode_part(rules.manifest, made[start : start + 256])

        out = str(Path(folder) / "out")
        stages: dict[str, Callable[[], Any]] = {
            "inflate and split": lambda: sum(1 for _ in read_tar(archive, ".npy", 1 << 26)),
            "unpickle": lambda: [load_npy(data) for data in files],
            "convert (with unpickle)": convert,
            "write": write,
            "whole command": lambda: import_openshape(ImportOptions(root, out, workers=1)),
        }
        rows: list[list[object]] = []
        for name, stage in stages.items():
            begun = time.process_time()
            stage()
            seconds = (time.process_time() - begun) / count
            rows.append(
                [
                    name,
                    round(1000 * seconds, 2),
                    round(1 / seconds, 1),
                    round(RELEASE * seconds / 3600, 2),
                ]
            )
    return rows


def _release(root: Path, count: int) -> None:
    """One archive and the lists that name what is in it."""
    rng = np.random.default_rng(0)

    def features(rows: int) -> Any:
        return rng.standard_normal((rows, WIDTH), np.float32)

    def both() -> dict[str, Any]:
        return {"original": features(1), "prompt_avg": features(1)}

    (root / "Objaverse").mkdir(parents=True)
    (root / "meta_data" / "split").mkdir(parents=True)
    entries, flags = [], {}
    with tarfile.open(root / "Objaverse" / f"{_SHARD}.tar.gz", "w:gz", compresslevel=6) as archive:
        for index in range(count):
            name = f"{index:032x}"
            value = {
                "dataset": "Objaverse",
                "group": _SHARD,
                "id": name,
                "xyz": rng.uniform(-1, 1, (POINTS, 3)).astype(np.float32),
                "rgb": rng.integers(0, 256, (POINTS, 3)).astype(np.float32) / np.float32(255),
                "image_feat": features(VIEWS),
                "thumbnail_feat": features(1),
                "text": [f"thing {index}"],
                "text_feat": [both()],
                "blip_caption": "a thing on a table",
                "blip_caption_feat": both(),
                "msft_caption": "the thing",
                "msft_caption_feat": both(),
                "retrieval_text": [f"found {k}" for k in range(RETRIEVED)],
                "retrieval_text_feat": [both() for _ in range(RETRIEVED)],
            }
            buffer = io.BytesIO()
            np.save(buffer, np.array(value, object), allow_pickle=True)
            entry = tarfile.TarInfo(f"{_FOLDER}/{name}.npy")
            entry.size = len(buffer.getvalue())
            archive.addfile(entry, io.BytesIO(buffer.getvalue()))
            entries.append({"dataset": "Objaverse", "group": _SHARD, "id": name})
            flags[name] = {"flag": "N" if index % 3 == 0 else "Y"}
    (root / "meta_data" / "split" / "train_all.json").write_text(json.dumps(entries))
    (root / "meta_data" / "gpt4_filtering.json").write_text(json.dumps(flags))
