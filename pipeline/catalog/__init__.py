"""The catalogue of a shard set: what it holds, SQL on its metadata, and what is still to be done.

DuckDB never opens a file here. The parts are checked by ``ShardSet`` and handed over as one lazy
Arrow dataset, so local folders and remote stores behave alike, only the columns that a query
names are read, and the connection can be cut off from the outside world altogether.
"""

from pipeline.catalog.connection import query
from pipeline.catalog.pending import failed_uids, pending, pending_sets
from pipeline.catalog.summary import FailureKind, Inspection, inspect
from pipeline.catalog.temporaries import clean_temporaries

__all__ = [
    "FailureKind",
    "Inspection",
    "clean_temporaries",
    "failed_uids",
    "inspect",
    "pending",
    "pending_sets",
    "query",
]
