"""The optional captioner: a tiny BLIP with random weights stands in for a real one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.captioners import (
    Captioner,
    caption_objects,
    check_captioner,
    identity,
    load_captioner,
    spread,
)
from pipeline.commands.caption_options import caption_options
from pipeline.common import InputError
from pipeline.datasets.base import Record
from pipeline.objects import Processed

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[DEC]",
    "a",
    "red",
    "blue",
    "chair",
    "table",
    "on",
    "of",
    "with",
    "the",
    "small",
]


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BLIP of a few thousand parameters that tells pictures apart."""
    transformers: Any = pytest.importorskip(
        "transformers", reason="transformers is not installed (the extra `captioner`)"
    )
    import torch

    folder = tmp_path_factory.mktemp("blip")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = transformers.BertTokenizerFast(vocab=vocabulary)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    text = {"vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 32}
    ids = {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    vision = {"image_size": 32, "patch_size": 16}
    config = transformers.BlipConfig(
        text_config={**sizes, **text, **ids}, vision_config={**sizes, **vision}, projection_dim=8
    )
    torch.manual_seed(0)
    model = transformers.BlipForConditionalGeneration(config)
    for parameter in model.parameters():  # far from the middle, so that pictures matter
        torch.nn.init.normal_(parameter, std=0.7)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def pictures(count: int, side: int = 40) -> NDArray[np.uint8]:
    """Flat colours, far apart."""
    colors = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3))
    return np.broadcast_to(colors, (count, side, side, 3)).astype(np.uint8)


def test_captioner__one_caption_per_picture_that_depends_on_it_alone(blip: Path) -> None:
    captioner = load_captioner(str(blip), max_new_tokens=5, batch_size=4)
    images = pictures(6)
    captions = captioner(images)
    assert len(captions) == 6
    assert len(set(captions)) > 1
    assert set(" ".join(captions).split()) <= set(WORDS[6:]) | {""}
    assert captioner(images) == captions
    assert [captioner(images[i : i + 1])[0] for i in range(6)] == captions
    assert captioner(images[:0]) == []


def test_load_captioner__a_folder_without_a_model_is_an_input_error(
    blip: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"--captioner .*cannot be loaded .*captioning model"):
        load_captioner(str(tmp_path))
    with pytest.raises(InputError, match=r"--captioner \./nowhere: no such folder"):
        load_captioner("./nowhere")


def test_check_captioner__finds_out_before_a_run_what_its_workers_would(
    blip: Path, tmp_path: Path
) -> None:
    check_captioner(str(blip))
    with pytest.raises(InputError, match=r"--captioner \./nowhere: no such folder; give"):
        check_captioner("./nowhere")
    with pytest.raises(InputError, match=r"no \*\.safetensors in the folder"):
        check_captioner(str(tmp_path))
    other = tmp_path / "bert"
    shutil.copytree(blip, other)
    (other / "config.json").write_text('{"model_type": "bert", "vocab_size": 9}')
    with pytest.raises(InputError, match=r"cannot be loaded \(a model of the kind bert makes no"):
        check_captioner(str(other))
    (other / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        check_captioner(str(other))


def test_caption_options__a_wrong_captioner_is_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"--captioner \./nowhere: no such folder"):
        caption_options(None, None, None, "./nowhere", 4)
    assert caption_options(None, None, None, None, 4).captioner is None


def test_caption_options__a_text_source_that_none_has_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text("uid,caption\n1,a chair\n")
    with pytest.raises(InputError, match=r"--text-sources nme: unknown; did you mean name\?"):
        caption_options(None, "nme,tags", None, None, 4)
    with pytest.raises(InputError, match=r"--text-sources mine: .* use 3dtopia, attributes, azure"):
        caption_options([str(file)], "mine", None, None, 4)
    found = caption_options([f"mine={file}"], "Mine, tags,cap3d", 2, None, 4)
    assert found.sources == ("mine", "tags", "cap3d")


def test_load_captioner__without_transformers_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'mrd3d\[captioner\]'"):
        load_captioner("org/model")


def test_captioners__importing_the_module_imports_nothing_heavy() -> None:
    heavy = "{'transformers', 'torch', 'numba'}"
    code = f"import sys, pipeline.captioners; sys.exit(bool({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_identity__of_a_folder_changes_with_its_weights(tmp_path: Path) -> None:
    assert identity("org/model") == {"name": "org/model"}
    with pytest.raises(InputError, match="safetensors"):
        identity(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"one")
    one = identity(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert one["name"] == tmp_path.name
    assert identity(str(tmp_path))["sha256"] != one["sha256"]


@pytest.mark.parametrize(
    ("count", "wanted", "views"),
    [(12, 4, [0, 3, 6, 9]), (12, 1, [0]), (3, 4, [0, 1, 2]), (7, 3, [0, 2, 4]), (0, 4, [])],
)
def test_spread__evenly_from_the_first(count: int, wanted: int, views: list[int]) -> None:
    assert spread(count, wanted) == views


def processed(uid: str, texts: Sequence[tuple[str, str]], shades: Sequence[int]) -> Processed:
    images = {
        None: np.stack([np.full((8, 8, 3), s, np.uint8) for s in shades]),
        (4, "bicubic"): np.stack([np.full((4, 4, 3), s, np.uint8) for s in shades]),
    }
    return Processed(
        record=Record(uid, "d", "s", "k"),
        texts=tuple(text for text, _ in texts),
        text_sources=tuple(source for _, source in texts),
        images=images,
        xyz=np.zeros((4, 3), np.float32),
        rgb=np.zeros((4, 3), np.uint8),
        has_color=True,
        sha256="0" * 64,
        n_faces=1,
        n_vertices=3,
        n_bytes=0,
        text_counts={"texts_given": len(texts)},
    )


class Naming(Captioner):
    """Says which picture it was shown."""

    def __init__(self) -> None:
        pass

    def __call__(self, images: NDArray[np.uint8]) -> list[str]:
        assert images.shape[1:] == (8, 8, 3)  # the largest there are
        return ["" if i[0, 0, 0] == 255 else f"shade {i[0, 0, 0]}" for i in images]


def test_caption_objects__adds_new_captions_of_spread_views_and_counts() -> None:
    first = processed("d/a", [("chair", "name"), ("Shade 2!", "caption")], range(4))
    second = processed("d/b", [], [9, 255, 9, 9])
    found = caption_objects([first, second], Naming(), 2)
    assert found[0].texts == ("chair", "Shade 2!", "shade 0")
    assert found[0].text_sources == ("name", "caption", "captioner")
    assert found[0].text_counts == {"texts_given": 2, "captions_made": 2, "texts_duplicate": 1}
    assert (found[1].texts, found[1].text_sources) == (("shade 9",), ("captioner",))
    assert found[1].text_counts["texts_duplicate"] == 1
    every = caption_objects([second], Naming(), 4)[0]
    assert every.text_counts["texts_empty"] == 1
    assert first.text_counts == {"texts_given": 2}
    assert caption_objects([], Naming(), 2) == []
