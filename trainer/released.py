"""Released checkpoints of OpenShape and Uni3D as checkpoints of ours.

Their files are state dicts under other names. ``import_weights`` renames the tensors, finds the
sizes in their shapes, checks that every tensor has its place, and writes a checkpoint that
``evaluation`` reads like any other. Files are read as tensors and plain values only: a pickle
that asks for anything else is refused.

What decides a released model beside its weights (read in its public code and model cards):

- OpenShape, ViT-bigG-14: 384 balls of radius .2, y and z of a +y-up cloud exchanged (``axes``).
- OpenShape, CLIP ViT-L/14 and ViT-B/32: 64 balls of radius .4, +y up. The latter has no
  projection: its CLS token, 512 numbers, is the embedding.
- Uni3D: +y up, EVA02-E-14-plus.
- Both were trained on clouds in random order, and a ball keeps its first points: ours are in
  farthest-point order, so the scan is ``strided``. Nearest neighbours do not depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.common import InputError, check_new, file_hash
from pipeline.shards import NEUTRAL_RGB, TeacherInfo
from trainer import checkpoint
from trainer.backbones import build_backbone, resolve_options
from trainer.backbones.measure import count_parameters, on_meta

Layout = Literal["openshape", "uni3d"]
N_POINTS = 10_000  # of the clouds that all of them were trained on
_NESTED = 8  # dicts around the tensors

# Teachers by width; the tag tells where open_clip has it.
OPENSHAPE_TEACHERS = {
    1280: "ViT-bigG-14:laion2b_s39b_b160k",
    768: "ViT-L-14:openai",
    512: "ViT-B-32:openai",
}
UNI3D_TEACHERS = {1024: "EVA02-E-14-plus:laion2b_s9b_b144k"}

# (their name, ours), tried in order; what is None is of the image model and not used.
_OPENSHAPE: tuple[tuple[str, str | None], ...] = (
    (r"ppat\.sa\.mlp_convs\.(\d+)\.(.+)", r"local.linears.\1.\2"),
    (r"ppat\.sa\.mlp_bns\.(\d+)\.(.+)", r"local.norms.\1.\2"),
    (r"ppat\.lift\.0\.(.+)", r"lift.\1"),
    (r"ppat\.lift\.2\.(.+)", r"lift_norm.\1"),
    (r"ppat\.cls_token", r"cls_token"),
    (r"ppat\.transformer\.layers\.(\d+)\.0\.norm\.(.+)", r"blocks.\1.norm_attention.\2"),
    (r"ppat\.transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.(.+)", r"blocks.\1.attention.qkv.\2"),
    (r"ppat\.transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.(.+)", r"blocks.\1.attention.out.\2"),
    (r"ppat\.transformer\.layers\.(\d+)\.1\.norm\.(.+)", r"blocks.\1.norm_mlp.\2"),
    (r"ppat\.transformer\.layers\.(\d+)\.1\.fn\.net\.0\.(.+)", r"blocks.\1.mlp.0.\2"),
    (r"ppat\.transformer\.layers\.(\d+)\.1\.fn\.net\.3\.(.+)", r"blocks.\1.mlp.2.\2"),
    (r"proj\.(.+)", r"project.\1"),
)
_UNI3D: tuple[tuple[str, str | None], ...] = (
    (r"encoder\.first_conv\.0\.(.+)", r"tokenizer.first.\1"),
    (r"encoder\.first_conv\.1\.(.+)", r"tokenizer.first_norm.\1"),
    (r"encoder\.first_conv\.3\.(.+)", r"tokenizer.second.\1"),
    (r"encoder\.second_conv\.0\.(.+)", r"tokenizer.third.\1"),
    (r"encoder\.second_conv\.1\.(.+)", r"tokenizer.third_norm.\1"),
    (r"encoder\.second_conv\.3\.(.+)", r"tokenizer.fourth.\1"),
    (r"encoder2trans\.(.+)", r"lift.\1"),
    (r"trans2embed\.(.+)", r"project.\1"),
    (r"pos_embed\.(.+)", r"position.\1"),
    (r"cls_token", r"cls_token"),
    (r"cls_pos", r"cls_position"),
    (r"visual\.(blocks\..+)", r"\1"),
    (r"visual\.fc_norm\.(.+)", r"fc_norm.\1"),
    (r"visual\.(patch_embed|pos_embed|cls_token|head|rope|mask_token)\b.*", None),
)
# (dim, depth, mlp, local) of the ladder to its name.
_OPENSHAPE_SIZES = {
    (256, 6, 1024, 96): "pointbert-5m",
    (512, 6, 1024, 128): "pointbert-13m",
    (512, 12, 1024, 128): "pointbert-26m",
    (512, 12, 1536, 256): "pointbert-32m",
    (768, 12, 2304, 256): "pointbert-72m",
    (768, 24, 3072, 256): "pointbert-171m",
}
_UNI3D_SIZES = {
    (192, 12): "uni3d-ti",
    (384, 12): "uni3d-s",
    (768, 12): "uni3d-b",
    (1024, 24): "uni3d-l",
    (1408, 40): "uni3d-g",
}


@dataclass(frozen=True)
class Released:
    """A released model in our names."""

    backbone: str
    options: dict[str, Any]  # all of them
    width: int
    teacher: str  # MODEL:TAG of open_clip; "" where the width does not tell
    weights: dict[str, Tensor]  # float32


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file or of a PyTorch file, which may nest them in dicts.

    Raises ``InputError`` for a file that is missing, damaged, without tensors, or that needs more
    than tensors and plain values to be read.
    """
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; give the released weights") from error
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path}: damaged ({first}); fetch it again") from error
    value = checkpoint.load_tensors(path)
    for _ in range(_NESTED):  # not for ever: a dict may hold itself
        nested = (
            [value[key] for key in ("state_dict", "module", "model") if key in value]
            if (isinstance(value, Mapping))
            else []
        )
        inner = next((item for item in nested if isinstance(item, Mapping)), None)
        if inner is None:
            break
        value = inner
    tensors = (
        {str(key): item for key, item in value.items() if isinstance(item, Tensor)}
        if isinstance(value, Mapping)
        else {}
    )
    if not tensors:
        raise InputError(f"{path}: holds no named tensors; give a file of released weights")
    for name, tensor in tensors.items():
        # A view may repeat one number without end.
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise InputError(f"{path}: {name[:80]} is no plain tensor; give the released file")
    return tensors


def convert(layout: Layout, weights: Mapping[str, Tensor], name: str) -> Released:
    """Released tensors in our names; ``name`` is told in messages.

    Raises ``InputError`` when they are of no known size, or when tensors are missing, left over
    or of another shape.
    """
    released = _openshape(weights, name) if layout == "openshape" else _uni3d(weights, name)
    expected = on_meta(released.backbone, released.width, released.options).state_dict()
    missing = sorted(set(expected) - set(released.weights))
    surplus = sorted(set(released.weights) - set(expected))
    if missing or surplus:
        detail = f"{missing[0]} is missing" if missing else f"{surplus[0]} has no place"
        raise InputError(
            f"{name}: not whole weights of {released.backbone} ({detail}, "
            f"{len(missing) + len(surplus)} in all); give the released file as it is"
        )
    for key, tensor in released.weights.items():
        if tensor.shape != expected[key].shape:
            raise InputError(
                f"{name}: {key} has shape {tuple(tensor.shape)}, {released.backbone} needs "
                f"{tuple(expected[key].shape)}; this variant is not supported"
            )
    return released


def import_weights(
    layout: Layout,
    path: Path,
    out: Path,
    *,
    teacher: str | None = None,
    axes: Literal["xyz", "xzy"] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint of ours from a released file; returns its ``config.json``.

    ``teacher`` (MODEL:TAG of open_clip) and ``axes`` override what the release is known for, for
    weights that others trained in the same layout. Raises ``InputError`` for a file that cannot
    be read or converted, and when ``out`` is there (``overwrite`` replaces a checkpoint).
    """
    check_new(
        out, "--out", overwrite, kind="a checkpoint", marks=[(checkpoint.CONFIG, checkpoint.FORMAT)]
    )
    released = convert(layout, read_weights(path), str(path))
    config = _config(released, layout, path, teacher, axes)
    checkpoint.save(out, config, released.weights)
    return checkpoint.read_config(out)


def load_released(path: Path, device: str | torch.device = "cpu") -> checkpoint.LoadedModel:
    """The model of a released file as it is, without a checkpoint of ours.

    Which of the two layouts it has is told by its names. Raises ``InputError`` for a file that
    cannot be read or converted.
    """
    weights = read_weights(path)
    layout: Layout = "uni3d" if any("encoder2trans." in name for name in weights) else "openshape"
    released = convert(layout, weights, str(path))
    config = _config(released, layout, path)
    spec = config["backbone"]
    backbone = build_backbone(spec["name"], released.width, spec["options"])
    backbone.load_state_dict(released.weights)
    backbone.to(device).eval().requires_grad_(False)
    teacher = TeacherInfo(**config["teacher"])
    sha256 = config["released"]["sha256"]
    return checkpoint.LoadedModel(backbone, config, teacher, N_POINTS, 0, path, sha256)


def _config(
    released: Released,
    layout: Layout,
    path: Path,
    teacher: str | None = None,
    axes: Literal["xyz", "xzy"] | None = None,
) -> dict[str, Any]:
    """What ``config.json`` says of a released model."""
    spec = teacher or released.teacher
    if not spec:
        raise InputError(
            f"{path}: embeds to {released.width} numbers, which is no teacher of {layout}; "
            "name it with --teacher MODEL:TAG"
        )
    options = dict(released.options)
    if axes is not None:
        options["axes"] = axes
    model = on_meta(released.backbone, released.width, options)
    return {
        "recipe": None,
        "backbone": {"name": released.backbone, "options": options},
        "n_parameters": count_parameters(model),
        "teacher": asdict(named_teacher(spec, released.width)),
        "data": {"shards": [], "n_points": N_POINTS},
        "n_points": N_POINTS,
        "up_axis": "+y",
        "neutral_rgb": NEUTRAL_RGB,
        "ema": False,
        "step": 0,
        "samples_seen": 0,
        "released": {"layout": layout, "file": path.name, "sha256": file_hash(path)},
    }


def named_teacher(spec: str, width: int) -> TeacherInfo:
    """The record of a teacher known by name alone. Raises ``InputError`` for no MODEL:TAG."""
    model, separator, tag = spec.partition(":")
    if not (model and separator and tag):
        raise InputError(f"--teacher {spec}: not of the form MODEL:TAG, as in ViT-L-14:openai")
    # OpenAI's weights are the ones that open_clip runs with QuickGELU. Large models end at a
    # multiplier of 100, where the training clamps it.
    config = {"model_cfg": {"quick_gelu": tag == "openai"}}
    return TeacherInfo(model, tag, config, width, 100.0, [], [])


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: v for key, v in weights.items() if key.startswith(prefix)}


def rename(layout: Layout, weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Our names, linear layers instead of convolutions of size 1, float32.

    ``weights`` have the names of the encoder, without what is wrapped around it. Raises
    ``InputError`` for a tensor that no supported variant has.
    """
    rules = _OPENSHAPE if layout == "openshape" else _UNI3D
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        found = ((re.fullmatch(pattern, key), ours) for pattern, ours in rules)
        match, ours = next(((m, ours) for m, ours in found if m), (None, None))
        if match is None:
            raise InputError(f"{name}: tensor {key} is of no supported variant")
        if ours is None:
            continue
        ours = match.expand(ours)
        if ours.startswith("cls_"):
            tensor = tensor.flatten()
        elif tensor.ndim > 2:
            tensor = tensor.flatten(1)  # (out, in, 1, ...)
        renamed[ours] = tensor.float() if tensor.is_floating_point() else tensor
    return renamed


def _openshape(weights: Mapping[str, Tensor], name: str) -> Released:
    clip = _below(weights, "pc_encoder.")  # the models for CLIP ViT-L/14 and ViT-B/32
    found = clip or _below(weights, "module.") or dict(weights)
    if "sa.mlp_convs.0.weight" in found:  # without projection there is no outer module
        found = {f"ppat.{key}": tensor for key, tensor in found.items()}
    ours = rename("openshape", found, name)
    try:
        dim = len(ours["cls_token"])
        depth = len({key.split(".")[1] for key in ours if key.startswith("blocks.")})
        size = (dim, depth, len(ours["blocks.0.mlp.0.bias"]), len(ours["local.linears.2.bias"]))
        width = len(ours["project.bias"]) if "project.bias" in ours else dim
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{name}: no weights of OpenShape's Point-BERT ({error} is missing)"
        ) from (error)
    if size not in _OPENSHAPE_SIZES:
        raise InputError(
            f"{name}: a Point-BERT of width {size[0]}, depth {size[1]}, MLP {size[2]}, local "
            f"feature {size[3]}; OpenShape has none such"
        )
    backbone = _OPENSHAPE_SIZES[size]
    options: dict[str, Any] = {"scan": "strided", "projection": "project.bias" in ours}
    if clip:
        options |= {"centroids": 64, "radius": 0.4, "neighbours": 256}
    else:
        options["axes"] = "xzy"
    teacher = OPENSHAPE_TEACHERS.get(width, "")
    return Released(backbone, resolve_options(backbone, options), width, teacher, ours)


def _uni3d(weights: Mapping[str, Tensor], name: str) -> Released:
    found = _below(weights, "module.") or dict(weights)
    ours = rename("uni3d", _below(found, "point_encoder."), name)
    try:
        depth = len({key.split(".")[1] for key in ours if key.startswith("blocks.")})
        size = (len(ours["cls_token"]), depth)
        width = len(ours["project.bias"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{name}: no weights of Uni3D ({error} is missing)") from error
    if size not in _UNI3D_SIZES:
        raise InputError(
            f"{name}: a trunk of width {size[0]} and depth {size[1]}; Uni3D has none such"
        )
    backbone = _UNI3D_SIZES[size]
    teacher = UNI3D_TEACHERS.get(width, "")
    return Released(backbone, resolve_options(backbone), width, teacher, ours)
