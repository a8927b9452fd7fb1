"""The page of the contract names all that the files hold."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from evaluation import embeddings, index, results
from pipeline.shards import TeacherInfo
from pipeline.shards.manifest import CONTRACT_VERSION, FORMAT, Manifest
from pipeline.shards.schema import FAILURE_SCHEMA, row_schema
from tests.docs.blocks import ROOT
from tests.pipeline.shard_tools import make_manifest
from trainer import checkpoint

PAGE = (ROOT / "docs" / "contract.md").read_text()
NAMED = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)))


@pytest.mark.parametrize(
    "names",
    [
        row_schema(make_manifest(thumbnails=True)).names,
        FAILURE_SCHEMA.names,
        [field.name for field in fields(Manifest)],
        [field.name for field in fields(TeacherInfo)],
        index.IDS_SCHEMA.names,
        list(index.FILES),
        [checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.STATE],
    ],
    ids=["rows", "failures", "manifest", "teacher", "ids", "index", "checkpoint"],
)
def test_contract__names_every_field(names: list[str]) -> None:
    assert not set(names) - NAMED


def test_contract__names_formats_and_the_newest_version() -> None:
    for form in (FORMAT, checkpoint.FORMAT, embeddings.FORMAT, index.FORMAT, results.FORMAT):
        assert form in PAGE
    assert CONTRACT_VERSION == 2
