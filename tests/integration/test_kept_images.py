"""`pipeline embed --thumbnail --keep-images`: pictures beside the parts, through a resumed run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.pictures import decode_webp
from pipeline.shards import ImageSet, ShardSet
from tests.integration.test_embed import run
from tests.pipeline.test_teacher import write_teacher

COUNT = 20


def arguments(out: Path, teacher: str, *more: str) -> list[str]:
    return [
        *("embed", "--dataset", "procedural", "--count", str(COUNT), "--seed", "3"),
        *("--out", str(out), "--teacher", teacher, "--rows-per-part", "8", "--workers", "1"),
        *("--cameras", "openshape", "--views", "3", "--image-size", "48", "--points", "256"),
        *("--background", "#204060", "--light", "soft", "--thumbnail"),
        *("--keep-images", "webp-lossless", *more),
    ]


@pytest.mark.slow
def test_embed__kept_pictures_go_with_the_rows_and_survive_a_resume(tmp_path: Path) -> None:
    teacher = f"local-dir:{write_teacher(tmp_path / 'tiny')}"
    out = tmp_path / "shards"
    done = run(*arguments(out, teacher))
    assert done.returncode == 0, done.stderr
    shards = ShardSet.open(out)
    assert shards.manifest.thumbnails
    assert shards.manifest.kept_images == "webp-lossless"
    assert shards.manifest.cameras["name"] == "openshape"
    assert shards.manifest.cameras["thumbnail"]["azimuth_deg"] == 30
    settings = shards.manifest.renderer["settings"]
    assert settings["background"] == [0x20, 0x40, 0x60]
    assert (settings["ambient"], settings["diffuse"]) == (0.7, 0.3)
    images = ImageSet(shards)
    total = 0
    for group in shards.row_groups:
        rows, kept = shards.read(group), images.read(group)
        assert rows.uid == kept.uid
        assert rows.has_thumbnail is not None
        assert [picture is not None for picture in kept.thumbnails] == list(rows.has_thumbnail)
        for views in kept.views:
            decoded = np.stack([decode_webp(view) for view in views])
            assert decoded.shape == (3, 48, 48, 3)
            assert decoded[0, 0, 0].tolist() == [0x20, 0x40, 0x60]
            assert decoded.std() > 5
        total += len(rows)
    assert total == COUNT

    whole = {path.name: path.read_bytes() for path in out.glob("*.parquet")}
    # As a run leaves it that was killed between pictures and part, or whose part was deleted.
    next(iter(sorted(out.glob("part-*")))).unlink()
    done = run(*arguments(out, teacher))
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in out.glob("*.parquet")} == whole

    done = run(*arguments(out, teacher, "--fov", "30"))
    assert done.returncode == 2
    assert "cameras.fov_y_deg" in done.stderr
