"""The contract between the packages: embedding shards. pyarrow and numpy only.

A shard set is a folder (a local path or a URI that pyarrow or fsspec understands) with

- ``manifest.json``: how every row was made (``Manifest``); all parts share it,
- ``part-*.parquet``: one row per object (``schema``), written atomically, named by content,
- ``failures-*.parquet``: one row per object that could not become a row,
- ``images-*.parquet``: where the set keeps its views, one side file per part (``images``),
- ``contents.json``: the names of these files, once a run has finished (``contents``).

``ShardSet.open`` reads one; ``write_part`` and ``write_failures`` add to one. ``ImageSet.open``
reads the kept views.
"""

from pipeline.shards.contents import (
    Contents,
    compare_contents,
    has_lost_files,
    mark_unfinished,
    record_contents,
    what_lacks,
)
from pipeline.shards.images import (
    ImageBatch,
    ImageSet,
    KeptImages,
    clean_orphans,
    write_part_with_images,
    write_table,
)
from pipeline.shards.manifest import (
    CONTRACT_VERSION,
    Manifest,
    TeacherInfo,
    create_or_open,
    read_manifest,
    taken_back,
    unstarted,
)
from pipeline.shards.reader import Batch, RowGroup, ShardSet
from pipeline.shards.schema import NEUTRAL_RGB, POINT_SCALE, Failure, Row, decode_xyz
from pipeline.shards.writer import write_failures, write_part

__all__ = [
    "CONTRACT_VERSION",
    "NEUTRAL_RGB",
    "POINT_SCALE",
    "Batch",
    "Contents",
    "Failure",
    "ImageBatch",
    "ImageSet",
    "KeptImages",
    "Manifest",
    "Row",
    "RowGroup",
    "ShardSet",
    "TeacherInfo",
    "clean_orphans",
    "compare_contents",
    "create_or_open",
    "decode_xyz",
    "has_lost_files",
    "mark_unfinished",
    "read_manifest",
    "record_contents",
    "taken_back",
    "unstarted",
    "what_lacks",
    "write_failures",
    "write_part",
    "write_part_with_images",
    "write_table",
]
