"""Captions from pictures: an optional image captioning model of ``transformers``.

Any model that captions a picture without a prompt fits: BLIP, BLIP-2, GIT, and pairs of a vision
encoder and a text decoder. It runs where the teacher runs, on the views that were rendered, and
its captions have the source ``captioner``. The same pictures give the same captions on the same
machine: decoding is a beam search, nothing is drawn at random.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.captions import clean_caption, text_key
from pipeline.common import InputError, content_hash, file_hash

if TYPE_CHECKING:
    from pipeline.objects import Processed

_SOURCE = "captioner"
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "generation_config.json")


class Captioner:
    """A captioning model with its image processor and tokenizer. Build it once per worker.

    ``batch_size`` bounds memory; every forward pass has exactly that many pictures, so that the
    caption of one does not depend on which others it is made with.
    """

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        tokenizer: Any,
        device: str = "cpu",
        batch_size: int = 16,
        max_new_tokens: int = 40,
        num_beams: int = 3,
    ) -> None:
        self._model = model.eval().requires_grad_(False).to(device)
        self._image_processor, self._tokenizer = image_processor, tokenizer
        self._device, self._batch_size = device, batch_size
        self._options = {
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "do_sample": False,
            "no_repeat_ngram_size": 3,
        }

    def __call__(self, images: NDArray[np.uint8]) -> list[str]:
        """One caption for each of ``images`` (V, S, S, 3) uint8 sRGB, cleaned; empty where none."""
        captions: list[str] = []
        for start in range(0, len(images), self._batch_size):
            chunk = images[start : start + self._batch_size]
            missing = self._batch_size - len(chunk)
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], missing, axis=0)])
            captions += self._captions(padded)[: len(chunk)]
        return [clean_caption(caption) for caption in captions]

    def _captions(self, images: NDArray[np.uint8]) -> list[str]:
        import torch

        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = self._image_processor(images=list(images), return_tensors="pt")
            pixels = read["pixel_values"].to(self._device, next(self._model.parameters()).dtype)
            tokens = self._model.generate(pixel_values=pixels, **self._options)
        return [str(t) for t in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def load_captioner(spec: str, device: str = "cpu", **options: Any) -> Captioner:
    """The captioner in a local folder, or of a hub id such as ``ORG/NAME``.

    ``options`` go to ``Captioner``. On a GPU it runs in half precision. Raises ``InputError`` when
    ``transformers`` is not installed, or the model cannot be loaded or is of another kind.
    """
    transformers = _transformers()
    import torch

    name = _model_name(spec)
    dtype = torch.float16 if device == "cuda" else torch.float32
    with _loading(spec, transformers):
        model = _auto(transformers).from_pretrained(name, torch_dtype=dtype)
        image_processor = transformers.AutoImageProcessor.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    return Captioner(model, image_processor, tokenizer, device, **options)


def check_captioner(spec: str) -> None:
    """Find out before a run begins whether its workers will be able to load a captioner.

    Reads no weights. Raises ``InputError`` as ``load_captioner`` does.
    """
    name = _model_name(spec)
    transformers = _transformers()
    identity(spec)
    with _loading(spec, transformers):
        config = transformers.AutoConfig.from_pretrained(name)
        # What ``from_pretrained`` asks as well, after the weights were fetched.
        if type(config) not in _auto(transformers)._model_mapping:
            raise ValueError(f"a model of the kind {config.model_type} makes no captions")


def _model_name(spec: str) -> str:
    """The folder, or the hub id, that a captioner is loaded from. Raises ``InputError``."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or spec.startswith(("./", "../", "~")):
        raise InputError(f"--captioner {spec}: no such folder; give a model's folder or a hub id")
    return spec


def _auto(transformers: Any) -> Any:
    """The class that finds the model class of a captioner; its name changed."""
    return getattr(transformers, "AutoModelForImageTextToText", None) or getattr(
        transformers, "AutoModelForVision2Seq", None
    )


@contextmanager
def _loading(spec: str, transformers: Any) -> Iterator[None]:
    """Around what ``transformers`` loads: it keeps quiet, and whatever it raises is one error."""
    previous = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # transformers and its hub client raise many kinds
        lines = str(error).strip().splitlines()
        raise InputError(
            f"--captioner {spec}: cannot be loaded ({(lines or [type(error).__name__])[0][:200]}); "
            "give the folder or hub id of an image captioning model such as BLIP"
        ) from error
    finally:
        logging.getLogger("transformers").setLevel(previous)


def identity(spec: str) -> dict[str, str]:
    """What a manifest says of a captioner: its name, and of a local folder the hash of its files.

    Raises ``InputError`` for a folder that is not there or has no weights.
    """
    path = Path(_model_name(spec))
    if not path.is_dir():
        return {"name": spec}
    files = sorted(file for pattern in _WEIGHTS for file in path.glob(pattern))
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise InputError(f"--captioner {spec}: no *.safetensors in the folder; give a model's")
    digest = content_hash(*(f"{file.name} {file_hash(file)}\n" for file in files))
    return {"name": path.resolve().name, "sha256": digest[:16]}


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` views, spread evenly over them, the first among them."""
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]


def caption_objects(
    objects: Sequence[Processed], captioner: Captioner, views: int
) -> list[Processed]:
    """``objects`` with captions of ``views`` of their pictures added to their texts.

    A caption that an object already has (``pipeline.captions.text_key``) is not added again;
    ``text_counts`` says how many were (``captions_made``, ``texts_duplicate``, ``texts_empty``).
    """
    # Of the sizes at which teachers read the views, the largest shows most.
    pictures = [max(item.images.values(), key=lambda views: views.shape[1]) for item in objects]
    chosen = [images[spread(len(images), views)] for images in pictures]
    captions = iter(captioner(np.concatenate(chosen)) if chosen else [])
    found = []
    for item, images in zip(objects, chosen, strict=True):
        texts, counts = list(item.texts), Counter(item.text_counts)
        keys = {text_key(text) for text in texts}
        for _ in images:
            caption = next(captions)
            counts["captions_made"] += 1
            key = text_key(caption)
            if not caption:
                counts["texts_empty"] += 1
            elif key in keys:
                counts["texts_duplicate"] += 1
            else:
                keys.add(key)
                texts.append(caption)
        added = len(texts) - len(item.texts)
        found.append(
            replace(
                item,
                texts=tuple(texts),
                text_sources=(*item.text_sources, *[_SOURCE] * added),
                text_counts=dict(counts),
            )
        )
    return found


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise InputError(
            "--captioner: needs the package transformers; install it with "
            "pip install 'mrd3d[captioner]'"
        ) from None
