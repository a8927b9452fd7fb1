"""Every fuzz target on its seeds and on changed ones, without atheris."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.fuzz_targets import TARGETS
from tests.chaos.mutate import byte_mutations, word_mutations


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of arithmetic on what is hostile
def test_target__seeds_are_good_and_changed_ones_good_or_refused(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    good = [target(seed) for seed in seeds]
    assert any(good), "none of the seeds is good"
    for number, seed in enumerate(seeds[:3]):
        for _, data in byte_mutations(seed, f"fuzz {name} {number}", 35):
            target(data)
        if len(seed) < 4000:
            for _, data in word_mutations(seed, f"fuzz {name} {number}", 8):
                target(data)


@pytest.mark.slow
def test_fuzz__runs_where_atheris_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="optional: pip install mrd3d[fuzz]")
    command = [sys.executable, "-m", "tests.chaos.fuzz", "pickle,meshopt", "--seconds", "3"]
    command += ["--keep", str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[:1] == "|"]
    assert [line[0] for line in lines] == ["pickle", "meshopt"]
    assert all(int(line[1].replace(",", "")) > 100 for line in lines)
    assert not list(tmp_path.iterdir())
