"""A small HTTP server on the loopback that misbehaves as it is told, for tests of downloads."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class Hub:
    """Files by path, and how each is to be answered.

    ``script`` holds a list of manners per path, one per request, the last for all further ones:

    ok, a status (404, 503, 429), truncated (closes after half), short (a Content-Length of half,
    and half), unsized (no Content-Length), cut (no Content-Length, half), drip (a byte now and
    then), mute (no answer), changed (another file of the same length), html (an error page with
    200), redirect (as the Hugging Face hub, to /store/...), lying (a redirect that publishes the
    hash of something else).
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.script: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()
        self.delay_s = 0.0
        self.url = ""

    def put_json(self, path: str, value: Any) -> None:
        self.files[path] = gzip.compress(json.dumps(value).encode(), mtime=0)

    def manner(self, path: str) -> str:
        self.requests[path] += 1
        script = self.script.get(path, ["ok"])
        return script[min(self.requests[path], len(script)) - 1]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub
    stopped: threading.Event


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name in the base)
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        path = unquote(self.path.lstrip("/"))
        manner = hub.manner(path)
        data = hub.files.get(path.removeprefix("store/"))
        time.sleep(hub.delay_s)
        if manner == "mute":
            self.server.stopped.wait(20)
            return
        if manner.isdigit() or data is None:
            self.send_response(int(manner) if manner.isdigit() else 404)
            if manner == "429":
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if manner in ("redirect", "lying"):
            of = data if manner == "redirect" else b"something else"
            self.send_response(302)
            self.send_header("Location", f"/store/{path}")
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(of).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if manner == "changed":
            data = bytes(reversed(data))
        if manner == "html":
            data = b"<html><body>We will be back soon.</body></html>"
        self.send_response(200)
        if manner not in ("unsized", "cut"):
            size = len(data) // 2 if manner == "short" else len(data)
            self.send_header("Content-Length", str(size))
        self.end_headers()
        if manner == "drip":
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.server.stopped.wait(0.05):
                    return
        half = manner in ("truncated", "short", "cut")
        self.wfile.write(data[: len(data) // 2] if half else data)

    def handle(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # a client that gave up
            super().handle()


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub, server.stopped = hub, threading.Event()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
