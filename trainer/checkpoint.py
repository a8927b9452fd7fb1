"""One save and one load: a checkpoint is a directory that appears complete or not at all.

    config.json        what was trained on what: recipe, backbone, teacher, data, step, versions,
                       and the SHA-256 of the other files
    model.safetensors  weights of the student (the moving average when there is one)
    state.pt           optimiser, task, random numbers, data position; absent when exported

A run folder holds them under ``checkpoints/step-XXXXXXXX``. One whose files do not match the
hashes in its config.json is damaged: it is passed over for the one before.
"""

from __future__ import annotations

import json
import math
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.common import InputError, atomic_path, file_hash, versions
from pipeline.shards import TeacherInfo
from trainer.backbones import build_backbone

if TYPE_CHECKING:
    from trainer.backbones import Backbone

FORMAT = "mrd3d-checkpoint"
VERSION = 1
CONFIG, WEIGHTS, STATE = "config.json", "model.safetensors", "state.pt"
FOLDER = "checkpoints"
DEMO = Path(__file__).parent / "students" / "demo"  # comes with the package
BEST = "best.json"  # of a run folder
_REMEDY = "use the version of mrd3d that wrote it"


@dataclass(frozen=True)
class LoadedModel:
    """A trained encoder and what it was trained on."""

    backbone: Backbone  # in eval mode, without gradients
    config: dict[str, Any]  # config.json
    teacher: TeacherInfo
    n_points: int  # leading points of a cloud that it was trained on
    step: int
    path: Path
    hash: str  # SHA-256 of model.safetensors

    @property
    def neutral_rgb(self) -> int:
        """Colour (0-255) of the points of clouds without colour."""
        return int(self.config["neutral_rgb"])


def save(
    path: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint directory atomically; an existing one is replaced.

    ``config`` gets format, version, file hashes and library versions added. Raises ``InputError``
    when there is no room for it; nothing is left then, and those before are untouched.
    """
    try:
        _write(path, config, weights, state)
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and "os error" not in str(error):
            raise
        first = str(error).strip().splitlines()[0]
        hint = f", then `trainer resume {path.parents[1]}`" if path.parent.name == FOLDER else ""
        raise InputError(
            f"{path}: cannot be written ({first}); make room or check the permissions{hint}"
        ) from error


def _write(
    path: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any] | None,
) -> None:
    with atomic_path(path) as folder:
        folder.mkdir()
        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(tensors, folder / WEIGHTS)
        names = [WEIGHTS]
        if state is not None:
            _save_state(state, folder / STATE)
            names.append(STATE)
        full = {
            "format": FORMAT,
            "version": VERSION,
            **config,
            "versions": versions("mrd3d", "torch", "numpy", "safetensors", "pyarrow"),
            "files": {name: file_hash(folder / name) for name in names},
        }
        (folder / CONFIG).write_text(json.dumps(full, indent=1, ensure_ascii=False) + "\n")


class _Stream:
    """A file that keeps its error: ``torch.save`` makes a ``RuntimeError`` of no meaning of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _save_state(state: Mapping[str, Any], path: Path) -> None:
    """Raises ``OSError`` when there is no room."""
    with path.open("wb") as file:
        stream: Any = _Stream(file)
        try:
            torch.save(dict(state), stream)
        except RuntimeError as error:
            if stream.error is None:
                raise
            raise stream.error from error


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint directory.

    Raises ``InputError`` when there is none, or one that is foreign, damaged or newer.
    """
    file = path / CONFIG
    try:
        value = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no {CONFIG}, so this is not a checkpoint; "
            "give a run folder or one of its checkpoints"
        ) from error
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{file}: damaged ({error}); use another checkpoint") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f"{file}: not of a checkpoint; give a run folder or a checkpoint")
    if not isinstance(value.get("version"), int) or value["version"] > VERSION:
        raise InputError(
            f"{file}: checkpoint version {value.get('version')} is newer than {VERSION}, "
            "the newest that this installation reads; upgrade mrd3d"
        )
    return value


def damage(path: Path) -> str | None:
    """Why a checkpoint directory cannot be used, or None when it is whole."""
    try:
        config = read_config(path)
    except InputError as error:
        return str(error)
    files = config.get("files")
    if not isinstance(files, dict) or WEIGHTS not in files:
        return f"{path / CONFIG}: lists no files"
    for name, expected in files.items():
        if name not in (WEIGHTS, STATE):  # a path may lead anywhere
            return f"{path / CONFIG}: lists a file {name[:80]!r}, which no checkpoint has"
        if not (path / name).is_file():
            return f"{path / name}: missing"
        if file_hash(path / name) != expected:
            return f"{path / name}: truncated or changed (hash differs from {CONFIG})"
    return None


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint directories of a run folder, oldest first, damaged ones included."""
    return sorted(path for path in (run / FOLDER).glob("step-*") if path.is_dir())


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return run / FOLDER / f"step-{step:08d}"


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """Newest whole checkpoint of a run folder and the damage of newer ones that it passed."""
    passed: list[str] = []
    for path in reversed(checkpoints(run)):
        reason = damage(path)
        if reason is None:
            return path, passed
        passed.append(reason)
    return None, passed


def best(run: Path) -> Path | None:
    """Best checkpoint of a run by validation, where one is noted and whole."""
    try:
        step = json.loads((run / BEST).read_text())["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(step) is not int:
        return None
    path = checkpoint_path(run, step)
    return path if damage(path) is None else None


def last(run: Path) -> Path:
    """Newest whole checkpoint of a run folder. Raises ``InputError`` when there is none."""
    found, passed = newest(run)
    if found is None:
        detail = f" ({passed[0]})" if passed else ""
        raise InputError(f"{run}: no whole checkpoint in it{detail}; train it first")
    return found


def is_best(path: Path) -> bool:
    """Whether a path asks for the best checkpoint of a run, as ``RUN/best``."""
    return path.name == "best" and not path.exists() and (path.parent / BEST).is_file()


def resolve(path: str | Path) -> Path:
    """Directory of a whole checkpoint for a checkpoint directory or a run folder.

    Of a run folder the newest, for ``RUN/best`` the best by validation. ``demo`` is the student
    that comes with the package, unless there is a folder of that name. Raises ``InputError`` when
    there is none.
    """
    path = Path(path)
    if path == Path("demo") and not path.exists():
        path = DEMO
    if is_best(path):
        found = best(path.parent)
        if found is None:
            raise InputError(
                f"{path}: the best checkpoint is gone or damaged; {path.parent} gives the newest"
            )
        return found
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; give a run folder or a checkpoint")
    if (path / FOLDER).is_dir():
        return last(path)
    read_config(path)
    reason = damage(path)
    if reason:
        raise InputError(f"{reason}; use another checkpoint or export it again")
    return path


def load_model(path: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Encoder of a checkpoint directory, or of a run folder (see ``resolve``).

    A file is taken as weights that OpenShape or Uni3D released. Raises ``InputError`` for anything
    that is not a whole checkpoint of this or an older version, or no such weights.
    """
    if Path(path).is_file():
        from trainer.released import load_released

        return load_released(Path(path), device)
    folder = resolve(path)
    config = read_config(folder)
    try:
        teacher = TeacherInfo.from_json(config.get("teacher"), str(folder / CONFIG), _REMEDY)
        spec = config["backbone"]
        _check_size(spec["name"], teacher.width, spec["options"], folder / WEIGHTS)
        backbone = build_backbone(spec["name"], teacher.width, spec["options"])
        n_points, step = _whole(config, "n_points", 1), _whole(config, "step", 0)
        if _whole(config, "neutral_rgb", 0) > 255:
            raise ValueError(f"neutral_rgb {config['neutral_rgb']} is above 255")
        backbone.load_state_dict(load_file(folder / WEIGHTS))
    except (
        *(LookupError, TypeError, ValueError, AttributeError, OverflowError),
        *(RuntimeError, SafetensorError),
    ) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{folder}: its config and its weights do not fit this installation ({first[:300]}); "
            f"{_REMEDY}"
        ) from error
    backbone.to(device).eval().requires_grad_(False)
    return LoadedModel(backbone, config, teacher, n_points, step, folder, config["files"][WEIGHTS])


def _whole(config: dict[str, Any], key: str, least: int) -> int:
    """A whole number of a config. Raises ``KeyError``, ``ValueError``."""
    value = config[key]
    if type(value) is not int or not least <= value < 1 << 40:
        raise ValueError(f"{key} is {value!r:.60}")
    return value


def _check_size(name: str, width: int, options: dict[str, Any], weights: Path) -> None:
    """Raise ``ValueError`` where a config asks for a larger model than its weights are.

    Before any memory is taken for it: options are numbers in a file, and cost nothing to write.
    """
    from trainer.backbones.measure import on_meta

    with safe_open(weights, framework="pt") as file:
        names = list(file.keys())
        there = sum(math.prod(file.get_slice(key).get_shape()) for key in names)
    larger = ValueError(f"a larger model than its weights, {there:,} numbers in {len(names):,}")
    # Every layer has a tensor: a depth beyond their number would take long even without memory.
    if int(options.get("depth", 0)) > len(names) or len(options.get("strides", ())) > len(names):
        raise larger
    if (
        sum(tensor.numel() for tensor in on_meta(name, width, options).state_dict().values())
        > there
    ):
        raise larger


def load_tensors(path: Path) -> Any:
    """What a PyTorch file holds, where it is tensors and plain values only.

    Raises ``InputError`` for a file that is missing, damaged, claims more than it holds, or needs
    anything else to be read: such a pickle is not run.
    """
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                claimed = sum(entry.file_size for entry in archive.infolist())
            if claimed > size:  # PyTorch stores, and compresses nothing
                raise ValueError(f"it unfolds from {size:,} to {claimed:,} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles, which end as errors anyway
            value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give one that is there") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not read, because it holds more than tensors and plain values (or is no "
            "PyTorch file); give weights saved as .safetensors"
        ) from error
    except Exception as error:  # its reader raises anything on damaged bytes
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: damaged ({first[:300]}); fetch it again") from error
    return value


def load_state(path: Path) -> dict[str, Any]:
    """``state.pt`` of a checkpoint. Raises ``InputError`` for an exported one."""
    if not (path / STATE).is_file():
        raise InputError(f"{path}: an exported checkpoint has no state; resume from a run folder")
    state = load_tensors(path / STATE)
    if not isinstance(state, dict):
        raise InputError(f"{path / STATE}: damaged (not a state); resume from another checkpoint")
    return state


def clear_leftovers(run: Path) -> None:
    """Put right what a killed process left half done; for who holds the run folder alone.

    A checkpoint is replaced by moving the old one aside first: a kill just then leaves neither
    under its name, and the old one is moved back.
    """
    for leftover in (run / FOLDER).glob(".tmp-*"):
        _, retired, name = leftover.name.partition("-retired-")
        if retired and not (run / FOLDER / name).exists():
            leftover.rename(run / FOLDER / name)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def prune(run: Path, keep: int, step: int) -> None:
    """Remove all but the best checkpoint and the ``keep`` newest up to ``step``.

    Later ones are damaged: the run has gone on from one before. They are written anew when it
    comes there, and must not stand in the place of whole ones until then.
    """
    spared, end = best(run), checkpoint_path(run, step)
    for path in [path for path in checkpoints(run) if path <= end][:-keep]:
        if path != spared:
            shutil.rmtree(path)
