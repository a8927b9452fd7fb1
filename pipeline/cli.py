"""``pipeline``: embed assets into shards, look into shards, draw contact sheets."""

from __future__ import annotations

from pipeline.commands import derive, doctor, embed, encode_again, preview, sets, transfer
from pipeline.console import make_app, run_app

app = make_app("pipeline", "Turn 3D assets into embedding shards, and look into them.")
for module in (embed, encode_again, sets, derive, preview, transfer, doctor):
    module.register(app)


def main() -> None:
    """Console entry point."""
    run_app(app)
