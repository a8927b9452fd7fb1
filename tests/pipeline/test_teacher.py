from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.common import InputError
from pipeline.teacher import (
    DEMO_DIR,
    Teacher,
    fingerprint_image,
    load_clip,
    load_matching,
    shortened_bpe,
)

FINGERPRINT_SUM = 17_312_880
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 1514, "width": 32, "heads": 2, "layers": 1},
}


def write_teacher(folder: Path, seed: int = 0, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {**TINY, **changes}
    torch.manual_seed(seed)
    model = open_clip.CLIP(**json.loads(json.dumps(config)))
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_clip(f"local-dir:{folder}")


def photos(count: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((size, size))) for c in coarse])


@pytest.mark.parametrize("size", [32, 64, 75])
def test_preprocess__same_as_open_clips_own_transform(teacher: Teacher, size: int) -> None:
    images = photos(3, size)
    theirs = open_clip.image_transform(
        32, is_train=False, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bicubic"
    )
    expected = torch.stack([theirs(Image.fromarray(image)) for image in images])
    ours = teacher.preprocess(torch.from_numpy(images))
    # One step of 255 at most, where the two round a half differently.
    assert (ours - expected).abs().max() <= 1 / 255 / 0.2 + 1e-6
    assert (ours - expected).abs().mean() < 1e-3


def test_encode__unit_length_and_independent_of_the_batch(folder: Path) -> None:
    teacher = load_clip(f"local-dir:{folder}", batch_size=4, fixed_batch=True)
    images = photos(7, 40)
    together = teacher.encode_images(images)
    alone = np.concatenate([teacher.encode_images(image[None]) for image in images])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    assert np.array_equal(together, alone)
    texts = ["a red mug", "a chair", "three blue boxes", "lamp", "a table", "x"]
    each = np.concatenate([teacher.encode_texts([t]) for t in texts])
    assert np.array_equal(teacher.encode_texts(texts), each)


def test_encode__no_items_give_no_rows(teacher: Teacher) -> None:
    assert teacher.encode_texts([]).shape == (0, 16)
    assert teacher.encode_images(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 16)


def test_encode_prompts__is_the_normalised_mean_over_templates(teacher: Teacher) -> None:
    templates = ["a photo of a {}", "a 3D model of a {}"]
    found = teacher.encode_prompts(["mug", "chair"], templates)
    for name, row in zip(["mug", "chair"], found, strict=True):
        mean = teacher.encode_texts([t.format(name) for t in templates]).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_encode_prompts__articles_fit_unless_templates_are_taken_as_they_are(
    teacher: Teacher,
) -> None:
    for fit, prompts in ((True, ["an axe", "the axe"]), (False, ["a axe", "the axe"])):
        (found,) = teacher.encode_prompts(["axe"], ["a {}", "the {}"], fit_articles=fit)
        mean = teacher.encode_texts(prompts).mean(0)
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-6)


def test_encode_images__same_as_plain_open_clip(folder: Path, teacher: Teacher) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    images = photos(2, 48)
    with torch.no_grad():
        batch = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        expected = torch.nn.functional.normalize(model.eval().encode_image(batch), dim=-1)
    assert (teacher.encode_images(images) * expected.numpy()).sum(1).min() > 0.9999


def test_load_matching__same_weights_pass_and_others_are_refused(
    folder: Path, tmp_path: Path, teacher: Teacher
) -> None:
    again = load_matching(teacher.info, f"local-dir:{folder}")
    assert again.info == teacher.info
    other = write_teacher(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"fingerprints differ.*--teacher"):
        load_matching(teacher.info, f"local-dir:{other}")


def test_load_matching__without_a_fingerprint_a_file_of_the_model_is_taken_on_trust(
    folder: Path, teacher: Teacher, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = replace(teacher.info, fingerprint_image=[], fingerprint_text=[], pretrained="tag")
    # A folder is not a file of the model that the name tells.
    with pytest.raises(InputError, match="no fingerprint to compare"):
        load_matching(nameless, f"local-dir:{folder}")
    weights = folder / "open_clip_model.safetensors"
    label = replace(teacher.info, pretrained=f"{weights.name}@sha256:0")
    found = replace(nameless, model="ViT-B-32")
    with pytest.MonkeyPatch.context() as patch:
        fake = copy.copy(teacher)
        fake.info = replace(label, model="ViT-B-32")
        patch.setattr("pipeline.teacher.load_clip", lambda *_, **__: fake)
        assert load_matching(found, f"ViT-B-32:{weights}") is fake
        assert "have no fingerprint" in " ".join(capsys.readouterr().err.split())
        with pytest.raises(InputError, match="no fingerprint to compare"):
            load_matching(replace(found, model="ViT-L-14"), f"ViT-B-32:{weights}")


def test_load_matching__quickgelu_variant_is_refused(tmp_path: Path) -> None:
    right = load_clip(f"local-dir:{write_teacher(tmp_path / 'a')}")
    wrong = write_teacher(tmp_path / "b", quick_gelu=True)
    with pytest.raises(InputError, match="QuickGELU"):
        load_matching(right.info, f"local-dir:{wrong}")


def test_load_matching__local_file_asks_where_it_is(teacher: Teacher) -> None:
    with pytest.raises(InputError, match="was local; give it with --teacher local-dir:/path"):
        load_matching(teacher.info)


def test_load_matching__other_width_is_named(folder: Path, teacher: Teacher) -> None:
    wide = replace(teacher.info, width=32)
    with pytest.raises(InputError, match="width 32 against 16"):
        load_matching(wide, f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ViT-B-33", "no such model"),
        ("ViT-B-32", "tags of ViT-B-32: openai"),
        ("ViT-B-32:nowhere", "neither a tag nor a file"),
        ("local-dir:/does/not/exist", "no such file"),
        ("", "no such model"),
    ],
)
def test_load_clip__unknown_spec_is_one_line_with_a_remedy(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_clip(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{not json", "[]", '{"a": 1}', '{"model_cfg": {"embed_dim": 8}}'])
def test_load_clip__a_folder_whose_configuration_is_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(text)
    (tmp_path / "open_clip_model.safetensors").touch()
    with pytest.raises(InputError, match=r"config\.json: not the configuration .*`vision_cfg`"):
        load_clip(f"local-dir:{tmp_path}")


def test_load_clip__local_weights_of_a_named_model(tmp_path: Path) -> None:
    # The smallest model that open_clip names, so that the path MODEL:/file is the real one.
    name = "ViT-M-32-alt"
    model = open_clip.create_model(name)
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    teacher = load_clip(f"{name}:{path}")
    assert teacher.info.pretrained.startswith("weights.safetensors@sha256:")
    assert teacher.info.config["model_cfg"]["quick_gelu"] is False
    assert str(tmp_path) not in json.dumps(teacher.info.config)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_clip(f"{name}:{path}")


def test_shortened_bpe__prefix_of_the_merges_keeps_bytes_and_order() -> None:
    full = open_clip.SimpleTokenizer()
    short = open_clip.SimpleTokenizer(bpe_path=shortened_bpe(1000), context_length=24)
    assert short.vocab_size == 512 + 1000 + 2
    assert all(short.bpe_ranks[m] == r for m, r in full.bpe_ranks.items() if r < 1000)
    tokens = short.encode("a red mug with a handle")
    assert short.decode(tokens).strip() == "a red mug with a handle"
    assert len(tokens) >= len(full.encode("a red mug with a handle"))


def test_fingerprint_image__is_fixed() -> None:
    image = fingerprint_image()
    assert image.shape == (224, 224, 3)
    assert image.dtype == np.uint8
    assert int(image.astype(np.int64).sum()) == FINGERPRINT_SUM


def test_demo__is_small_and_knows_its_measured_accuracy() -> None:
    weights = DEMO_DIR / "open_clip_model.safetensors"
    assert weights.stat().st_size <= 10_000_000
    metrics = json.loads((DEMO_DIR / "metrics.json").read_text())
    assert metrics["top1_one_view"] >= 0.90
    assert metrics["objects"] >= 1000
    info = load_clip("demo").info
    assert info.width == 128
    assert load_matching(info).info == info
