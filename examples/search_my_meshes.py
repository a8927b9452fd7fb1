"""From a folder of meshes to answers: embed, train a small student, index, search.

    python examples/search_my_meshes.py meshes/ work/ "a red mug"

With the embedded demo teacher this needs no network and no GPU, and knows everyday things only: for
real work name a real CLIP (``teacher="ViT-B-32:laion2b_s34b_b79k"``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from evaluation import Index, load_student
from evaluation.embeddings import Embeddings, EmbeddingsMeta, concatenate
from evaluation.index import build_index
from evaluation.sources import StudentEncoder, embed_shards, shards_data
from pipeline import ShardSet, embed_folder
from trainer.recipe import load_recipe
from trainer.run import train


def main(meshes: str, work: str, question: str, epochs: int = 20) -> None:
    """Each step goes on where an earlier call of it stopped."""
    shards, run, index = Path(work) / "shards", Path(work) / "run", Path(work) / "index"

    summary = embed_folder(meshes, shards, views=12, points=2048)
    opened = ShardSet.open(shards)
    print(f"{len(opened)} objects, {summary.failed} failed now, {len(opened.failures())} in all")

    recipe = load_recipe("tiny", [f"train.epochs={epochs}", "data.val_fraction=0"])
    train([shards], recipe, run, resume=run.exists())

    student = load_student(run)
    rows = concatenate(list(embed_shards(opened, StudentEncoder(student, opened))))
    meta = EmbeddingsMeta(student.teacher, student.model, shards_data(opened))
    build_index(Embeddings(meta, rows), index)

    for hit in Index.open(index).query(text=question, k=5):
        print(f"{hit.score:.3f}  {hit.item.uid}  {hit.item.texts[0]}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
