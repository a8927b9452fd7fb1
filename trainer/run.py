"""A recipe and shards to a run folder: the one entry of training, for the CLI and for code.

A run folder holds ``run.json`` (recipe, shard sets), ``environment.json``, ``metrics.jsonl``,
``tensorboard/``, ``checkpoints/``, ``best.json`` and ``README.md``, the model card; ``near.npy``
where a student tells what is alike; ``wandb/`` where records go there too; and ``diverged.json``
when a loss was not finite.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.common import InputError, shown_bytes, write_json
from pipeline.console import note
from pipeline.shards import NEUTRAL_RGB, TeacherInfo, what_lacks
from trainer import checkpoint, near, parallel
from trainer.backbones import least_points, resolve_options
from trainer.card import write_card
from trainer.config import Recipe
from trainer.data import Batches, HeldOut, read_ahead
from trainer.distributed import rank, world_size
from trainer.index import Corpus
from trainer.initial import settled
from trainer.lock import exclusive
from trainer.loop import DivergedError, Interrupted, Loop, Progress
from trainer.optim import warmup_steps
from trainer.recipe import override_recipe
from trainer.recorder import METRICS, Recorder, require_wandb
from trainer.run_folder import absolute, environment, reopen, require_new, write_run
from trainer.task import DistillTask

DIVERGED = "diverged.json"

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class RunResult:
    """What a finished run has to show."""

    run: Path
    checkpoint: Path  # the newest
    step: int
    best_step: int  # 0 without validation
    validation: dict[str, float]  # of the last step

    @classmethod
    def of(cls, run: Path) -> RunResult:
        """That of a run folder. Raises ``InputError`` when it has no whole checkpoint."""
        newest = checkpoint.last(run)
        config = checkpoint.read_config(newest)
        try:
            best = int(json.loads((run / checkpoint.BEST).read_text())["step"])
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
            best = 0
        return cls(run, newest, config["step"], best, config["validation"])

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "run": str(self.run),
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "best_step": self.best_step,
            "validation": self.validation,
        }


def choose_device(name: str, address: str | None = None) -> torch.device:
    """``auto`` is CUDA where there is a GPU. Raises ``InputError`` for ``cuda`` without one.

    With the ``address`` of a cluster it is not this machine that must have it.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: unknown; choose auto, cpu or cuda")
    if name == "cuda" and address is None and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no GPU; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@dataclass(frozen=True)
class Workers:
    """Several processes, by Ray Train (``trainer.launch``)."""

    count: int = 1
    address: str | None = None  # of a Ray cluster; None: this machine
    restarts: int = 3  # from the newest checkpoint, when a process is lost
    least: int | None = None  # go on with so many where no more are to be had; None: ``count``


def train(
    shards: Sequence[str | Path],
    recipe: Recipe | None,
    out: Path,
    *,
    resume: bool = False,
    overrides: Sequence[str] = (),
    device: str = "auto",
    workers: Workers | None = None,
) -> RunResult:
    """Train into the run folder ``out``.

    ``resume`` goes on from the newest whole checkpoint of ``out``; ``recipe`` and ``shards`` may
    then be left out (None, empty), and must otherwise be those that the run began with.
    ``overrides`` (key=value) change the recipe; of a resumed run only keys of ``RESUMABLE``.

    Raises ``InputError`` for an existing ``out`` without ``resume``, for anything wrong with the
    shards, when the loss stops being finite, and when memory or disk are full; ``Interrupted``
    after a signal, with a checkpoint saved.
    """
    workers = workers or Workers()
    target = choose_device(device, workers.address if workers.count > 1 else None)
    if workers.count < 1:
        raise InputError(f"--workers {workers.count}: give at least 1")
    if workers.least is not None and not 1 <= workers.least <= workers.count:
        raise InputError(
            f"--min-workers {workers.least}: give from 1 to {workers.count}, the --workers"
        )
    if resume:
        recipe, shards = reopen(out, recipe, shards, overrides)
    else:
        require_new(out)
        if recipe is None:
            raise InputError("--recipe: missing; name one (`trainer recipes` lists all)")
        recipe = override_recipe(recipe, overrides)
        recipe = recipe.model_copy(update={"model": settled(recipe.model)})
    require_points(recipe)
    require_wandb(recipe.train.wandb)
    if workers.count == 1:
        return fit(shards, recipe, out, resume=resume, device=target, hold=exclusive)
    corpus = Corpus(shards, recipe)
    resolve_options(recipe.model.backbone, recipe.model.options)
    order = corpus.order(recipe.train.seed)
    order.require(workers.count)
    total = recipe.train.steps or recipe.train.epochs * order.steps

    from trainer.launch import launch

    with begun(out, recipe, shards, exclusive) if not resume else exclusive(out):
        # What ``auto`` means is up to the cluster.
        wanted = "auto" if device == "auto" and workers.address else target.type
        launch(out, recipe, absolute(shards), workers, wanted, order.rows_until(total))
    return RunResult.of(out)


@contextmanager
def begun(
    out: Path,
    recipe: Recipe,
    shards: Sequence[str | Path],
    hold: Callable[[Path], AbstractContextManager[None]],
) -> Iterator[None]:
    """Make the run folder ``out``, and ``hold`` it while entered.

    Raises ``InputError`` where another run has begun there since it was last asked: reading the
    shards takes minutes.
    """
    out.mkdir(parents=True, exist_ok=True)
    with hold(out):
        require_new(out)
        write_run(out, recipe, shards)
        yield


def require_points(recipe: Recipe) -> None:
    """Raise ``InputError`` where clouds have fewer points than the backbone groups."""
    model, count = recipe.model, recipe.data.n_points
    least = least_points(model.backbone, model.options)
    if count < least:
        raise InputError(
            f"data.n_points: {count} are fewer than the {least} that {model.backbone} takes as "
            f"centroids or neighbours; --set data.n_points={least}, or lower "
            "model.options.centroids and model.options.neighbours"
        )


def fit(
    shards: Sequence[str | Path],
    recipe: Recipe,
    out: Path,
    *,
    resume: bool,
    device: torch.device,
    say: Callable[[str], None] = note,
    asked_to_stop: Callable[[], bool] = lambda: False,
    hold: Callable[[Path], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> RunResult:
    """What each process of a run does; see ``train``. With several, only the first one writes.

    ``say`` gets lines for the user; ``hold`` keeps others off the run folder.
    """
    corpus = Corpus(shards, recipe)
    asked, recipe = recipe, corpus.recipe
    with _explained(out, recipe), ExitStack() as held:
        if resume:
            held.enter_context(hold(out))
            parallel.first_does(partial(checkpoint.clear_leftovers, out))
        # Once there is a checkpoint, the weights that the run began with may be gone.
        begins = bool(recipe.model.init or recipe.model.trunk)
        restored = begins and resume and checkpoint.newest(out)[0] is not None
        task = DistillTask(recipe, corpus.teacher.width, device, restored=restored)
        corpus.require_order(task.student.centroids)
        vectors = near.find_vectors(corpus, out, device, restored=restored, dtype=task.dtype)
        batches = _open(corpus, recipe, device, vectors)
        total = recipe.train.steps or recipe.train.epochs * batches.per_epoch
        header = _header(recipe, corpus, task)
        if rank() == 0 and not resume:
            held.enter_context(begun(out, asked, shards, hold))
        start, state = _restore(out, header, say) if resume else (0, None)
        recorder = None
        if rank() == 0:
            write_json(out / "environment.json", environment(device))
            if not restored:
                near.keep_vectors(corpus, vectors, out)
            due = state is not None and state["progress"].get("validation_due", False)
            recorder = Recorder(
                out, start, recipe.train.wandb, header["recipe"], validates_again=due
            )
            held.callback(recorder.close)
        _introduce(recipe, corpus, task, batches, total, say)
        held_out = HeldOut(corpus, batches.room)
        loop = Loop(
            task,
            batches,
            (lambda: read_ahead(held_out.batches(), recipe.data.prefetch))
            if corpus.n_val
            else None,
            recorder,
            lambda loop: _save(out, header, loop, task, recipe),
            train=recipe.train,
            optim=recipe.optim,
            total=total,
            asked_to_stop=asked_to_stop,
        )
        if state is not None:
            loop.load_state_dict(state)
            if recorder and loop.progress.best_step:
                _write_best(out, loop.progress)  # the run may have been killed before it did
        try:
            loop.run()
        except Interrupted:
            raise Interrupted(
                f"saved at step {loop.progress.step}; `trainer resume {out}` continues from there"
            ) from None
        except DivergedError as error:
            parallel.first_does(partial(_report, out, corpus, error))
            raise
        progress = loop.progress
        if rank() == 0:
            write_card(out, header, vars(progress), total)
    return RunResult(
        out,
        checkpoint.checkpoint_path(out, progress.step),
        progress.step,
        progress.best_step,
        progress.last,
    )


def _open(
    corpus: Corpus, recipe: Recipe, device: torch.device, vectors: near.Vectors | None
) -> Batches:
    """The batches of this process. Raises ``InputError`` when the shards do not fit into memory."""
    try:
        return Batches(
            corpus,
            recipe.train.seed,
            vectors=vectors,
            rank=rank(),
            world=world_size(),
            pin=device.type == "cuda",
        )
    except MemoryError as error:
        raise InputError(
            "out of memory when the shards were read into it; --set data.cache_mib=0 streams them"
        ) from error


def _introduce(
    recipe: Recipe,
    corpus: Corpus,
    task: DistillTask,
    batches: Batches,
    total: int,
    say: Callable[[str], None],
) -> None:
    """Tell the user what is about to be trained on what."""
    for root in corpus.roots:
        lacking = what_lacks(root)
        if lacking:
            say(lacking)
    if corpus.left_out:
        say(f"nothing in the shards to read: {', '.join(corpus.left_out)} switched off")
    if task.begun_with is not None:
        differs = task.begun_with.mismatch(corpus.teacher)
        say(
            f"begins with the weights of {recipe.model.init}"
            + (f", trained on another teacher than the shards' ({differs})" if differs else "")
        )
    processes = "" if world_size() == 1 else f" in {world_size()} processes ({task.replicas.kind})"
    say(
        f"{recipe.model.backbone}: {_count(task):.2f}M parameters, {corpus.n_train} shapes to "
        f"train on, {corpus.n_val} held out, {total} steps on {task.device.type}{processes}, "
        f"{task.dtype_reason}; shards {'in memory' if batches.in_memory else 'streamed'}"
    )
    # Weights, the same in the state with two moments of each, and their mean where it is kept.
    copies = 4 + recipe.ema.enabled
    size = copies * sum(p.numel() * p.element_size() for p in task.student.parameters())
    say(f"checkpoints of about {shown_bytes(size)} each, {recipe.train.keep} and the best are kept")
    warmup, tenth = warmup_steps(recipe.optim, total), total // 10
    if warmup >= total:
        shorter = f"={tenth}" if tenth else "=0 --set optim.warmup=0"
        say(
            f"the warm-up takes {warmup:g} steps, and the run has {total}: the full rate is never "
            f"reached; --set optim.warmup_steps{shorter} to reach it"
        )
    if corpus.one_category:
        say(
            "all shapes to train on are of one category, so with loss.align.drop_same_category "
            "none is a negative of another; --set loss.align.drop_same_category=false"
        )
    if recipe.data.near > 1 and recipe.data.near_after == 0:
        say("grouping similar objects for the first epoch; with many shapes this takes minutes")
    if recipe.data.weights:
        shares = [quota / batches.rows_per_epoch for quota in batches.order.quota]
        told = [
            f"{Path(root.rstrip('/')).name} {share:.1%}"
            for root, share in zip(corpus.roots, shares, strict=True)
        ]
        say(f"shares of the samples: {', '.join(told)}")


@contextmanager
def _explained(out: Path, recipe: Recipe) -> Iterator[None]:
    """Full memory and full disks as ``InputError`` with what to do about them."""
    try:
        yield
    except MemoryError as error:
        raise _out_of_memory("memory", recipe) from error
    except torch.OutOfMemoryError as error:
        raise _out_of_memory("GPU memory", recipe) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU has no error of its own for it
            raise
        raise _out_of_memory("memory", recipe) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); make room, then `trainer resume {out}` "
            "continues from the newest checkpoint"
        ) from error


def _out_of_memory(what: str, recipe: Recipe) -> InputError:
    """The next option that lowers what a step needs, in the order of what they cost."""
    rows = recipe.train.micro_batch or -(-recipe.data.batch_size // world_size())
    if recipe.train.micro_batch == 0 or (recipe.train.recompute and rows > 2):
        way = f"--set train.micro_batch={max(1, rows // 2)} (the gradients stay the same)"
    elif not recipe.train.recompute:
        way = "--set train.recompute=true, or a smaller train.micro_batch"
    else:
        way = "lower data.batch_size or data.n_points"
    return InputError(f"out of {what} with {rows} rows per pass through the backbone; {way}")


def _report(out: Path, corpus: Corpus, error: DivergedError) -> None:
    """Write the uids of the batch down and raise ``InputError``."""
    rows = corpus.describe(error.rows)
    wrong = [row for row in rows if row["not_finite"]]
    write_json(
        out / DIVERGED,
        {
            "step": error.step,
            "loss": str(error.loss),  # JSON has no number for it
            "grad_norm": str(error.norm),
            "not_finite": wrong,
            "batch": [row["uid"] for row in rows],
        },
    )
    if wrong:
        raise InputError(
            f"{error}: {len(wrong)} of its {len(rows)} shapes have embeddings that are not finite "
            f"({wrong[0]['uid']} in {wrong[0]['shards']}), see {out / DIVERGED}; embed them again"
        )
    raise InputError(
        f"{error}; lower --set optim.lr or raise the loss temperatures; the uids of its batch are "
        f"in {out / DIVERGED}"
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
    weights, state = parallel.whole(task.final.state_dict()), loop.state_dict()

    def write() -> None:
        checkpoint.save(path, config, weights, state)
        if progress.best_step == progress.step:
            _write_best(out, progress)
        checkpoint.prune(out, recipe.train.keep, progress.step)

    parallel.first_does(write)


def _write_best(out: Path, progress: Progress) -> None:
    value = {"step": progress.best_step, "score": progress.best_score}
    write_json(out / checkpoint.BEST, value)


def _restore(
    out: Path, header: dict[str, Any], say: Callable[[str], None]
) -> tuple[int, dict[str, Any] | None]:
    """Step and state of the newest whole checkpoint; (0, None) when there is none yet."""
    path, passed = parallel.first_does(partial(checkpoint.newest, out))
    for reason in passed:
        say(f"passed over a damaged checkpoint: {reason}")
    if path is None:
        if (out / METRICS).exists():
            say("no whole checkpoint yet: starting from the beginning")
        return 0, None
    config = checkpoint.read_config(path)
    differs = TeacherInfo(**config["teacher"]).mismatch(TeacherInfo(**header["teacher"]))
    if differs:
        raise InputError(
            f"--shards: made by another teacher than those that {out} was trained on ({differs}); "
            "give the same shard sets, or start another run"
        )
    for key in ("uid_hash", "n_train", "row_hash", "split_hash", "part_hash"):
        if key not in config["data"]:  # of an earlier version
            continue
        if config["data"][key] != header["data"][key]:
            raise InputError(
                f"--shards: not the rows that {out} was trained on ({key} differs); "
                "give the same shard sets in the same order, or start another run"
            )
    say(f"resuming from {path.name}")
    return int(config["step"]), checkpoint.load_state(path)
