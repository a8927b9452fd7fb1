"""Assets to embedding shards: render, encode with CLIP, sample points, write Parquet."""
