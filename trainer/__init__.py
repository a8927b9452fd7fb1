"""Embedding shards to a checkpoint: distil CLIP's relations into a point-cloud encoder.

Nothing is imported here. Entry points: ``trainer.run.train`` (a recipe to a run folder),
``trainer.checkpoint.load_model`` (a checkpoint to an encoder), ``trainer.cli.main``.
"""
