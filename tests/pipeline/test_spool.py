from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.base import Record
from pipeline.spool import GROUP, SpoolReader, Todo, spooled, with_split


def todo(count: int) -> list[Todo]:
    return [
        Todo(
            Record(
                uid=f"x/{n}",
                dataset="x",
                source=f"{n}.glb",
                key=str(n),
                category=None if n % 3 else "chair",
                texts=("a", "b") if n % 2 else (),
                text_sources=("name", "caption") if n % 2 else (),
            ),
            (0, 1) if n % 5 else (1,),
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, GROUP - 1, GROUP, GROUP + 1, 5 * GROUP + 7])
@pytest.mark.parametrize("workers", [1, 3, 64])
def test_spool__tasks_cover_every_record_once_and_in_order(
    tmp_path: Path, count: int, workers: int
) -> None:
    records = todo(count)
    with spooled(str(tmp_path), iter(records)) as spool:
        assert spool.total == count
        reader = SpoolReader(spool.address)
        tasks = list(spool.tasks(workers))
        assert [item for task in tasks for item in reader.read(task)] == records
        # The last tasks even out between the workers, and none is larger than a row group.
        if count >= 4 * workers:
            assert len(tasks) >= 4 * workers
        assert max((len(reader.read(task)) for task in tasks), default=0) <= GROUP


def test_spool__the_file_is_hidden_and_goes_whatever_happens(tmp_path: Path) -> None:
    seen: list[str] = []

    def fail() -> None:
        with spooled(str(tmp_path), iter(todo(3))):
            seen.extend(p.name[:5] for p in tmp_path.iterdir())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [".tmp-"]
    assert not list(tmp_path.iterdir())


def test_with_split__depends_on_the_uid_alone_and_keeps_what_the_source_says() -> None:
    records = [item.record for item in todo(2000)]
    placed = [with_split(record, 0.2).split for record in records]
    assert placed == [with_split(record, 0.2).split for record in records]
    assert 0.17 < placed.count("test") / len(placed) < 0.23
    assert with_split(records[0], 0.0).split is None
    kept = Record("x/a", "x", "a", "a", split="val")
    assert with_split(kept, 0.5).split == "val"
