"""``evaluation``: a checkpoint and shards to numbers, indexes and search."""

from __future__ import annotations

from evaluation.commands import (
    encode,
    index,
    measure,
    parts,
    published,
    report,
    retrieve,
    score,
    serve,
)
from pipeline.console import make_app, run_app

app = make_app("evaluation", "Evaluate students, index their embeddings, and search.")
for module in (encode, index, measure, parts, retrieve, score, serve, report, published):
    module.register(app)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)


if __name__ == "__main__":
    main()
