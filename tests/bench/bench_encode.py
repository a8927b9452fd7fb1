"""Encoding: a ViT-B/32 of random weights on a CPU core, a ViT-bigG-14 on a GPU where there is one.

The CPU's baseline is open_clip as its own examples use it: its transform on each picture, its
model on one picture at a time or on batches. Speeds are compared in interleaved rounds, in
processor time. The GPU's yardstick is the same card's own matrix product, measured in the same run.
"""

from __future__ import annotations

import copy
import logging
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.captions import DEFAULT_TEMPLATES, collect_texts, expand
from pipeline.common import InputError
from pipeline.console import note
from pipeline.datasets.sources import SourceOptions, make_dataset
from pipeline.teacher import Teacher

CPU_MODEL, GPU_MODEL = "ViT-B-32", "ViT-bigG-14"
BATCH = 32  # of both sides on the CPU, as the job has it
GPU_BATCH = 256
Work = Callable[[], object]
TableParts = tuple[str, list[str], list[list[object]], str]


def vision_flops(config: dict[str, Any]) -> float:
    """Operations (multiplications and additions) of the picture tower of a plain ViT of open_clip.

    Matrix products alone, as a card's peak is counted.
    """
    vision = config["vision_cfg"]
    width, patch = vision["width"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    embedding = 2 * patches * 3 * patch**2 * width
    return float(embedding + _blocks(vision, patches + 1) + 2 * width * config["embed_dim"])


def _blocks(tower: dict[str, Any], tokens: int) -> float:
    width = tower["width"]
    hidden = int(width * tower.get("mlp_ratio", 4.0))
    per_layer = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens**2 * width
    return float(tower["layers"] * per_layer)


def tables(quick: bool) -> list[TableParts]:
    """Title, columns, rows and notes of each table."""
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that the weights are random
    found = [cpu(2 if quick else 3, 32 if quick else 64)]
    if torch.cuda.is_available():
        found.append(gpu(4 if quick else 16))
    else:
        note(f"encode: no CUDA device, so {GPU_MODEL} on a GPU is left out")
    return found


def _pictures(count: int) -> NDArray[np.uint8]:
    """Smooth pictures with some noise: the time does not depend on what is in them."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((224, 224))) for c in coarse])


def _texts(count: int) -> list[str]:
    """What the texts of procedural objects are encoded as: captions, and names in templates."""
    found: list[str] = []
    for record in make_dataset("procedural", SourceOptions(count=count, seed=0)).records():
        for text, source in collect_texts(record).pairs:
            found += expand(text, source, DEFAULT_TEMPLATES)
    return list(dict.fromkeys(found))[:count]


def _rates(cases: dict[str, Work], count: int, rounds: int) -> dict[str, list[float]]:
    """Items a second by case in each round, in processor time; the cases take turns."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for work in cases.values():
        work()
    for _ in range(rounds):
        for name, work in cases.items():
            begun = time.process_time()
            work()
            found[name].append(count / (time.process_time() - begun))
    return found


def _product(size: int, dtype: torch.dtype, rounds: int) -> float:
    """Operations a second of the CPU's matrix product, the best of some."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = []
    for _ in range(rounds + 1):
        begun = time.process_time()
        torch.mm(a, b)
        seconds.append(time.process_time() - begun)
    return 2 * size**3 / min(seconds)


def cpu(rounds: int, count: int) -> TableParts:
    """ViT-B/32 on one core."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain, _, transform = open_clip.create_model_and_transforms(CPU_MODEL)
    plain.eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(CPU_MODEL)
    config = dict(open_clip.get_model_config(CPU_MODEL) or {})
    flops = vision_flops(config)
    teachers = {
        precision: Teacher(
            copy.deepcopy(plain),
            tokenizer,
            (CPU_MODEL, "random"),
            config,
            "cpu",
            batch_size=BATCH,
            fixed_batch=True,
            precision=precision,
        )
        for precision in ("fp32", "bf16")
    }
    pictures, texts = _pictures(count), _texts(count)

    def batches(size: int) -> list[range]:
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    @torch.inference_mode()
    def their_pictures(size: int) -> None:
        for which in batches(size):
            batch = torch.stack([transform(Image.fromarray(pictures[i])) for i in which])
            plain.encode_image(batch, normalize=True).numpy()

    @torch.inference_mode()
    def their_texts(size: int) -> None:
        for which in batches(size):
            plain.encode_text(tokenizer([texts[i] for i in which]), normalize=True).numpy()

    peaks = {
        "fp32": _product(2048, torch.float32, rounds),
        "bf16": _product(2048, torch.bfloat16, rounds),
    }
    rows: list[list[object]] = []
    for kind, theirs in (("pictures", their_pictures), ("texts", their_texts)):
        cases: dict[str, Work] = {
            f"open_clip, one at a time: {kind}": partial(theirs, 1),
            f"open_clip, batches of {BATCH}: {kind}": partial(theirs, BATCH),
        }
        for precision, teacher in teachers.items():
            cases[f"teacher, {precision}: {kind}"] = (
                partial(teacher.encode_images, pictures)
                if kind == "pictures"
                else partial(teacher.encode_texts, texts)
            )
        rates = _rates(cases, count, rounds)
        one, batched = list(rates.values())[:2]
        for name, found in rates.items():
            peak = peaks["bf16" if "bf16" in name else "fp32"]
            share = f"{median(found) * flops / peak:.0%}" if kind == "pictures" else ""
            rows.append(
                [
                    name,
                    round(median(found), 1),
                    round(median(f / o for f, o in zip(found, one, strict=True)), 2),
                    round(median(f / b for f, b in zip(found, batched, strict=True)), 2),
                    share,
                ]
            )
    columns = ["case", "a second", "times one at a time", "times batches", "share of matmul peak"]
    notes = (
        f"{CPU_MODEL} with random weights on one core: {flops / 1e9:.1f} GFLOP a picture, "
        f"pictures of 224 px and captions of {min(map(len, texts))} to {max(map(len, texts))} "
        f"characters in host memory, embeddings back there. The core's matrix product of 2,048 "
        f"reaches {peaks['fp32'] / 1e9:.0f} GFLOP/s in fp32 and {peaks['bf16'] / 1e9:.0f} in bf16."
    )
    return "Encoding on a CPU core", columns, rows, notes


def _gpu_product(size: int = 8192) -> float:
    """Operations a second of the card's bfloat16 matrix product, the best of 5 runs of 20."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(a)
    return 2 * size**3 / _gpu_seconds(lambda: torch.matmul(a, b, out=out), 20, 5)


def _gpu_seconds(work: Work, times: int, runs: int) -> float:
    """Seconds that ``work`` keeps the card busy, from events on its stream; the best run."""
    event: Any = torch.cuda.Event
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    found = []
    for _ in range(runs):
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1000 / times)
    return float(min(found))


def gpu(batches: int) -> TableParts:
    """ViT-bigG-14 in bfloat16 on the card."""
    if hasattr(os, "sched_setaffinity"):  # the compiler may use all cores; it is not timed
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    warnings.filterwarnings("ignore")  # advice of the compiler
    peak = _gpu_product()
    config = dict(open_clip.get_model_config(GPU_MODEL) or {})
    flops = vision_flops(config)
    torch.manual_seed(0)
    # Outside of inference mode, as a loaded model is: the compiler treats the others differently.
    with torch.device("cuda"):  # two and a half billion random numbers are made faster there
        model = open_clip.create_model(GPU_MODEL, device="cuda")
    model = model.eval().requires_grad_(False).to(torch.bfloat16)
    rows: list[list[object]] = []

    def add(name: str, per_second: float) -> None:
        achieved = per_second * flops
        rows.append(
            [name, round(per_second, 1), round(achieved / 1e12, 1), f"{achieved / peak:.0%}"]
        )

    with torch.inference_mode():
        batch = torch.randn(GPU_BATCH, 3, 224, 224, device="cuda", dtype=torch.bfloat16)
        seconds = _gpu_seconds(partial(model.encode_image, batch), 2, 3)
    add("open_clip's model, a batch on the card", GPU_BATCH / seconds)
    del batch
    pictures = np.tile(_pictures(64), (batches * GPU_BATCH // 64, 1, 1, 1))
    for compiled in (False, True):
        teacher = Teacher(
            model,
            open_clip.get_tokenizer(GPU_MODEL),
            (GPU_MODEL, "random"),
            config,
            "cuda",
            batch_size=GPU_BATCH,
            fixed_batch=True,
            precision="bf16",
            compiled=compiled,
        )
        name = "compiled" if compiled else "not compiled"
        begun = time.perf_counter()
        try:
            teacher.encode_images(pictures[: 2 * GPU_BATCH])
            first = time.perf_counter() - begun
            runs = []
            for _ in range(3):
                begun = time.perf_counter()
                teacher.encode_images(pictures)  # returns when the embeddings are in host memory
                runs.append(time.perf_counter() - begun)
        except InputError as error:  # too little memory
            note(f"encode: {error}")
            continue
        reason = getattr(teacher._image_tower, "reason", None)
        if reason:
            name = f"{name}: {reason}"
        add(f"teacher, {name} (first two batches: {first:.0f} s)", len(pictures) / min(runs))
    memory = torch.cuda.max_memory_allocated() / 2**30
    columns = ["case", "pictures a second", "TFLOP/s", "share of matmul peak"]
    notes = (
        f"{GPU_MODEL} with random weights in bfloat16 on {torch.cuda.get_device_name()}: "
        f"{flops / 1e12:.2f} TFLOP a picture, batches of {GPU_BATCH}. The teacher's pictures and "
        f"embeddings lie in host memory. The card's matrix product of 8,192 reaches "
        f"{peak / 1e12:.0f} TFLOP/s in the same run. Most memory in use: {memory:.1f} GiB. "
        f"Target: at least 50 %."
    )
    return "Encoding on a GPU", columns, rows, notes
