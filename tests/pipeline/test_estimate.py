from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cameras import ring
from pipeline.common import InputError
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.encode import Encoder
from pipeline.estimate import estimate, part_bytes, show
from pipeline.job import EmbedOptions, for_teachers, prepare
from pipeline.objects import ObjectSettings, Processed, process
from pipeline.renderers.base import RenderConfig
from pipeline.shards import write_part
from pipeline.shards.writer import encode_part
from pipeline.teacher import load_teacher
from tests.pipeline.shard_tools import make_manifest, make_row
from tests.pipeline.test_teacher import write_teacher


def options(out: Path, count: int) -> EmbedOptions:
    objects = ObjectSettings(
        dataset=ProceduralDataset(count=count, seed=3),
        cameras=ring(2),
        render=RenderConfig(image_size=48),
        n_points=500,
        n_fps=64,
    )
    return EmbedOptions(objects=objects, out=str(out), device="cpu", workers=2)


def test_estimate__size_is_that_of_a_real_run_and_nothing_is_written(tmp_path: Path) -> None:
    run = options(tmp_path / "x", 24)
    found = estimate(run, sample=6, price_per_hour=3.0)
    assert not list(tmp_path.iterdir())
    assert (found.records, found.to_do, found.sampled, found.sample_failed) == (24, 24, 6, 0)
    assert found.workers == 2
    assert found.hours > 0
    assert found.cost == pytest.approx(3 * found.hours)
    one = sum(found.seconds.values()) + found.encode_seconds
    assert found.hours == pytest.approx(24 * one / 2 / 3600, rel=0.01)
    low, high = found.seconds_range
    assert 0 < low <= sum(found.seconds.values()) <= high
    quick, slow = found.hours_range
    assert quick <= found.hours <= slow
    assert found.free_bytes is not None

    (target,) = prepare(run).targets
    settings = for_teachers(run.objects, target.manifest.teacher)
    done = [process(record, settings) for record in settings.dataset.records()]
    good = [item for item in done if isinstance(item, Processed)]
    encoder = Encoder(load_teacher("demo"), run.templates)
    rows = encoder.encode(good)
    name = write_part(run.out, target.manifest, rows)
    assert found.total_bytes == pytest.approx((tmp_path / "x" / name).stat().st_size, rel=0.1)

    # What is there already is not to be done again.
    again = estimate(replace(run, objects=replace(run.objects, dataset=wider(30))), sample=3)
    assert (again.records, again.to_do) == (30, 6)


def wider(count: int) -> ProceduralDataset:
    return ProceduralDataset(count=count, seed=3)


def test_estimate__objects_that_fail_are_told_and_not_counted_as_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "meshes"
    root.mkdir()
    (root / "broken.glb").write_bytes(b"glTF")
    run = options(tmp_path / "x", 1)
    found = estimate(replace(run, objects=replace(run.objects, dataset=FolderDataset(root))))
    assert (found.sampled, found.sample_failed) == (1, 1)
    assert found.total_bytes == 0
    show(found)
    assert "1 of 1" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


def test_estimate__a_set_made_with_other_options_is_refused(tmp_path: Path) -> None:
    run = options(tmp_path / "x", 4)
    prepare(run)
    other = replace(run, objects=replace(run.objects, cameras=ring(3)))
    with pytest.raises(InputError, match="differs from the set"):
        estimate(other)


def test_estimate__of_several_sets_each_counts_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = f"local-dir:{write_teacher(tmp_path / 'tiny')}"
    out = tmp_path / "x"
    run = replace(options(out, 6), teachers=("demo", other))
    (first,) = prepare(replace(options(out / "demo", 6), teachers=("demo",))).targets
    settings = for_teachers(run.objects, first.manifest.teacher)
    done = [process(record, settings) for record in list(settings.dataset.records())[:4]]
    good = [item for item in done if isinstance(item, Processed)]
    write_part(first.out, first.manifest, Encoder(load_teacher("demo"), run.templates).encode(good))
    found = estimate(run, sample=2)
    assert found.to_do_by_set == {str(out / "demo"): 2, str(out / "tiny"): 6}
    assert (found.records, found.to_do) == (6, 6)
    sizes = found.bytes_per_object
    expected = 2 * sizes[str(out / "demo")] + 6 * sizes[str(out / "tiny")]
    assert found.total_bytes == pytest.approx(expected)
    assert sorted(path.name for path in out.iterdir()) == ["demo"]
    show(found)
    assert "6, 0, 6" in capsys.readouterr().out


@pytest.mark.parametrize(("count", "rows_per_part"), [(24, 256), (150, 150), (60, 16)])
def test_part_bytes__small_rows_in_parts_of_any_size(count: int, rows_per_part: int) -> None:
    manifest = make_manifest(n_points=64)
    rows = [make_row(manifest, f"toy/{n:04d}") for n in range(count)]
    real = sum(
        len(encode_part(manifest, rows[start : start + rows_per_part])[1])
        for start in range(0, count, rows_per_part)
    )
    found = part_bytes(manifest, rows[:8], min(rows_per_part, count)) * count
    assert found == pytest.approx(real, rel=0.05)
