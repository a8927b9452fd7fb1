"""A run's student as files for other programs: safetensors, ONNX, or torch.export's .pt2.

An export is a folder that appears complete or not at all:

    model.safetensors, model.onnx or model.pt2
    config.json        what the checkpoint says of itself, and how it was exported
    README.md          the model card

The graph formats hold the encoder with its normalisation:

    xyz (B, N, 3) float32 in [-1, 1] and rgb (B, N, 3) float32 in [0, 1], both prepared as those
    of shards are (``Student.encode``), N the student's -> embedding (B, D), L2-normalised

B is free, N is fixed. Every export is read back and compared with the student on random clouds
before it gets its name.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.common import InputError, atomic_path, check_new, file_hash, versions
from trainer.backbones import build_backbone
from trainer.card import model_card
from trainer.checkpoint import CONFIG, FOLDER, FORMAT, WEIGHTS, LoadedModel, is_best, load_model
from trainer.grouping import without_chunks
from trainer.student import HUB, Student, as_student

Format = Literal["safetensors", "onnx", "pt2"]
Forward = Callable[[Tensor, Tensor], Tensor]

GRAPH_FORMAT = "mrd3d-export"  # of config.json beside a graph; safetensors stay a checkpoint
FILES: dict[str, str] = {"safetensors": WEIGHTS, "onnx": "model.onnx", "pt2": "model.pt2"}
# Largest difference of a number of a unit vector. Another runtime rounds otherwise, and a point at
# the rim of a neighbourhood may then fall out of it.
TOLERANCE: dict[str, float] = {"safetensors": 0.0, "onnx": 1e-3, "pt2": 1e-5}
BATCHES = (1, 3)  # clouds that an export is compared on, at a time
MAX_BATCH = 65_536
LARGE = 1_500_000_000  # bytes of weights beyond which ONNX keeps them in a file of their own
SEED = 0

USAGE = {
    "safetensors": """
```python
from trainer import load_student

model = load_student("{name}")
embeddings = model.encode(xyz, rgb)  # (B, {width}); any clouds, +y up, colours in [0, 1]
```
""",
    "onnx": """
```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(embeddings,) = session.run(None, {{"xyz": xyz, "rgb": rgb}})  # float32 (B, {n_points}, 3) each
```

Clouds must be prepared as above: `trainer.student.Student.prepare` does it.
""",
    "pt2": """
```python
import torch

model = torch.export.load("model.pt2").module()
embeddings = model(xyz, rgb)  # float32 (B, {n_points}, 3) each
```

Clouds must be prepared as above: `trainer.student.Student.prepare` does it.
""",
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    out: Path
    file: Path
    source: Path  # the checkpoint
    max_difference: float  # from the student, over all numbers of the embeddings
    clouds: int  # that they were compared on

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "out": str(self.out),
            "file": str(self.file),
            "source": str(self.source),
            "max_difference": self.max_difference,
            "clouds": self.clouds,
        }


class Encoder(nn.Module):
    """The graph that is exported: a backbone and the normalisation of its output."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, xyz: Tensor, rgb: Tensor) -> Tensor:
        """(B, D) L2-normalised embeddings of (B, N, 3) points and colours."""
        return F.normalize(self.backbone(xyz, rgb).float(), dim=-1)


def default_out(source: Path, to: str) -> Path:
    """Folder for an export beside the run: its name, for a checkpoint the step, the format.

    >>> default_out(Path("/runs/mrd"), "onnx").as_posix()
    '/runs/mrd-onnx'
    >>> default_out(Path("/runs/mrd/checkpoints/step-00000010"), "pt2").as_posix()
    '/runs/mrd-step-00000010-pt2'
    """
    folder = source.resolve()
    if is_best(folder):
        return folder.parent.with_name(f"{folder.parent.name}-best-{to}")
    if folder.parent.name == FOLDER:  # what lies there is taken for a checkpoint
        run = folder.parents[1]
        return run.with_name(f"{run.name}-{folder.name}-{to}")
    return folder.with_name(f"{folder.name}-{to}")


def export(
    source: str | Path,
    out: Path,
    to: Format = "safetensors",
    *,
    results: Sequence[Path] = (),
    name: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a checkpoint: of a run its newest, of ``RUN/best`` its best by validation.

    ``results`` are result files of the evaluation of that checkpoint for the card, which calls it
    ``name``. Raises ``InputError`` when ``out`` is there (``overwrite`` replaces an export), when
    there is no whole checkpoint, a result is of another one, a package is missing, or the export
    does not compute what the student does.
    """
    marks = [(CONFIG, GRAPH_FORMAT), (CONFIG, FORMAT)]
    check_new(out, "--out", overwrite, kind="an export or a checkpoint", marks=marks)
    if to not in FILES:
        raise InputError(f"--to {to}: unknown; choose {', '.join(FILES)}")
    loaded = load_model(source)
    if loaded.path.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {out}: contains the exported checkpoint; name another folder")
    student = as_student(loaded, torch.device("cpu"))
    records = [read_result(path, loaded) for path in results]
    file = FILES[to]
    config = {key: value for key, value in loaded.config.items() if key != "files"}
    with atomic_path(out) as folder:
        folder.mkdir()
        write = {"safetensors": write_weights, "onnx": write_onnx, "pt2": write_pt2}[to]
        forward = write(loaded, folder / file)
        difference = compare(student, forward)
        if difference > TOLERANCE[to]:
            raise InputError(
                f"--to {to}: the export differs by {difference:.2g} from the student, more than "
                f"{TOLERANCE[to]:g}; export to safetensors instead"
            )
        config["export"] = {
            "to": to,
            "max_difference": difference,
            "versions": versions("mrd3d", "torch", "onnx", "onnxscript", "onnxruntime"),
        }
        if to != "safetensors":
            config["format"] = GRAPH_FORMAT
        names = sorted(path.name for path in folder.iterdir())
        config["files"] = {item: file_hash(folder / item) for item in names}
        (folder / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        title = name or out.name
        usage = USAGE[to].format(name=title, width=student.width, n_points=student.n_points)
        card = model_card(title, config, usage=usage, results=records)
        (folder / "README.md").write_text(FRONT_MATTER + card)
    return Exported(out, out / file, loaded.path, difference, sum(BATCHES))


# What hubs read of a card. They sort by these; nothing is claimed about a licence.
FRONT_MATTER = """---
library_name: mrd3d
tags: [point-cloud, 3d, clip, feature-extraction]
---

"""


def read_result(path: Path, loaded: LoadedModel) -> dict[str, Any]:
    """A result file of the evaluation of this checkpoint."""
    try:
        record: Any = json.loads(path.read_text())
        of = record["model"]["hash"]
        known = all(key in record for key in ("task", "benchmark", "variant", "count"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"--result {path}: not an evaluation result file ({error})") from error
    if not known:
        raise InputError(f"--result {path}: not an evaluation result file")
    if of != loaded.hash:
        raise InputError(f"--result {path}: not of checkpoint {loaded.path}; evaluate that one")
    return dict(record)


def write_weights(loaded: LoadedModel, file: Path) -> Forward:
    """Copy the weights, so that their hash stays; returns the encoder built anew from the file."""
    shutil.copyfile(loaded.path / WEIGHTS, file)
    spec = loaded.config["backbone"]
    backbone = build_backbone(spec["name"], loaded.teacher.width, spec["options"])
    backbone.load_state_dict(load_file(file))
    return Encoder(backbone.eval().requires_grad_(False))


def program(loaded: LoadedModel) -> torch.export.ExportedProgram:
    """The encoder as a graph with a free batch size."""
    student = as_student(loaded, torch.device("cpu"))
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with torch.no_grad(), without_chunks():
        return torch.export.export(
            Encoder(student.backbone).eval(),
            random_clouds(student, 2),
            dynamic_shapes={"xyz": {0: batch}, "rgb": {0: batch}},
        )


def write_pt2(loaded: LoadedModel, file: Path) -> Forward:
    """Write torch.export's format, the config inside it; returns the graph as read back."""
    extra = {CONFIG: json.dumps(loaded.config)}
    torch.export.save(program(loaded), file, extra_files=extra)
    forward: Forward = torch.export.load(file).module()
    return forward


def write_onnx(loaded: LoadedModel, file: Path) -> Forward:
    """Write ONNX, the config in its metadata; returns a session of onnxruntime on the file."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it and says so less plainly
    except ImportError as error:
        raise InputError(
            f"--to onnx: needs the extra onnx ({error.name} is missing); pip install 'mrd3d[onnx]'"
        ) from error
    distances = {
        torch.ops.aten.cdist.default: distances_by_axis,
        torch.ops.aten._cdist_forward.default: distances_by_axis,
    }
    graph = program(loaded)
    try:
        with quiet():
            made = torch.onnx.export(
                graph.run_decompositions(distances),
                dynamo=True,
                input_names=["xyz", "rgb"],
                output_names=["embedding"],
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, TypeError, AttributeError) as error:  # of other versions
        found = versions("torch", "onnx", "onnxscript")
        listed = ", ".join(f"{name} {version}" for name, version in found.items())
        raise InputError(
            f"--to onnx: {listed} cannot do it together ({str(error).strip().splitlines()[0]}); "
            "upgrade them, or export to pt2"
        ) from error
    assert made is not None
    made.model.metadata_props["mrd3d"] = json.dumps(loaded.config)
    n_bytes = sum(value.nbytes for value in loaded.backbone.state_dict().values())
    made.save(str(file), external_data=n_bytes > LARGE)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(xyz: Tensor, rgb: Tensor) -> Tensor:
        (found,) = session.run(None, {"xyz": xyz.numpy(), "rgb": rgb.numpy()})
        return torch.from_numpy(found)

    return forward


def distances_by_axis(
    ours_BSC: Tensor, theirs_BNC: Tensor, p: float = 2.0, compute_mode: int | None = None
) -> Tensor:
    """``torch.cdist`` in operators that ONNX has: (B, S, N) distances from differences."""
    del p, compute_mode  # the backbones ask for Euclidean distances from differences
    axes = range(ours_BSC.shape[-1])
    squares = [
        (ours_BSC[..., axis : axis + 1] - theirs_BNC[..., axis].unsqueeze(-2)).square()
        for axis in axes
    ]
    total: Tensor = (
        torch.stack(squares).sum(0) if len(squares) > 3 else sum(squares[1:], squares[0])
    )
    return total.sqrt()


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter says of operators that this model does not have."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def random_clouds(student: Student, count: int, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Prepared random clouds: (count, N, 3) points and colours."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, student.n_points, 3)
    xyz = torch.randn(shape, generator=generator)
    return student.prepare(xyz, torch.rand(shape, generator=generator))


@torch.no_grad()
def compare(student: Student, forward: Forward) -> float:
    """Largest difference to the student's embeddings on random clouds; infinite for NaN."""
    largest = 0.0
    for count in BATCHES:
        xyz, rgb = random_clouds(student, count, SEED + count)
        ours = student.encode(xyz, rgb, prepared=True).clone()
        difference = (forward(xyz, rgb) - ours).abs().max()
        largest = max(largest, float(difference.nan_to_num(nan=torch.inf)))
    return largest


def push(
    source: str | Path, repository: str, *, private: bool = True, results: Sequence[Path] = ()
) -> str:
    """Export a run as safetensors and upload it as ``org/name``; returns the page's address.

    The account is the one that ``huggingface_hub`` is logged in with. Raises ``InputError`` for a
    name that is none, and when the hub refuses.
    """
    import tempfile

    repository = repository.removeprefix(HUB)
    if repository.count("/") != 1:
        raise InputError(f"{repository}: not of the form ORG/NAME")
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise InputError("push: needs the package huggingface_hub; pip install it") from error
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / repository.rsplit("/", 1)[-1]
        export(source, out, results=results, name=repository)
        api = HfApi()
        try:
            made = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=out, commit_message="Weights, config and card"
            )
        except Exception as error:
            # What says that there is no network is of another package in each version of the hub's.
            package = type(error).__module__.partition(".")[0]
            if not isinstance(error, OSError | ValueError | HfHubHTTPError) and package not in (
                *("httpx", "httpx2", "httpcore", "requests"),
            ):
                raise
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{repository}: the hub refused ({first}); check the name and `hf auth whoami`"
            ) from error
    return str(made)
