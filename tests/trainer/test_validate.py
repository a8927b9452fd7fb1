from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer import validate as module
from trainer.config import AlignConfig
from trainer.losses import AlignLoss, Features
from trainer.relations import unit
from trainer.validate import top1, validate


def draw(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))


def oracle_top1(queries: Tensor, gallery: Tensor) -> float:
    hits = 0
    for index, query in enumerate(queries):
        scores = [float(query @ vector) for vector in gallery]
        nearest = scores.index(max(scores))
        hits += torch.equal(gallery[nearest], gallery[index])
    return hits / len(queries)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_top1__equals_the_oracle(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", chunk)
    gallery = unit(draw(20, 0))
    queries = unit(gallery + 0.8 * draw(20, 1) / 2)
    expected = oracle_top1(queries, gallery)
    assert 0 < expected < 1
    assert top1(queries, gallery) == pytest.approx(expected)


def test_top1__equal_captions_count_as_one() -> None:
    gallery = torch.eye(4)[[0, 0, 1, 2]]
    assert top1(gallery, gallery) == 1.0


def test_top1__a_collapsed_student_is_at_chance() -> None:
    gallery = unit(draw(10, 0))
    assert top1(gallery[:1].expand(10, -1), gallery) == pytest.approx(0.1)


def test_validate__rows_without_text_are_left_out_of_text_retrieval() -> None:
    image, text = unit(draw(9, 0)), unit(draw(9, 1))
    has_text = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1, 1]).bool()
    result = validate(Features(text, image, text, has_text), AlignLoss(AlignConfig()), 4)
    assert result["top1_text"] == 1.0
    assert result["top1_image"] < 1.0
    assert result["score"] == pytest.approx((1.0 + result["top1_image"]) / 2)
    assert result["rows"] == 9


def test_validate__align_is_the_mean_over_batches_weighted_by_size() -> None:
    features = Features(draw(7, 0), draw(7, 1), None, torch.zeros(7, dtype=torch.bool))
    align = AlignLoss(AlignConfig(text_weight=0))

    def part(rows: slice) -> float:
        assert features.image is not None
        piece = Features(features.point[rows], features.image[rows], None, features.has_text[rows])
        return float(align(piece)[0].detach())

    expected = (4 * part(slice(0, 4)) + 3 * part(slice(4, 7))) / 7
    assert validate(features, align, 4)["align"] == pytest.approx(expected, rel=1e-6)


def test_validate__no_modality_has_no_score() -> None:
    features = Features(draw(4, 0), None, None, torch.zeros(4, dtype=torch.bool))
    assert "score" not in validate(features, AlignLoss(AlignConfig()), 4)


def test_validate__a_last_batch_of_one_row_counts_for_nothing() -> None:
    f = Features(draw(5, 0), draw(5, 1), None, torch.zeros(5, dtype=torch.bool))
    align = AlignLoss(AlignConfig(text_weight=0))
    wanted = float(align(f.part(slice(0, 4)))[0].detach())
    assert validate(f, align, 4)["align"] == pytest.approx(wanted)
