"""Other projects' released embeddings and clouds, read safely and written as shards."""
