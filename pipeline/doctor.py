"""What a job needs of a machine, tried one after another.

A check is *broken* where no job can work without it, and *missing* where it is something that one
may want: a GPU, a hub, a driver.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.common import InputError, cores, versions

State = Literal["ok", "missing", "broken"]
_GB = 1e9
_LITTLE = 5 * _GB  # of disk: some 75,000 objects of the demo teacher
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Check:
    """What was found, and what to do about it."""

    name: str
    state: State
    told: str
    remedy: str = ""


def checks(teacher: str, out: str, address: str | None = None) -> Iterator[Check]:
    """Every check, as it is done: libraries, memory, disk, GPU, renderers, hub, Ray, teacher.

    Nothing raises: what fails is told.
    """
    steps: list[tuple[str, Callable[[], Check]]] = [
        ("Python", _python),
        ("cores and memory", _machine),
        ("disk", lambda: _disk(out)),
        ("GPU", _gpu),
        ("raster renderer", _raster),
        ("gl renderer", _gl),
        ("hub", _hub),
        ("Ray", lambda: _ray(address)),
        (f"teacher {teacher}", lambda: _teacher(teacher)),
    ]
    for name, step in steps:
        try:
            yield step()
        except InputError as error:
            told, _, remedy = str(error).partition("; ")
            yield Check(name, "broken", told, remedy)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            yield Check(
                name, "broken", f"{type(error).__name__}: {first}", "see --debug of `embed`"
            )


def _python() -> Check:
    told = ", ".join(f"{name} {v}" for name, v in versions("mrd3d", "torch", "ray").items())
    version = ".".join(map(str, sys.version_info[:3]))
    lacking = []
    for requirement in importlib.metadata.requires("mrd3d") or []:
        name = re.match(r"[\w.-]+", requirement)
        if name is None or "extra ==" in requirement:
            continue
        try:
            importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            lacking.append(name[0])
    if lacking:
        return Check("Python", "broken", f"missing: {', '.join(lacking)}", "pip install -e .")
    return Check("Python", "ok", f"{version}; {told}")


def _machine() -> Check:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    total = pages * size
    told = f"{cores():g} cores, {total / _GB:.0f} GB"
    if total < 4 * _GB:
        remedy = "a job needs about 3 GB: close other programs, or give --workers 1"
        return Check("cores and memory", "missing", told, remedy)
    return Check("cores and memory", "ok", told)


def _disk(out: str) -> Check:
    from pipeline.shards.storage import is_uri

    if is_uri(out):
        return Check(
            "disk", "ok", f"{out} is a store; `pipeline embed --dry-run` estimates the size"
        )
    place = Path(out).absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return Check("disk", "broken", f"{place} cannot be written to", "give another --out")
    free = shutil.disk_usage(place).free
    told = f"{free / _GB:.0f} GB free in {place}"
    if free < _LITTLE:
        return Check(
            "disk", "missing", told, "`pipeline embed --dry-run` estimates how much a job needs"
        )
    return Check("disk", "ok", told)


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        return Check("GPU", "ok", f"{count} x {card.name}, {card.total_memory / _GB:.0f} GB")
    remedy = "works without a GPU; a large teacher is slow: see docs/teachers.md"
    return Check("GPU", "missing", "no CUDA device", remedy)


def _milliseconds(renderer: str) -> float:
    """Of 12 views of a procedural object, once everything is compiled."""
    from pipeline.cameras import ring
    from pipeline.datasets.procedural import ProceduralDataset
    from pipeline.renderers import get_renderer
    from pipeline.renderers.base import RenderConfig

    source = ProceduralDataset(count=1)
    mesh = source.load(next(iter(source.records()))).mesh
    cameras, config = ring(12), RenderConfig()
    get_renderer(renderer).render(mesh, cameras, config)
    begun = time.perf_counter()
    get_renderer(renderer).render(mesh, cameras, config)
    return 1000 * (time.perf_counter() - begun)


def _raster() -> Check:
    return Check("raster renderer", "ok", f"12 views in {_milliseconds('raster'):.0f} ms")


def _gl() -> Check:
    # In a process of its own, as in the job: what a driver brings along may not go with the rest.
    code = (
        "from pipeline.doctor import _milliseconds as ms\n"
        "from pipeline.renderers.gl_context import gpu_answers\n"
        "where = 'a GPU' if gpu_answers() else 'Mesa, on the CPU'\n"
        "print(f\"{where}: 12 views in {ms('gl'):.0f} ms\")\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == 0:
        return Check("gl renderer", "ok", done.stdout.strip().splitlines()[-1])
    told = (done.stderr.strip().splitlines() or ["it crashed"])[-1].partition("; ")[0]
    remedy = "not needed: raster draws the same pictures; see docs/renderers.md"
    return Check("gl renderer", "missing", told, remedy)


def _hub() -> Check:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(_HUB, timeout=5) as answer:
            return Check("hub", "ok", f"{_HUB} answers ({answer.status})")
    except (urllib.error.URLError, OSError, ValueError):
        remedy = (
            "load teachers from files: --teacher MODEL:/path/to/weights.safetensors, or use demo"
        )
        return Check("hub", "missing", f"{_HUB} does not answer", remedy)


def _ray(address: str | None) -> Check:
    from pipeline.cluster import available, running

    begun = time.monotonic()
    with running(address):
        told = f"{available('CPU'):g} CPUs, {available('GPU'):g} GPUs"
    where = address or "started here"
    return Check("Ray", "ok", f"{where} in {time.monotonic() - begun:.0f} s, {told}")


def _teacher(spec: str) -> Check:
    from pipeline.teacher import load_teacher

    begun = time.monotonic()
    teacher = load_teacher(spec, "cpu")
    vector = teacher.encode_texts(["a red mug"])[0]
    told = f"{teacher.info.label}, width {len(vector)}, loaded in {time.monotonic() - begun:.1f} s"
    return Check(f"teacher {spec}", "ok", told)
