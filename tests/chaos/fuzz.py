"""Coverage-guided fuzzing of our own parsers with atheris (libFuzzer for Python).

    python -m tests.chaos.fuzz --list
    python -m tests.chaos.fuzz glb --seconds 60
    python -m tests.chaos.fuzz all --seconds 60      # a line of a table each

Needs the extra ``fuzz`` (``pip install mrd3d[fuzz]``). An input that is a finding is kept in the
folder ``--keep``; run it again with ``--input FILE``.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.fuzz_targets import Target

TIMEOUT_S = 20  # of one input
MEMORY_MB = 3072


def main() -> int:
    """The command line; the number of targets with findings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("target", nargs="?", default="all")
    parser.add_argument("--list", action="store_true", help="print the targets")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--input", type=Path, help="run this file alone, without atheris")
    options = parser.parse_args()
    # The decoders as Python: numba's code has no coverage, and does not check indices.
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"  # children are forked: no threads before
    if options.input:
        from tests.chaos.fuzz_targets import TARGETS

        good = TARGETS[options.target](options.input.read_bytes())
        sys.stdout.write("good\n" if good else "refused\n")
        return 0
    try:
        import atheris
    except ImportError:
        raise SystemExit("atheris is not installed: pip install mrd3d[fuzz]") from None
    with atheris.instrument_imports(include=["pipeline", "trainer", "evaluation"]):
        from tests.chaos.fuzz_targets import TARGETS
    names = list(TARGETS) if options.target == "all" else options.target.split(",")
    if options.list:
        sys.stdout.write("\n".join(TARGETS) + "\n")
        return 0
    if unknown := [name for name in names if name not in TARGETS]:
        raise SystemExit(f"{unknown[0]}: no such target; use one of {', '.join(TARGETS)}")
    options.keep.mkdir(parents=True, exist_ok=True)
    return sum(_apart(TARGETS[name], name, options.seconds, options.keep) for name in names)


def _apart(target: Target, name: str, seconds: int, keep: Path) -> bool:
    """One target in a child, since libFuzzer ends its process; whether it has a finding."""
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if not child:
            os.dup2(log.fileno(), 2)
            os.dup2(log.fileno(), 1)
            try:
                _fuzz(target, name, seconds, keep)
            finally:
                os._exit(99)
        _, status = os.waitpid(child, 0)
        log.seek(0)
        told = log.read().decode(errors="replace")
    runs = re.findall(r"Done (\d+) runs|(?m:^#(\d+)\s)", told)
    count = max((int(a or b) for a, b in runs), default=0)
    covered = re.findall(r"cov: (\d+)", told)
    code, what = os.waitstatus_to_exitcode(status), "-"
    if code:
        found = re.findall(r"(?m)^(?:[\w.]*(?:Error|Exception)\b.*|==\d+== ERROR.*)$", told)
        what = (found or told.strip().splitlines() or ["?"])[0][:160]
        (keep / f"{name}.log").write_text(told)
    sys.stdout.write(f"| {name} | {count:,} | {covered[-1] if covered else '?'} | {what} |\n")
    sys.stdout.flush()
    return bool(code)


def _fuzz(target: Target, name: str, seconds: int, keep: Path) -> None:
    """Fuzz one target in this process; ends it."""
    import atheris

    from pipeline.common import content_hash

    with tempfile.TemporaryDirectory() as corpus:
        seeds = list(target.seeds())
        for number, seed in enumerate(seeds):
            target(seed)  # imports, and what is made once, are not the input's fault
            (Path(corpus) / str(number)).write_bytes(seed)
        settings = {
            "max_total_time": seconds, "timeout": TIMEOUT_S, "rss_limit_mb": MEMORY_MB,
            "max_len": max(4096, 2 * max(map(len, seeds))), "seed": 1,
        }  # fmt: skip
        arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in settings.items())]

        def run(data: bytes) -> None:
            try:
                target(data)
            except Exception:
                (keep / f"{name}-{content_hash(data)[:8]}").write_bytes(data)
                raise

        atheris.Setup([*arguments, f"-artifact_prefix={keep}/{name}-", corpus], run)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
