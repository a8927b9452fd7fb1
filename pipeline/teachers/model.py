"""A loaded teacher: pictures and texts to embeddings, in batches, on one device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.captions import fill
from pipeline.common import InputError
from pipeline.shards import TeacherInfo
from pipeline.teachers.device import DTYPES, choose_precision, is_cuda, on_device
from pipeline.teachers.towers import Compiled, ShortTexts, Tower, replace_attention

FINGERPRINT_TEXT = "a photo of a red wooden chair"

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_SPAN = 64  # batches after which results leave page-locked memory


class Teacher:
    """A frozen image-text model with its tokenizer and preprocessing.

    ``batch_size`` bounds memory. With ``fixed_batch`` every forward pass is padded to that many
    items: matrix libraries choose their summation order by shape, so this makes the embedding of
    an object independent of which others it is encoded with, to the bit.

    ``precision`` is that of the weights and of the arithmetic in the towers: ``auto``, ``fp32``,
    ``bf16`` or ``fp16`` (``choose_precision``; what was chosen is ``self.precision``). Pictures are
    normalised in fp32, and embeddings leave as fp32. A model in ``bf16`` is the same teacher to
    ``TeacherInfo.mismatch``: the precision is told, not compared.

    ``compiled`` runs the towers through ``torch.compile`` on CUDA, which takes a minute at the
    first batch of each and batches of one size (``fixed_batch`` is then implied). On a CPU it is
    ignored: measured on ViT-B/32, it gains nothing there.
    """

    has_images = True

    def __init__(
        self,
        model: Any,  # torch.nn.Module of open_clip
        tokenizer: Any,
        names: tuple[str, str],
        model_config: dict[str, Any],
        device: str,
        batch_size: int = 64,
        fixed_batch: bool = False,
        precision: str = "auto",
        compiled: bool = False,
    ) -> None:
        self.precision = choose_precision(precision, device)
        self.tokenizer, self.device = tokenizer, device
        self._cuda = is_cuda(device)
        self.compiled = compiled and self._cuda
        self.batch_size, self.fixed_batch = batch_size, fixed_batch or self.compiled
        self._dtype = DTYPES[self.precision]
        replace_attention(model)
        self.model: Any = model.eval().requires_grad_(False)
        scale = float(self.model.logit_scale.exp())  # in fp32, before it is rounded
        self.model.to(device=device, dtype=self._dtype, memory_format=torch.channels_last)

        preprocess = dict(open_clip.get_model_preprocess_cfg(model))
        size = preprocess["size"]
        self.image_size = int(size if isinstance(size, int) else size[0])
        self._interpolation = str(preprocess.get("interpolation", "bicubic"))
        self._mean = torch.tensor(preprocess["mean"], device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess["std"], device=device).view(1, 3, 1, 1)
        preprocess = {key: list(v) if isinstance(v, tuple) else v for key, v in preprocess.items()}

        image, text, short = self._fingerprint()
        if not (np.isfinite(image).all() and np.isfinite(text).all()):
            better = {"fp16": "try --precision bf16 or fp32", "bf16": "try --precision fp32"}
            raise InputError(
                f"teacher {names[0]}: its embeddings in {self.precision} are not finite; "
                f"{better.get(self.precision, 'the weights are damaged, download them again')}"
            )
        self._short: ShortTexts | None = short
        self._image_tower: Tower = self.model.encode_image
        self._text_tower: Tower = short or self.model.encode_text
        if self.compiled:
            # Texts all at the full context: every other length would be one more to compile.
            self._short = None
            self._image_tower = Compiled(self.model.encode_image, "pictures")
            self._text_tower = Compiled(self.model.encode_text, "texts")
        self.info = TeacherInfo(
            model=names[0],
            pretrained=names[1],
            config={"model_cfg": model_config, "preprocess_cfg": preprocess},
            width=len(image),
            logit_scale=round(scale, 4),
            fingerprint_image=[round(float(x), 6) for x in image],
            fingerprint_text=[round(float(x), 6) for x in text],
        )

    def knows(self, text: str) -> bool:
        """Whether ``text`` can be embedded: any can."""
        del text
        return True

    def encode_images(self, images: U8) -> F32:
        """Embed square sRGB images, (B, S, S, 3) uint8 of any size, to (B, D), L2-normalised.

        They travel to the device as they are and are resized and normalised there.
        """

        def forward(chunk: torch.Tensor) -> torch.Tensor:
            return self._image_tower(self.preprocess(chunk).to(self._dtype))

        pixels = torch.from_numpy(np.require(images, np.uint8, ["C", "W"]))
        return self._in_batches(pixels, forward)

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Embed texts as they are, to (B, D), L2-normalised. Long ones are cut by the tokenizer."""
        if not texts:
            return np.zeros((0, self.info.width), np.float32)
        tokens = torch.as_tensor(self.tokenizer(list(texts)))
        if self._short is None:
            return self._in_batches(tokens, self._text_tower)
        embeds = np.empty((len(tokens), self.info.width), np.float32)
        lengths = self._short.lengths(tokens)
        for length in np.unique(lengths):
            which = np.flatnonzero(lengths == length)
            embeds[which] = self._in_batches(tokens[which, :length], self._text_tower)
        return embeds

    def encode_prompts(
        self, names: Sequence[str], templates: Sequence[str], *, fit_articles: bool = True
    ) -> F32:
        """Embed each name in every template, normalise, average, normalise: (B, D).

        ``templates`` hold ``{}`` where the name goes (Radford et al. 2021, section 3.1.4); an
        article before it is made to fit, or with ``fit_articles`` false stays as it is.
        """
        put = fill if fit_articles else str.format
        prompts = [put(template, name) for name in names for template in templates]
        each = self.encode_texts(prompts).reshape(len(names), len(templates), -1)
        mean = each.mean(1)
        return np.asarray(mean / np.linalg.norm(mean, axis=-1, keepdims=True), np.float32)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Resize and normalise (B, S, S, 3) uint8 to (B, 3, size, size) float32 on the device.

        The same arithmetic as open_clip's own transform, on whole batches.
        """
        pixels = images.permute(0, 3, 1, 2)  # channels last in memory, as the towers like it
        if pixels.shape[-1] != self.image_size:
            # uint8 in and out, as Pillow does it; on CUDA through float and rounding.
            if self._cuda:
                pixels = pixels.to(self.device).float()
            pixels = F.interpolate(
                pixels.contiguous(),
                size=(self.image_size, self.image_size),
                mode=self._interpolation,
                antialias=True,
            )
        pixels = pixels.to(self.device).float().round_().clamp_(0, 255) / 255
        return (pixels - self._mean) / self._std

    @torch.inference_mode()
    def _fingerprint(self) -> tuple[F32, F32, ShortTexts | None]:
        """Embeddings (D,) of the fixed picture and text, each by itself, by the plain model.

        And the shorter way for short texts, if it is there and gives the same.
        """
        pixels = torch.from_numpy(fingerprint_image()[None]).to(self.device)
        image = F.normalize(
            self.model.encode_image(self.preprocess(pixels).to(self._dtype)).float(), dim=-1
        )
        tokens = torch.as_tensor(self.tokenizer([FINGERPRINT_TEXT]))
        text = F.normalize(self.model.encode_text(tokens.to(self.device)).float(), dim=-1)
        short = ShortTexts.of(self.model)
        if short is not None:
            cut = tokens[:, : int(short.lengths(tokens)[0])].to(self.device)
            if F.cosine_similarity(short(cut).float(), text).item() < _SAME:
                short = None  # a version of open_clip that computes texts in another way
        return image[0].cpu().numpy(), text[0].cpu().numpy(), short

    def _in_batches(self, items: torch.Tensor, forward: Tower) -> F32:
        """Normalised embeddings (B, D) of items (B, ...), in order."""
        found = np.empty((len(items), self.info.width), np.float32)
        span = _SPAN * self.batch_size
        for start in range(0, len(items), span):
            part = items[start : start + span]
            try:
                found[start : start + span] = self._encode(part, forward)
            except torch.cuda.OutOfMemoryError as error:
                raise InputError(
                    f"teacher {self.info.label}: batches of {self.batch_size} do not fit into the "
                    "memory of the GPU; use a smaller --batch-size"
                ) from error
        return found

    @torch.inference_mode()
    def _encode(self, items: torch.Tensor, forward: Tower) -> F32:
        # Page-locked, so that results come back behind the work without anyone waiting for them.
        found = torch.empty((len(items), self.info.width), pin_memory=self._cuda)
        for number, chunk in enumerate(on_device(self._chunks(items), self.device)):
            to = found[number * self.batch_size :][: self.batch_size]
            embeds = F.normalize(forward(chunk).float(), dim=-1)
            to.copy_(embeds[: len(to)], non_blocking=True)
        if self._cuda:
            torch.cuda.current_stream(self.device).synchronize()
        return np.asarray(found.numpy(), np.float32)

    def _chunks(self, items: torch.Tensor) -> Iterator[torch.Tensor]:
        """Items in batches; with ``fixed_batch`` the last one is filled up with its last item."""
        for start in range(0, len(items), self.batch_size):
            chunk = items[start : start + self.batch_size]
            missing = self.batch_size - len(chunk)
            if missing and self.fixed_batch:
                chunk = torch.cat([chunk, chunk[-1:].expand(missing, *chunk[0].shape)])
            yield chunk


_SAME = 0.9999  # cosine of one embedding computed in two ways, in bfloat16 too


def fingerprint_image() -> U8:
    """The fixed image of the fingerprint, (224, 224, 3): gradients, an edge and a checkerboard."""
    y, x = np.mgrid[0:224, 0:224]
    image = np.stack([x, y, 223 - (x + y) // 2], -1).astype(np.uint8)
    image[60:164, 60:164] = np.where(((x // 13 + y // 13) % 2)[60:164, 60:164, None], 230, 25)
    return image
