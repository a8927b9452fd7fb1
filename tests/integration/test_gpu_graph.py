"""The graph with encoders of their own: logical GPUs of Ray, the work done on the CPU."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import graph
from pipeline.cameras import ring
from pipeline.captions import CaptionJoin
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.job import EmbedOptions, EmbedSummary, embed, for_teachers, prepare, to_do
from pipeline.ledger import Reporter
from pipeline.objects import ObjectSettings
from pipeline.renderers.base import RenderConfig
from pipeline.shards import ShardSet
from pipeline.stages import EncodeSettings, EncodeStage
from tests.pipeline.test_teacher import write_teacher


class OnCpu(EncodeStage):
    """Gets what an encoder on a GPU gets, and computes it on the CPU."""

    def __init__(self, settings: EncodeSettings, reporter: Reporter | None = None) -> None:
        assert settings.device == "cuda"
        super().__init__(replace(settings, device="cpu"), reporter)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # of its own options
@pytest.mark.parametrize("count", [90])
def test_graph__encoders_apart_write_what_workers_that_encode_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    import ray

    objects = ObjectSettings(
        dataset=ProceduralDataset(count=count, seed=3),
        cameras=ring(2),
        render=RenderConfig(image_size=48),
        n_points=64,
        n_fps=32,
    )
    teacher = f"local-dir:{write_teacher(tmp_path / 'tiny')}"
    options = EmbedOptions(objects, str(tmp_path / "cpu"), (teacher,), device="cpu", workers=1)
    embed(options)
    monkeypatch.setattr(graph, "EncodeStage", OnCpu)
    options = replace(options, out=str(tmp_path / "gpu"), encoders=1)
    targets = prepare(options)
    objects = for_teachers(objects, *(t.manifest.teacher for t in targets.targets))
    options = replace(options, objects=objects)
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, logging_level=logging.ERROR)
    summary = EmbedSummary()
    try:
        with CaptionJoin(()) as captions, to_do(options, targets, captions) as (spool, _):
            on_gpu = replace(targets, device="cuda")
            graph.run_graph(options, on_gpu, spool, summary, time.perf_counter())
    finally:
        ray.shutdown()
    assert (summary.embedded, summary.failed, summary.passes) == (count, 0, 1)
    rows = [
        {
            row.uid: (row.xyz.tobytes(), row.image_embeds.tobytes(), row.text_embeds.tobytes())
            for group in shards.row_groups
            for row in shards.rows(group)
        }
        for shards in (ShardSet.open(tmp_path / name) for name in ("cpu", "gpu"))
    ]
    assert len(rows[0]) == count
    assert rows[0] == rows[1]
