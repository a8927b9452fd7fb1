"""Sources of objects: one file each behind ``pipeline.datasets.base.Dataset``."""
