from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.benchmarks.labels import from_categories
from evaluation.benchmarks.zeroshot import ClassFeatures, figures, zeroshot
from evaluation.results import labels_hash
from evaluation.sources import StudentEncoder
from pipeline.shards import ShardSet
from tests.evaluation import world
from trainer import metrics


@pytest.mark.parametrize("draws", [1, 3])
def test_zeroshot__is_that_of_the_embeddings_of_all_labelled_objects(
    tmp_path: Path, draws: int
) -> None:
    shards = ShardSet.open(world.make_shards(tmp_path / "set", 24))
    encoder = StudentEncoder(world.student(), shards, draws=draws, seed=4)
    uids, categories, vectors = [], [], []
    for batch in shards.batches(["category", *encoder.columns]):
        assert batch.category is not None
        labelled = [row for row, name in enumerate(batch.category) if name]
        uids += [batch.uid[row] for row in labelled]
        categories += [batch.category[row] for row in labelled]
        vectors.append(encoder(batch, np.array(labelled)))
    labels = from_categories(sorted({name for name in categories if name}))
    truth = np.array([labels.find(name) for name in categories])
    texts = metrics.normalise(np.stack([world.text_vector(name) for name in labels.names]))

    found = zeroshot(shards, encoder, labels, ClassFeatures(texts, "test", []))
    assert found["label_hash"] == labels_hash(uids, [labels.names[label] for label in truth])
    scale = shards.manifest.teacher.logit_scale
    wanted = figures(np.concatenate(vectors), texts, truth, labels, scale)
    # Of a mean of draws too: its length, which no rank depends on, decides about calibration.
    assert {name: found[name] for name in wanted if name != "ranks"} == {
        name: value for name, value in wanted.items() if name != "ranks"
    }
    assert sorted(found["ranks"]) == sorted(wanted["ranks"])
