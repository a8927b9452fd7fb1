"""The queueing model of the embedding job, against runs that are followed by hand."""

from __future__ import annotations

import pytest

from pipeline.spool import GROUP
from tests.bench.scale_model import Costs, Machines, ideal, run


def test_run__one_worker_takes_its_tasks_one_after_another_and_writes_each_fourth() -> None:
    # 8 tasks of 6.4 s; a part of 256 rows of 1 MB at 100 MB/s takes 2.56 s, the last after the end.
    costs = Costs(render_s=0.1, written_bytes=1e6, store_bytes_s=1e8)
    found = run(Machines(nodes=1, cores=2), costs, 8 * GROUP)
    assert found.seconds == pytest.approx(8 * 6.4 + 2.56)
    assert found.busy["store"] == pytest.approx(2 * 2.56 / found.seconds)
    assert found.limit == "cores"


def test_run__a_slow_driver_lets_in_one_task_after_another() -> None:
    # The last of 8 tasks starts after 8 x 2 s and works for 6.4 s; of the two parts only the last
    # one's turn at the driver comes after that.
    costs = Costs(render_s=0.1, driver_s=2.0)
    found = run(Machines(nodes=10, cores=2), costs, 8 * GROUP)
    assert found.seconds == pytest.approx(8 * 2 + 6.4 + 2)
    assert found.limit == "driver"


def test_run__four_gpus_share_what_many_cores_render() -> None:
    # All 8 tasks are there after .64 s; each GPU encodes two of them, 64 s each.
    costs = Costs(render_s=0.01, encode_s=1.0)
    machines = Machines(nodes=2, cores=8, gpus=2)
    found = run(machines, costs, 8 * GROUP)
    assert found.seconds == pytest.approx(0.64 + 2 * 64)
    assert found.limit == "GPUs"
    assert ideal(machines, costs) == 4.0


def test_run__of_a_long_job_the_slowest_resource_sets_the_pace() -> None:
    costs = Costs(render_s=0.05, driver_s=0.01, written_bytes=1e5)
    found = run(Machines(nodes=20, cores=16), costs, 400_000)
    assert found.limit == "driver"
    # 1.25 turns of 10 ms a task: the task's own, and a quarter of a part's.
    assert found.objects_s == pytest.approx(GROUP / 0.0125, rel=0.06)


def test_run__the_store_of_the_sources_holds_all_cores_back() -> None:
    # 64 MB a task at 10 MB/s, one task after another; the last is rendered for .64 s.
    costs = Costs(render_s=0.01, source_bytes=1e6, sources_bytes_s=1e7, link_bytes_s=1e15)
    found = run(Machines(nodes=1, cores=9), costs, 4 * GROUP)
    assert found.seconds == pytest.approx(4 * 6.4 + 0.64)
    assert found.limit == "sources"


def test_run__refuses_to_encode_without_gpus() -> None:
    with pytest.raises(ValueError, match="no GPUs"):
        run(Machines(nodes=1, cores=4), Costs(render_s=0.1, encode_s=0.1), 64)
