"""Checkpoint and shards to numbers, indexes and search."""
