"""The search page on the index of the world, without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from evaluation.isolated import IsolatedCalls
from evaluation.web.app import make_app
from evaluation.web.service import SearchService

HOST = "http://127.0.0.1:8000"


@pytest.fixture
def service(
    fakes: Path, indexed: Path, shards: Path, meshes: Path, calls: IsolatedCalls
) -> SearchService:
    return SearchService(
        indexed, shards=str(shards), meshes=meshes, checkpoint=fakes, processes=calls
    )


@pytest.fixture
def client(service: SearchService) -> Iterator[TestClient]:
    with TestClient(make_app(service, max_bytes=400_000), base_url=HOST) as client:
        yield client
