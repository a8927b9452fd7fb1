"""A recipe and shards to a run folder: the one entry of training, for the CLI and for code.

A run folder holds ``run.json`` (resolved recipe, shard sets), ``environment.json``,
``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``best.json`` and ``README.md``, the model
card.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.common import InputError, versions, write_json
from pipeline.console import note
from pipeline.shards import NEUTRAL_RGB
from trainer import checkpoint
from trainer.backbones import resolve_options
from trainer.card import write_card
from trainer.config import Recipe, flatten, parse_recipe
from trainer.data import Batches, validation_batches
from trainer.index import Corpus
from trainer.loop import Interrupted, Loop
from trainer.recorder import Recorder
from trainer.task import DistillTask

FORMAT = "mrd3d-run"
RUN = "run.json"

# Settings that a resumed run may change: they decide what is recorded and how fast it goes.
FREE = ("data.cache_mib", "data.prefetch", "train.log_every", "train.keep")


@dataclass(frozen=True)
class RunResult:
    """What a finished run has to show."""

    run: Path
    checkpoint: Path  # the newest
    step: int
    best_step: int  # 0 without validation
    validation: dict[str, float]  # of the last step

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "run": str(self.run),
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "best_step": self.best_step,
            "validation": self.validation,
        }


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is a GPU. Raises ``InputError`` for ``cuda`` without one."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: unknown; choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no GPU; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def train(
    shards: Sequence[str | Path],
    recipe: Recipe | None,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
) -> RunResult:
    """Train into the run folder ``out``.

    ``resume`` goes on from the newest whole checkpoint of ``out``; ``recipe`` and ``shards`` may
    then be left out (None, empty), and must otherwise be those that the run began with.
    Raises ``InputError`` for an existing ``out`` without ``resume``, for anything wrong with the
    shards, and when the loss stops being finite; ``Interrupted`` after a signal, with a
    checkpoint saved.
    """
    target = choose_device(device)
    if resume:
        recipe, shards = _reopen(out, recipe, shards)
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: exists already; add --resume or choose another folder")
    if recipe is None:
        raise InputError("--recipe: missing; name one (`trainer recipes` lists all)")
    corpus = Corpus(shards, recipe)
    task = DistillTask(recipe, corpus.teacher.width, target)
    corpus.require_order(task.student.centroids)
    batches = Batches(corpus, recipe.train.seed, pin=target.type == "cuda")
    total = recipe.train.steps or recipe.train.epochs * batches.per_epoch
    header = _header(recipe, corpus, task)
    start, state = _restore(out, header) if resume else (0, None)
    if not resume:
        out.mkdir(parents=True, exist_ok=True)
        _write_run(out, recipe, shards)
    write_json(out / "environment.json", environment(target))
    note(
        f"{recipe.model.backbone}: {_count(task):.2f}M parameters, {corpus.n_train} shapes to "
        f"train on, {corpus.n_val} held out, {total} steps on {target.type}, {task.dtype_reason}; "
        f"shards {'in memory' if batches.in_memory else 'streamed'}"
    )
    recorder = Recorder(out, start)
    loop = Loop(
        task,
        batches,
        (lambda: validation_batches(corpus)) if corpus.n_val else None,
        recorder,
        lambda loop: _save(out, header, loop, task, recipe),
        train=recipe.train,
        optim=recipe.optim,
        total=total,
    )
    if state is not None:
        loop.load_state_dict(state)
    try:
        loop.run()
    except Interrupted:
        note(f"saved at step {loop.progress.step}; add --resume to go on from there")
        raise
    finally:
        recorder.close()
    progress = loop.progress
    write_card(out, header, vars(progress), total)
    return RunResult(
        out,
        checkpoint.checkpoint_path(out, progress.step),
        progress.step,
        progress.best_step,
        progress.last,
    )


def _count(task: DistillTask) -> float:
    return sum(parameter.numel() for parameter in task.student.parameters()) / 1e6


def _header(recipe: Recipe, corpus: Corpus, task: DistillTask) -> dict[str, Any]:
    """What every checkpoint of the run says of itself."""
    name = recipe.model.backbone
    return {
        "recipe": recipe.model_dump(mode="json"),
        "backbone": {"name": name, "options": resolve_options(name, recipe.model.options)},
        "n_parameters": sum(p.numel() for p in task.student.parameters()),
        "teacher": asdict(corpus.teacher),
        "data": corpus.record(),
        "n_points": recipe.data.n_points,
        "up_axis": "+y",
        "neutral_rgb": NEUTRAL_RGB,
        "ema": recipe.ema.enabled,
    }


def _save(out: Path, header: dict[str, Any], loop: Loop, task: DistillTask, recipe: Recipe) -> None:
    progress = loop.progress
    config = {
        **header,
        "step": progress.step,
        "samples_seen": progress.samples,
        "validation": progress.last,
    }
    path = checkpoint.checkpoint_path(out, progress.step)
    checkpoint.save(path, config, task.final.state_dict(), loop.state_dict())
    if progress.best_step == progress.step:
        write_json(out / "best.json", {"step": progress.step, "score": progress.best_score})
    checkpoint.prune(out, recipe.train.keep)


def _restore(out: Path, header: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """Step and state of the newest whole checkpoint; (0, None) when there is none yet."""
    path, passed = checkpoint.newest(out)
    for reason in passed:
        note(f"passed over a damaged checkpoint: {reason}")
    if path is None:
        note("no whole checkpoint yet: starting from the beginning")
        return 0, None
    config = checkpoint.read_config(path)
    for key in ("uid_hash", "n_train"):
        if config["data"][key] != header["data"][key]:
            raise InputError(
                f"--shards: not the rows that {out} was trained on ({key} differs); "
                "give the same shard sets, or start another run"
            )
    note(f"resuming from {path.name}")
    return int(config["step"]), checkpoint.load_state(path)


def _write_run(out: Path, recipe: Recipe, shards: Sequence[str | Path]) -> None:
    roots = [str(s) if "://" in str(s) else str(Path(s).absolute()) for s in shards]
    value = {"format": FORMAT, "recipe": recipe.model_dump(mode="json"), "shards": roots}
    write_json(out / RUN, value)


def _reopen(
    out: Path, recipe: Recipe | None, shards: Sequence[str | Path]
) -> tuple[Recipe, Sequence[str | Path]]:
    """Recipe and shards of an existing run, checked against those given."""
    file = out / RUN
    if not file.is_file():
        raise InputError(f"--resume: {out} is no run folder ({RUN} is missing); drop --resume")
    try:
        value = json.loads(file.read_text())
        known, roots = parse_recipe(value["recipe"], str(file)), list(value["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged ({error}); start another run") from error
    if recipe is None:
        return known, shards or roots
    ours, theirs = flatten(recipe), flatten(known)
    for key, now in ours.items():
        if now != theirs.get(key) and key not in FREE:
            raise InputError(
                f"--resume: {key} is {now!r}, the run began with {theirs.get(key)!r}; "
                "leave out --recipe and --set, or start another run"
            )
    return recipe, shards or roots


def environment(device: torch.device) -> dict[str, Any]:
    """Machine and library versions of a run, without names of hosts or users."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "versions": versions("mrd3d", "torch", "numpy", "pyarrow", "safetensors", "pydantic"),
    }
