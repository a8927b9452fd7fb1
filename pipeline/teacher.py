"""The teacher: any open_clip model behind one small surface.

A teacher is named by a spec:

- ``demo``: the small model shipped with this package (it knows only the procedural world);
- ``MODEL:TAG``, as in ``ViT-bigG-14:laion2b_s39b_b160k``: a tag of open_clip, downloaded by it;
- ``MODEL:/path/to/weights.safetensors`` (or ``.pt``, ``.bin``): local weights;
- ``hf-hub:ORG/NAME`` and ``local-dir:/path``: the schemas of open_clip;
- ``vectors:FILE[,NAMES[,IMAGES]]``: text embeddings by name from a file, and the pictures of the
  teacher IMAGES or none (``pipeline.teachers.vectors``).

Activation (QuickGELU or GELU), image size, mean, standard deviation and interpolation are taken
from the resolved configuration, never assumed. What a loaded one does stands in
``pipeline.teachers.model``.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch

from pipeline.common import InputError, file_hash
from pipeline.console import note
from pipeline.shards import TeacherInfo
from pipeline.shards.manifest import VECTORS
from pipeline.teachers import vectors
from pipeline.teachers.device import PRECISIONS, choose_device
from pipeline.teachers.model import FINGERPRINT_TEXT, Teacher, fingerprint_image
from pipeline.teachers.vectors import VectorTeacher

__all__ = [
    "DEMO_DIR",
    "FINGERPRINT_TEXT",
    "PRECISIONS",
    "AnyTeacher",
    "Teacher",
    "choose_device",
    "fingerprint_image",
    "load_clip",
    "load_matching",
    "load_teacher",
    "shortened_bpe",
]

DEMO_DIR = Path(__file__).parent / "teachers" / "demo"

AnyTeacher = Teacher | VectorTeacher


def load_teacher(spec: str, device: str = "cpu", **options: Any) -> AnyTeacher:
    """Load the teacher that ``spec`` names (see the module). ``options`` go to ``Teacher``.

    Raises ``InputError`` when the model, tag or file is unknown, damaged or cannot be fetched.
    """
    schema, _, rest = spec.partition(":")
    if schema == VECTORS:
        return vectors.load_vectors(rest, device, **options)
    return load_clip(spec, device, **options)


def load_clip(spec: str, device: str = "cpu", **options: Any) -> Teacher:
    """The same of a model of open_clip: everything but ``vectors:``."""
    if spec == "demo":
        return _load_local_dir(DEMO_DIR, ("demo", ""), device, options)
    schema, _, rest = spec.partition(":")
    if schema == "local-dir":
        path = Path(rest).expanduser()
        return _load_local_dir(path, (f"local-dir:{path.name}", ""), device, options)
    if schema == "hf-hub":
        model, tokenizer = _create(spec, spec, None)
        return Teacher(model, tokenizer, (spec, ""), {"schema": "hf-hub"}, device, **options)
    return _load_named(schema, rest, device, options)


def load_matching(
    info: TeacherInfo, spec: str | None = None, device: str = "cpu", **options: Any
) -> AnyTeacher:
    """Load the teacher that made ``info`` again and check that it is the same one.

    ``spec`` says where it is when it was a local file. A teacher without a fingerprint (released
    embeddings) is known by its name: a file of the same model that ``spec`` names is taken on
    trust, and a note says so. Raises ``InputError`` otherwise, or when the fingerprint of what was
    loaded differs.
    """
    if spec is None:
        if info.model == VECTORS:
            raise InputError(
                f"teacher {info.label} was a file of text vectors; give it with --teacher "
                f"{VECTORS}:FILE[,NAMES]"
            )
        if "@sha256:" in info.pretrained or info.model.startswith("local-dir:"):
            form = "local-dir" if info.model.startswith("local-dir:") else info.model
            raise InputError(f"teacher {info.label} was local; give it with --teacher {form}:/path")
        named = not info.model.startswith("hf-hub:") and info.model != "demo"
        spec = f"{info.model}:{info.pretrained}" if named else info.model
    teacher = load_teacher(spec, device, **options)
    reason = info.mismatch(teacher.info)
    if reason and not info.has_fingerprint and "@sha256:" in teacher.info.pretrained:
        renamed = replace(teacher.info, pretrained=info.pretrained)
        reason = info.mismatch(renamed)  # same model, width and activation
        if not reason:
            note(
                f"teacher {spec}: assumed to be {info.label}; the embeddings have no "
                "fingerprint to verify this"
            )
    if reason:
        raise InputError(
            f"teacher {spec} is not the one that made the embeddings ({info.label}): {reason}; "
            "give the right one with --teacher"
        )
    return teacher


def _load_local_dir(
    path: Path, names: tuple[str, str], device: str, options: dict[str, Any]
) -> Teacher:
    config_path = path / "open_clip_config.json"
    if not config_path.is_file():
        raise InputError(f"{config_path}: no such file; a teacher folder needs it and its weights")
    weights = sorted(path.glob("open_clip_model.*"))
    if not weights:
        raise InputError(f"{path}: no open_clip_model.safetensors in the teacher folder")
    try:
        config = dict(json.loads(config_path.read_text(encoding="utf-8"))["model_cfg"])
        merges = int(config["text_cfg"].get("vocab_size", 0)) - _BYTE_TOKENS - _SPECIAL_TOKENS
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError),
        *(ArithmeticError, RecursionError),
    ) as error:
        raise InputError(
            f"{config_path}: not the configuration of an open_clip model ({error!r:.300}); it "
            "needs `model_cfg` with `vision_cfg` and `text_cfg`"
        ) from error
    shortened = 0 < merges < _full_merges() and "hf_tokenizer_name" not in config["text_cfg"]
    model, tokenizer = _create(
        f"local-dir:{path}", f"local-dir:{path}", None, shortened_bpe(merges) if shortened else None
    )
    names = (names[0], names[1] or f"sha256:{file_hash(weights[0])[:16]}")
    return Teacher(model, tokenizer, names, config, device, **options)


def _load_named(name: str, tag: str, device: str, options: dict[str, Any]) -> Teacher:
    known = open_clip.list_models()
    if name not in known:
        close = [m for m in known if name.lower().replace("/", "-")[:8] in m.lower()][:5]
        raise InputError(
            f"--teacher {name}: open_clip has no such model"
            f"{' (close: ' + ', '.join(close) + ')' if close else ''}; "
            "use `demo`, MODEL:TAG, MODEL:/path/to/weights or hf-hub:ORG/NAME"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    path = Path(tag).expanduser()
    if not tag or (tag not in tags and not path.is_file()):
        raise InputError(
            f"--teacher {name}:{tag}: neither a tag nor a file; "
            f"tags of {name}: {', '.join(tags) or 'none'}"
        )
    config = dict(open_clip.get_model_config(name) or {})
    quick = None
    if tag in tags:
        # Some tags were trained with another activation than the bare model name says; the wrong
        # one loads without an error and gives poor embeddings (open_clip issues 771, 915).
        trained_quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
        if trained_quick:
            quick = True
        elif config.get("quick_gelu", False):
            raise InputError(
                f"--teacher {name}:{tag}: these weights were trained with GELU; "
                f"use the model name without -quickgelu"
            )
    config["quick_gelu"] = bool(quick or config.get("quick_gelu", False))
    source = tag if tag in tags else str(path)
    label = tag if tag in tags else f"{path.name}@sha256:{file_hash(path)[:16]}"
    model, tokenizer = _create(name, name, source, force_quick_gelu=bool(quick))
    return Teacher(model, tokenizer, (name, label), config, device, **options)


def _create(
    model_name: str,
    tokenizer_name: str,
    pretrained: str | None,
    bpe: io.BytesIO | None = None,
    force_quick_gelu: bool = False,
) -> tuple[torch.nn.Module, Any]:
    shown = f"{model_name}:{pretrained}" if pretrained else model_name
    # What fails is told in one line below, not in one for each attempt at a download.
    for library in ("open_clip", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = open_clip.create_model(
                model_name,
                pretrained=pretrained,
                force_quick_gelu=force_quick_gelu,
                require_pretrained=True,
                weights_only=True,
            )
            extra = {"bpe_path": bpe} if bpe is not None else {}
            tokenizer = open_clip.get_tokenizer(tokenizer_name, **extra)
    except Exception as error:  # open_clip and its hub client raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(
            f"--teacher {shown}: cannot be loaded ({reason[:200]}); check the name, the file, or "
            "the connection to the model hub (offline: MODEL:/path/to/weights, or `demo`)"
        ) from error
    return model, tokenizer


_BYTE_TOKENS = 512  # of CLIP's byte-pair encoding: 256 bytes, each also as the end of a word
_SPECIAL_TOKENS = 2


def _full_merges() -> int:
    return 49152 - 256 - 2


def shortened_bpe(merges: int) -> io.BytesIO:
    """CLIP's byte-pair encoding cut to its first ``merges`` merges, as open_clip reads it.

    Merges are ordered by priority, so a prefix is a coarser encoding of the same kind. Small
    models need it: the full vocabulary alone would take 25 MB at width 128.
    """
    bpe_path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(bpe_path, "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")[: merges + 1]
    return io.BytesIO(gzip.compress("\n".join(lines).encode()))
