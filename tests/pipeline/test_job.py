"""The job's parts that need no Ray; tests/integration runs it whole."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from pipeline import graph, job, stages
from pipeline.cameras import ring
from pipeline.captions import CaptionJoin
from pipeline.common import InputError
from pipeline.console import ProgressBar
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.procedural import ProceduralDataset
from pipeline.job import (
    EmbedOptions,
    EmbedSummary,
    embed,
    for_teachers,
    listed,
    prepare,
    set_names,
    to_do,
)
from pipeline.objects import ObjectSettings, process
from pipeline.renderers.base import RenderConfig
from pipeline.shards import Failure, ShardSet, has_lost_files, record_contents, what_lacks
from pipeline.spool import Spool, SpoolReader
from pipeline.stages import (
    EmbedStage,
    EncodeSettings,
    EncodeStage,
    Target,
    pack,
    unpack,
    write_stage,
)
from tests.pipeline.shard_tools import make_row, make_set


def settings(count: int) -> ObjectSettings:
    return ObjectSettings(
        dataset=ProceduralDataset(count=count, seed=3),
        cameras=ring(2),
        render=RenderConfig(image_size=48),
        n_points=64,
        n_fps=32,
    )


def test_set_names__one_teacher_writes_into_out_itself() -> None:
    assert set_names(("demo",), "shards/x") == ["shards/x"]


def test_set_names__several_get_folders_named_after_them() -> None:
    specs = (
        "demo",
        "ViT-B-32:laion2b_s34b_b79k",
        "ViT-L-14:/data/run 3/weights.safetensors",
        "hf-hub:org/SomeModel",
        "local-dir:/a/b/mine/",
    )
    assert set_names(specs, "s3://bucket/x/") == [
        "s3://bucket/x/demo",
        "s3://bucket/x/vit-b-32-laion2b_s34b_b79k",
        "s3://bucket/x/vit-l-14-weights.safetensors",
        "s3://bucket/x/somemodel",
        "s3://bucket/x/mine",
    ]


@pytest.mark.parametrize("twice", [("demo", "demo"), ("local-dir:/a/x", "local-dir:/b/x")])
def test_set_names__two_of_one_name_are_refused(twice: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"--teacher .*same name"):
        set_names(twice, "out")


def test_summary__too_many_failures_counts_what_was_tried() -> None:
    assert not EmbedSummary(limit=0.0).too_many_failures
    assert not EmbedSummary(embedded=95, failed=5, limit=0.05).too_many_failures
    assert EmbedSummary(embedded=94, failed=6, limit=0.05).too_many_failures


def test_summary__too_many_failures_counts_earlier_runs() -> None:
    assert EmbedSummary(skipped=10, failed_before=1, limit=0.05).too_many_failures
    assert not EmbedSummary(embedded=1, failed=1, skipped=50, limit=0.05).too_many_failures


def test_embed__an_error_while_listing_leaves_no_set_behind(tmp_path: Path) -> None:
    options = EmbedOptions(
        objects=replace(settings(1), dataset=FolderDataset(tmp_path)), out=str(tmp_path / "out")
    )
    with pytest.raises(InputError, match="expected mesh files"):
        embed(options)
    assert not list((tmp_path / "out").glob("*"))[1:]  # the lock at most
    assert not (tmp_path / "out/manifest.json").exists()
    # A set that was there before stays, whatever comes of this run.
    kept = str(tmp_path / "kept")
    prepare(replace(options, out=kept))
    with pytest.raises(InputError, match="expected mesh files"):
        embed(replace(options, out=kept))
    assert (tmp_path / "kept/manifest.json").exists()


def test_prepare__starts_no_set_where_one_of_the_teachers_is_not_there(tmp_path: Path) -> None:
    options = EmbedOptions(
        objects=settings(1),
        out=str(tmp_path / "out"),
        teachers=("demo", f"ViT-B-32:{tmp_path}/none.safetensors"),
    )
    with pytest.raises(InputError):
        prepare(options)
    assert not (tmp_path / "out").exists()


def test_embed__some_objects_of_a_set_that_lost_parts_leave_it_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = EmbedOptions(objects=settings(6), out=str(out), device="cpu")
    (target,) = prepare(options).targets
    rows = [
        make_row(target.manifest, record.uid, dataset=record.dataset) for record in listed(options)
    ]
    first, lost = make_set(out, target.manifest, [rows[:3], rows[3:]])
    record_contents(out)
    (out / lost).unlink()
    for some in (replace(options, limit=3), replace(options, objects=settings(2))):
        summary = embed(some)  # nothing to do
        assert (summary.embedded, summary.skipped) == (0, some.limit or 2)
        assert has_lost_files(out)
    assert what_lacks(out) == f"{out}: files missing: 1; `pipeline verify` names them"
    assert (out / first).exists()


def test_embed__sets_of_one_and_of_several_teachers_do_not_mix(tmp_path: Path) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    for folder in (one, several / "demo"):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    options = EmbedOptions(objects=settings(1), out=str(one), teachers=("demo", "ViT-B-32:openai"))
    with pytest.raises(InputError, match=f"--out {one}: is the set of one teacher"):
        embed(options)
    with pytest.raises(InputError, match=f"give --out {several}/demo to continue this one"):
        embed(replace(options, out=str(several), teachers=("demo",)))


def test_stages__several_sets_get_equal_rows_and_only_what_they_lack(tmp_path: Path) -> None:
    objects = settings(5)
    options = EmbedOptions(objects=objects, out=str(tmp_path / "one"), device="cpu")
    (first,) = prepare(options).targets
    manifest = first.manifest
    second = Target("demo", str(tmp_path / "two"), manifest)
    prepare(EmbedOptions(objects=objects, out=second.out, device="cpu"))
    both = (first, second)
    encode = prepare(options)
    object.__setattr__(encode, "targets", both)
    objects = for_teachers(objects, manifest.teacher)
    stage = EncodeStage(encode)
    # The first two objects are in set one already, and one of the others fails.
    for limit, places in ((2, (0,)), (5, None)):
        with CaptionJoin(()) as captions:
            run = EmbedOptions(objects=objects, out=first.out, device="cpu", limit=limit)
            sets = encode if places is None else prepare(options)
            with to_do(run, sets, captions) as (spool, seen):
                assert seen.records == limit
                todo = [i for t in spool.tasks(1) for i in SpoolReader(spool.address).read(t)]
        wanted = [(0,)] * 2 if places else [(1,)] * 2 + [(0, 1)] * 3
        assert [item.places for item in todo] == wanted
        items = [(process(item.record, objects), item.places) for item in todo]
        if places is None:
            lost = todo[3].record
            items[3] = Failure(lost.uid, lost.dataset, lost.source, "load", "gone", "x"), (0, 1)
        (written,) = unpack(write_stage(pack(stage.encoded(items)), both))
        assert (written.rows, written.failures) == ((2, 0) if places else (4, 1))
        assert written.texts["texts"] > 0
        assert {"load", "render", "sample", "encode", "write"} <= set(written.seconds)
    one, two = (ShardSet.open(target.out) for target in both)
    rows = [{r.uid: r for g in s.row_groups for r in s.rows(g)} for s in (one, two)]
    assert sorted(rows[0]) == sorted(rows[1])
    assert len(rows[0]) == 4
    for uid, row in rows[0].items():
        np.testing.assert_array_equal(row.xyz, rows[1][uid].xyz)
        np.testing.assert_array_equal(row.image_embeds, rows[1][uid].image_embeds)
    assert [s.failures_table().num_rows for s in (one, two)] == [1, 1]


def test_embed_stage__the_child_starts_while_the_teachers_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[psutil.Process] = []

    def load(*_: Any) -> None:
        children.extend(
            c for c in psutil.Process().children() if "spawn_main" in " ".join(c.cmdline())
        )

    monkeypatch.setattr(stages, "EncodeStage", load)
    objects = settings(1)
    options = EmbedOptions(objects=objects, out=str(tmp_path / "x"), device="cpu", limit=1)
    with (
        CaptionJoin(()) as captions,
        to_do(options, prepare(options), captions) as (spool, _),
    ):
        before = {c.pid for c in psutil.Process().children()}
        stage = EmbedStage(
            objects, spool.address, 60.0, EncodeSettings((), "cpu", objects.captions)
        )
    try:
        assert len({c.pid for c in children} - before) == 1
    finally:
        stage._renderer._processor.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # of itself, by itself
def test_graph__a_million_objects_need_no_task_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray
    from ray.remote_function import RemoteFunction

    held: list[Any] = []

    def put(table: Any) -> Any:
        held.append(table)
        return ray.ObjectRef(os.urandom(28))

    def task(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was given a task")

    monkeypatch.setattr(ray, "put", put)
    monkeypatch.setattr(RemoteFunction, "_remote", task)
    options = EmbedOptions(objects=settings(1), out="x", device="cpu")
    encode = EncodeSettings((), "cpu", options.objects.captions)
    graph._graph(options, encode, Spool("x", 64 * 20), 3, None)  # type: ignore[arg-type]
    assert [table.to_pylist() for table in held] == [
        [{"group": group, "begin": 0, "end": 64}] for group in range(20)
    ]


def test_graph__a_machine_without_a_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RaySystemError

    def lacking() -> RaySystemError:
        told = (
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'open_clip'"
        )
        return RaySystemError(f"System error: {told}")  # type: ignore[no-untyped-call]

    class Graph:
        def iter_batches(self, **_: Any) -> None:
            raise RuntimeError("the graph ended") from lacking()

    class Ledger:
        def call(self, method: str, *_: Any, **__: Any) -> None:
            if method == "written":  # of a machine where not even it could start
                raise lacking()

    monkeypatch.setattr(graph, "_graph", lambda *_: Graph())
    options = EmbedOptions(objects=settings(1), out="x", device="cpu")
    encode = EncodeSettings((), "cpu", options.objects.captions)
    bar = ProgressBar("embed", 1, "objects")
    with pytest.raises(InputError, match=r"lacks a package \(No module named 'open_clip'\); "):
        graph._pass(options, encode, Spool("x", 1), Ledger(), 2, bar)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"lacks a package \(No module named 'open_clip'\); "):
        graph._ask(Ledger(), "written")  # type: ignore[arg-type]


@pytest.mark.parametrize("address", [None, "head:6379"])
def test_device__a_driver_without_a_gpu_tells_who_encodes(
    address: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert job._device("auto", address) == "cpu"
    assert ("--device cuda uses the GPUs" in capsys.readouterr().err) == (address is not None)
    if address is None:
        with pytest.raises(InputError, match="--device cuda: no CUDA device"):
            job._device("cuda", address)
    else:
        assert job._device("cuda", address) == "cuda"
