"""Several teachers in one pass: rendered once, and every set as if its teacher were alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cameras import ring
from pipeline.captions import CaptionJoin
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.job import EmbedOptions, for_teachers, prepare, to_do
from pipeline.objects import ObjectSettings, Processed, process
from pipeline.renderers.base import RenderConfig
from pipeline.shards import ShardSet
from pipeline.spool import SpoolReader
from pipeline.stages import EncodeStage, pack, write_stage
from tests.pipeline.test_teacher import TINY, write_teacher

COUNT, VIEWS = 4, 2
SETTINGS = ObjectSettings(
    dataset=ProceduralDataset(count=COUNT, seed=3),
    cameras=ring(VIEWS),
    render=RenderConfig(image_size=80),
    n_points=64,
    n_fps=32,
    thumbnail=True,
)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Teachers of two widths and three picture sizes, one of them larger than the pictures."""
    folder = tmp_path_factory.mktemp("teachers")
    wider = {"embed_dim": 2 * TINY["embed_dim"]}
    side = {"vision_cfg": {**TINY["vision_cfg"], "image_size": 48}}
    large = {"vision_cfg": {**TINY["vision_cfg"], "image_size": 96}}
    changes = {"small": {}, "wider": {**wider, **side}, "large": large}
    return tuple(
        f"local-dir:{write_teacher(folder / name, seed, **change)}"
        for seed, (name, change) in enumerate(changes.items())
    )


def run(out: Path, teachers: tuple[str, ...], keep: str | None) -> int:
    """The stages of ``pipeline embed`` without Ray; how many objects were rendered."""
    objects = replace(SETTINGS, keep_images=keep)
    options = EmbedOptions(objects=objects, out=str(out), teachers=teachers, device="cpu")
    targets = prepare(options)
    objects = for_teachers(objects, *(t.manifest.teacher for t in targets.targets))
    with CaptionJoin(()) as captions, to_do(options, targets, captions) as (spool, _):
        todo = [i for task in spool.tasks(1) for i in SpoolReader(spool.address).read(task)]
    items = [(process(item.record, objects), item.places) for item in todo]
    assert all(isinstance(item, Processed) for item, _ in items)
    write_stage(pack(EncodeStage(targets).encoded(items)), targets.targets)
    return len(items)


def files(root: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in root.iterdir() if path.name[0] != "."}
    assert any(name.startswith("part-") for name in found)
    return found


def test_several_teachers__each_set_is_to_the_byte_that_of_a_run_alone(
    specs: tuple[str, ...], tmp_path: Path
) -> None:
    assert run(tmp_path / "all", specs, "webp-lossless") == COUNT  # rendered once for all
    widths = []
    for place, spec in enumerate(specs):
        name = spec.rsplit("/", 1)[-1]
        # The pictures are kept beside the first set, once.
        run(tmp_path / name, (spec,), "webp-lossless" if place == 0 else None)
        together, alone = files(tmp_path / "all" / name), files(tmp_path / name)
        assert sorted(together) == sorted(alone)
        assert together == alone
        shards = ShardSet.open(tmp_path / "all" / name)
        assert len(shards) == COUNT
        widths.append(shards.manifest.teacher.width)
    assert widths[0] != widths[1]


def test_several_teachers__one_that_is_added_later_completes_the_others(
    specs: tuple[str, ...], tmp_path: Path
) -> None:
    run(tmp_path / "all", specs[:2], None)
    before = files(tmp_path / "all" / "small")
    assert run(tmp_path / "all", specs, None) == COUNT  # for the new set alone
    assert files(tmp_path / "all" / "small") == before
    run(tmp_path / "alone", specs[2:], None)
    assert files(tmp_path / "all" / "large") == files(tmp_path / "alone")
