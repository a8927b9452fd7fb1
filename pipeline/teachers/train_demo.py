"""Train the `demo` teacher: a small CLIP that knows the procedural world and nothing else.

    python -m pipeline.teachers.train_demo --out stage1 --framing crop --objects 14000 --steps 2000
    python -m pipeline.teachers.train_demo --out pipeline/teachers/demo --init stage1 \
        --framing whole --objects 24000 --steps 1000 --lr 8e-4

Renders procedural objects of seeds that no other part of the project uses, trains image and text
tower with a contrastive loss on (view, caption) pairs, measures zero-shot accuracy on unseen
objects from one view through the same path that users take (224 px render, resize, encode), and
writes weights (float16 safetensors) and ``metrics.json``. The shipped weights come from the two
commands above: first random crops, in which objects are larger than in a whole frame, then whole
frames, as the teacher will see them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pipeline.cameras import ring
from pipeline.captions import DEFAULT_TEMPLATES, texts_for
from pipeline.common import atomic_path, versions, write_json
from pipeline.console import ProgressBar, note
from pipeline.datasets.procedural import CLASSES, ProceduralDataset
from pipeline.renderers import get_renderer
from pipeline.renderers.base import RenderConfig
from pipeline.teacher import DEMO_DIR, Teacher, load_clip, shortened_bpe

TRAIN_SEED, TEST_SEED = 900_000_001, 900_000_002  # the sets of demo, tests and docs use small ones
RENDER_SIZE = 112  # slightly above the input size, so that random crops move the object


def _render_one(task: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], int, list[str]]:
    seed, index, n_views, size = task
    dataset = ProceduralDataset(count=1, seed=seed, start=index)
    record = next(iter(dataset.records()))
    cameras = ring(12)
    rng = np.random.default_rng([seed, index])
    chosen = np.sort(rng.choice(12, n_views, replace=False))
    cameras = type(cameras)(cameras.name, cameras.poses[chosen], cameras.fov_y_deg)
    mesh = dataset.load(record).mesh
    images = get_renderer("raster").render(mesh, cameras, RenderConfig(image_size=size))
    captions = [text for text, source in texts_for(record) if source != "name"]
    return images[..., :3].copy(), CLASSES.index(str(record.category)), captions


def render_set(
    seed: int, count: int, n_views: int, size: int, workers: int
) -> tuple[torch.Tensor, torch.Tensor, list[list[str]]]:
    """Images (count, n_views, size, size, 3) uint8, class indices (count,), captions."""
    images = torch.empty(count, n_views, size, size, 3, dtype=torch.uint8)
    labels, captions = torch.empty(count, dtype=torch.long), []
    tasks = [(seed, index, n_views, size) for index in range(count)]
    with (
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        ProgressBar("render", count, "objects") as bar,
    ):
        for index, (views, label, texts) in enumerate(pool.map(_render_one, tasks, chunksize=16)):
            images[index] = torch.from_numpy(views)
            labels[index] = label
            captions.append(texts)
            bar.advance()
    return images, labels, captions


def batches(
    images: torch.Tensor, batch: int, size: int, framing: str, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled (object indices, augmented views (batch, 3, size, size) in [-1, 1]).

    ``framing`` is ``crop`` (random windows) or ``whole`` (the frame scaled down by a little more
    or less than needed, shifted, on the white of the background).
    """
    order = torch.randperm(len(images), generator=generator)
    slack = images.shape[2] - size
    for start in range(0, len(order) - batch + 1, batch):
        index = order[start : start + batch]
        view = torch.randint(images.shape[1], (batch,), generator=generator)
        if framing == "crop":
            x, y = torch.randint(slack + 1, (2,), generator=generator).tolist()
            pixels = images[index, view, y : y + size, x : x + size].permute(0, 3, 1, 2).float()
        else:
            side = int(torch.randint(size - 8, size + 5, (1,), generator=generator))
            room = abs(size - side)
            x, y = torch.randint(room + 1, (2,), generator=generator).tolist()
            scaled = F.interpolate(
                images[index, view].permute(0, 3, 1, 2).contiguous(),
                size=(side, side),
                mode="bicubic",
                antialias=True,
            ).float()
            if side >= size:
                pixels = scaled[..., y : y + size, x : x + size]
            else:
                pixels = F.pad(scaled, (x, room - x, y, room - y), value=255.0)
        yield index, pixels / 127.5 - 1


def contrastive(
    image: torch.Tensor, text: torch.Tensor, positive: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric cross-entropy with several positives per row, (B, B) bool ``positive``.

    A bare class name is true of every object of the class in the batch, so those pairs are
    positives too instead of false negatives.
    """
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    target = positive.float()
    by_image = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_text = -(target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (by_image + by_text) / 2


def evaluate(teacher: Teacher, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Zero-shot accuracy over all classes, from one view and from the mean of the views."""
    classes = teacher.encode_prompts(CLASSES, DEFAULT_TEMPLATES)
    n, v = images.shape[:2]
    views = teacher.encode_images(images.flatten(0, 1).numpy()).reshape(n, v, -1)
    truth = labels.numpy()
    mean = views.mean(1)
    single = (views @ classes.T).argmax(-1)
    return {
        "top1_one_view": float((single == truth[:, None]).mean()),
        "top1_mean_of_views": float(((mean @ classes.T).argmax(-1) == truth).mean()),
        "objects": float(n),
        "views": float(v),
        "classes": float(len(CLASSES)),
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder for config, weights and metrics.")] = DEMO_DIR,
    objects: Annotated[int, typer.Option(help="Training objects.")] = 16_000,
    views: Annotated[int, typer.Option(help="Views rendered per training object.")] = 3,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 3_000,
    batch: Annotated[int, typer.Option(help="Objects per step.")] = 192,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1.5e-3,
    test_objects: Annotated[int, typer.Option(help="Unseen objects to measure on.")] = 1_200,
    workers: Annotated[int, typer.Option(help="Render processes.")] = 2,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and crops.")] = 0,
    framing: Annotated[str, typer.Option(help="crop or whole: see `batches`.")] = "whole",
    init: Annotated[Path | None, typer.Option(help="Folder with weights to start from.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Keep the rendered set here.")] = None,
) -> None:
    """Render, train, measure, write."""
    begun = time.time()
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)
    config = json.loads((DEMO_DIR / "open_clip_config.json").read_text())
    if cache and cache.is_file():
        images, labels, captions = torch.load(cache, weights_only=True)
    else:
        images, labels, captions = render_set(TRAIN_SEED, objects, views, RENDER_SIZE, workers)
        if cache:
            torch.save((images, labels, captions), cache)

    model: Any = open_clip.CLIP(**config["model_cfg"])
    if init:
        model.load_state_dict(load_file(init / "open_clip_model.safetensors"))
    text_cfg = config["model_cfg"]["text_cfg"]
    tokenizer = open_clip.SimpleTokenizer(
        bpe_path=shortened_bpe(text_cfg["vocab_size"] - 514),
        context_length=text_cfg["context_length"],
    )
    model.visual = model.visual.to(memory_format=torch.channels_last)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=lr
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.08, anneal_strategy="cos"
    )
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    rng = np.random.default_rng(seed)
    model.train()
    step = 0
    with ProgressBar("train", steps, "steps") as bar:
        while step < steps:
            for index, pixels in batches(images, batch, size, framing, generator):
                classes = labels[index]
                bare = torch.from_numpy(rng.random(len(index)) < 0.4)
                texts = [
                    _name_prompt(int(label), rng) if name else rng.choice(captions[int(i)])
                    for i, label, name in zip(index, classes, bare, strict=True)
                ]
                same_class = classes[:, None] == classes[None]
                positive = (same_class & bare[None]) | torch.eye(len(index), dtype=torch.bool)
                with torch.autocast("cpu", torch.bfloat16):
                    image = model.encode_image(pixels.to(memory_format=torch.channels_last))
                    text = model.encode_text(tokenizer(texts))
                loss = contrastive(image.float(), text.float(), positive, model.logit_scale.exp())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    model.logit_scale.clamp_(0, float(np.log(100)))
                step += 1
                bar.advance(1, f"loss {loss.item():.3f}")
                if step == steps:
                    break
    model.eval()
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    with atomic_path(out / "open_clip_model.safetensors") as temporary:
        save_file({k: v.contiguous().clone() for k, v in state.items()}, temporary)
    if out != DEMO_DIR:
        write_json(out / "open_clip_config.json", config)
    note("measure on unseen objects, rendered at 224 px")
    test_images, test_labels, _ = render_set(TEST_SEED, test_objects, 4, 224, workers)
    spec = "demo" if out == DEMO_DIR else f"local-dir:{out}"
    result = evaluate(load_clip(spec), test_images, test_labels)
    write_json(
        out / "metrics.json",
        {
            **result,
            "trained_on": {
                "objects": len(images),
                "views": int(images.shape[1]),
                "steps": steps,
                "batch": batch,
                "seed": seed,
                "dataset_seed": TRAIN_SEED,
                "framing": framing,
                "started_from": init.name if init else None,
            },
            "measured_on": {"dataset_seed": TEST_SEED, "image_size": 224},
            "minutes": round((time.time() - begun) / 60, 1),
            "versions": versions("torch", "open_clip_torch", "timm", "numpy", "numba"),
        },
    )
    note(f"zero-shot top-1 from one view: {result['top1_one_view']:.3f}")


_NAME_PROMPTS = ("{}", "a {}", *DEFAULT_TEMPLATES)


def _name_prompt(label: int, rng: np.random.Generator) -> str:
    return str(rng.choice(_NAME_PROMPTS)).format(CLASSES[label])


if __name__ == "__main__":
    typer.run(main)
