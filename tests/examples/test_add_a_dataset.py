"""The worked example of a source of one's own, and what `--dataset FILE.py` refuses."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common import InputError
from pipeline.datasets.base import Dataset
from pipeline.datasets.sources import SourceOptions, make_dataset
from pipeline.scene import MeshError
from pipeline.shards import ShardSet
from tests.pipeline.gltf_files import cube_glb

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "add_a_dataset.py"


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    root = tmp_path / "catalogue"
    (root / "meshes").mkdir(parents=True)
    (root / "meshes" / "a1.glb").write_bytes(cube_glb())
    items = [
        {"id": "A-1", "file": "meshes/a1.glb", "title": "Oak chair", "kind": "chair"},
        {"id": "A-2", "file": "meshes/gone.glb", "title": "Lost"},
        {"id": "A-3", "file": "meshes/../../../etc/passwd", "title": "Elsewhere"},
    ]
    (root / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return root


def make(root: Path, file: Path = EXAMPLE) -> Dataset:
    return make_dataset(str(file), SourceOptions(root))


def test_example__has_under_60_lines_and_gives_what_the_catalogue_says(catalogue: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60
    dataset = make(catalogue)
    records = list(dataset.records())
    assert [record.uid for record in records] == [f"catalogue/A-{n}" for n in (1, 2, 3)]
    assert (records[0].category, records[0].texts) == ("chair", ("Oak chair",))
    assert dataset.count() == 3
    assert len(dataset.load(records[0]).mesh.faces) == 12
    for record in records[1:]:
        with pytest.raises(MeshError, match=r"does not exist|not under"):
            dataset.load(record)


def test_example__a_line_that_is_no_item_is_told(catalogue: Path) -> None:
    with (catalogue / "items.jsonl").open("a") as file:
        file.write('{"id": 5}\n')
    with pytest.raises(InputError, match=r"items.jsonl: line 4 is no item \('title'\)"):
        list(make(catalogue).records())
    (catalogue / "items.jsonl").unlink()
    with pytest.raises(InputError, match="there is no such file; export the catalogue"):
        list(make(catalogue).records())


def test_plugged__works_in_a_process_that_has_not_the_file(catalogue: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(EXAMPLE.read_text())
    sent = tmp_path / "sent"
    sent.write_bytes(pickle.dumps(make(catalogue, file)))
    file.unlink()
    code = (
        f"import pickle; d = pickle.load(open({str(sent)!r}, 'rb')); print(next(d.records()).uid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "catalogue/A-1\n"


def test_plugged__what_decides_the_rows_is_in_the_options(catalogue: Path, tmp_path: Path) -> None:
    before = make(catalogue).options
    assert before == make(catalogue).options
    assert before["source_file"]["file"] == "add_a_dataset.py"
    other = tmp_path / "add_a_dataset.py"
    other.write_text(EXAMPLE.read_text() + "\n# another\n")
    assert make(catalogue, other).options != before
    with (catalogue / "items.jsonl").open("a") as file:
        file.write("\n")
    assert make(catalogue).options["tables"] != before["tables"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere_at_all", r"does not run \(ModuleNotFoundError: No module"),
        ("def (", r"does not run \(SyntaxError: invalid syntax"),
        ("x = 1", "has no SOURCE of type pipeline.datasets.sources.Source; add one"),
        ("SOURCE = 1", "has no SOURCE"),
    ],
)
def test_plugged__a_file_that_is_no_source_is_refused(
    tmp_path: Path, code: str, message: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(InputError, match=f"mine.py: {message}"):
        make(tmp_path, file)
    with pytest.raises(InputError, match="cannot be read"):
        make(tmp_path, tmp_path / "gone.py")


def test_plugged__options_are_checked_as_those_of_our_own_sources(catalogue: Path) -> None:
    with pytest.raises(InputError, match="--subset: the source catalogue does not read it"):
        make_dataset(str(EXAMPLE), SourceOptions(catalogue, subset="x"))
    with pytest.raises(InputError, match="--root: catalogue needs it; export the catalogue"):
        make_dataset(str(EXAMPLE), SourceOptions())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_example__is_embedded_as_our_own_sources_are(catalogue: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "embed"]
    command += [
        "--dataset",
        str(EXAMPLE),
        "--root",
        str(catalogue),
        "--out",
        "shards",
        "--views",
        "2",
        "--image-size",
        "64",
    ]
    done = subprocess.run(
        [*command, "--points", "64", "--max-failures", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shards = ShardSet.open(tmp_path / "shards")
    assert len(shards) == 1
    assert {failure.uid for failure in shards.failures()} == {"catalogue/A-2", "catalogue/A-3"}
