"""An S3 store on this machine, for the tests: moto's server in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.fs as pafs
import pytest

BUCKET = "bucket"


@contextmanager
def s3_environment() -> Iterator[str]:
    """Start the server, with an empty bucket, and set what finds it; yields host and port.

    Skips the test where moto is not installed.
    """
    pytest.importorskip("moto", reason="moto and flask are not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, "the S3 server did not start"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)
        store(allow_bucket_creation="true").create_dir(BUCKET)
        yield f"127.0.0.1:{port}"
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.kill()
        server.wait()


def store(**options: str) -> pafs.S3FileSystem:
    """The server's file system, as an address finds it by the environment."""
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return pafs.FileSystem.from_uri(f"s3://{BUCKET}?{query}")[0]


def upload(folder: Path, place: str) -> None:
    """Copy a folder into the bucket."""
    pafs.copy_files(str(folder), f"{BUCKET}/{place}", pafs.LocalFileSystem(), store())
