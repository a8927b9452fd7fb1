"""Shard sets made of shard sets: split, merge, filter; and whether one is sound (verify)."""
