"""Texts on their way into rows: what is counted, and what of long ones the teacher reads."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest

from pipeline.captions import TokenCounter
from pipeline.datasets.base import Record
from pipeline.encode import Encoder
from pipeline.objects import Processed, teacher_size
from pipeline.teacher import Teacher, load_clip

LONG = " ".join(["chair"] * 100)


@pytest.fixture(scope="module")
def demo() -> Teacher:
    return load_clip("demo", batch_size=4)


def test_token_counter__agrees_with_what_the_tokenizer_cuts(demo: Teacher) -> None:
    counter = TokenCounter(demo.tokenizer)
    context = demo.tokenizer.context_length
    assert counter.context == context
    for n in (1, context - 3, context - 2, context - 1, context, 3 * context):
        text = " ".join(["a"] * n)
        assert len(demo.tokenizer.encode(text)) == n
        assert counter.excess(text) == max(0, n + 2 - context)
        assert counter.excess(text) == counter.excess(text)
        # The oracle: one more word changes what the teacher reads only where nothing is cut.
        same = bool((demo.tokenizer([text]) == demo.tokenizer([text + " a"])).all())
        assert same == (n + 2 >= context)


def test_token_counter__a_wrapped_tokenizer_of_transformers() -> None:
    def inner(text: str, **options: Any) -> Any:
        assert options == {"truncation": False, "verbose": False}
        return SimpleNamespace(input_ids=[1, *range(len(text.split())), 2])

    tokenizer = SimpleNamespace(context_length=8, tokenizer=inner, clean_fn=str.lower)
    counter = TokenCounter(tokenizer)
    assert counter.excess("One two three four five six") == 0
    assert counter.excess("one two three four five six seven eight") == 2


def test_token_counter__clips_own_tokenizer() -> None:
    counter = TokenCounter(open_clip.get_tokenizer("ViT-B-32"))
    assert counter.context == 77
    assert counter.excess(LONG) == 25
    assert counter.excess("chair") == 0
    assert TokenCounter(SimpleNamespace()).excess(LONG) == 0  # no limit known


def processed(index: int, texts: tuple[tuple[str, str], ...], counts: dict[str, int]) -> Processed:
    return Processed(
        record=Record(f"d/{index}", "d", "s", "k"),
        texts=tuple(text for text, _ in texts),
        text_sources=tuple(source for _, source in texts),
        images={None: np.full((2, 32, 32, 3), 40 * index, np.uint8)},
        xyz=np.zeros((16, 3), np.float32),
        rgb=np.zeros((16, 3), np.uint8),
        has_color=True,
        sha256="0" * 64,
        n_faces=1,
        n_vertices=3,
        n_bytes=0,
        text_counts=counts,
    )


def test_encoder__counts_texts_and_what_was_cut_of_them(demo: Teacher) -> None:
    encoder = Encoder(demo, ("a {}", "a 3D model of a {}"))
    over = len(demo.tokenizer.encode(LONG)) + 2 - demo.tokenizer.context_length
    words = len(demo.tokenizer.encode("a 3D model of a " + LONG)) - len(demo.tokenizer.encode(LONG))
    objects = [
        processed(0, (("chair", "name"), (LONG, "caption")), {"texts_given": 3, "texts_empty": 1}),
        processed(1, ((LONG, "name"),), {"texts_given": 1}),
        processed(2, (), {}),
    ]
    rows = encoder.encode(objects)
    assert [len(row.texts) for row in rows] == [2, 1, 0]
    assert rows[0].texts[1] == LONG  # stored whole
    assert encoder.take_counts() == {
        "texts_given": 4,
        "texts_empty": 1,
        "texts": 3,
        "texts_cut": 2,
        "tokens_cut": over + over + words,  # of a name, its longest prompt
        "objects_without_text": 1,
    }
    assert encoder.take_counts() == {}
    # The same again, now that every embedding is remembered.
    encoder.encode(objects)
    assert encoder.counts["texts_cut"] == 2


def test_encoder__text_embeddings_are_unit_means_over_the_templates(demo: Teacher) -> None:
    row = Encoder(demo, ("a {}", "{} with legs")).encode([processed(0, (("chair", "name"),), {})])[
        0
    ]
    mean = np.asarray(demo.encode_texts(["a chair", "chair with legs"])).mean(0)
    norm = np.linalg.norm(mean)
    assert norm < 0.999
    np.testing.assert_allclose(row.text_embeds[0], mean / norm, atol=1e-6)


def test_encoder__takes_pictures_of_the_teachers_size_where_there_are_others(demo: Teacher) -> None:
    size = teacher_size(demo.info)
    assert size is not None
    own = np.random.default_rng(0).integers(0, 256, (2, size[0], size[0], 3)).astype(np.uint8)
    plain = processed(3, (), {})
    both = replace(plain, images={**plain.images, size: own})
    found = Encoder(demo, ("a {}",)).encode([both])[0].image_embeds
    assert np.abs(found - demo.encode_images(own)).max() < 1e-6
