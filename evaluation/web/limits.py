"""What a request may cost: bytes and seconds of it, hosts and origins, how many work at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


CONNECTIONS = 256  # at a time; more are answered with 503
HEADER_S = 10.0  # for the head of a request, from its connection or from the answer before
BODY_S = 60.0  # for its body


class TooLargeError(Exception):
    """A body went over the limit while it was being read."""


class TooSlowError(Exception):
    """A body did not come within ``BODY_S``."""


class PromptProtocol(H11Protocol):
    """HTTP of uvicorn for clients that send the head of a request within ``HEADER_S``.

    uvicorn waits for it as long as the client likes, and everyone holds a connection meanwhile.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch a connection."""
        super().connection_made(transport)
        self._watch()

    def _watch(self) -> None:
        self.loop.call_later(HEADER_S, self._check, self.cycle)

    def _check(self, before: object) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is before and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        else:
            self._watch()


class BusyError(Exception):
    """As many requests as are allowed are at work."""


class Gate:
    """Lets a number of requests work at once and turns others away at once."""

    def __init__(self, places: int) -> None:
        self._free = threading.BoundedSemaphore(places)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place. Raises ``BusyError`` when there is none."""
        if not self._free.acquire(blocking=False):
            raise BusyError
        try:
            yield
        finally:
            self._free.release()


class Guard:
    """ASGI middleware: limits bodies, refuses foreign hosts and origins, adds security headers.

    A page of another site must not put this machine to work: browsers name where a request comes
    from, and a name server that points a foreign name at this machine is told by the host.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, hosts: frozenset[str]) -> None:
        """``hosts`` are names under which the server is reached; ``*`` allows all."""
        self._app, self._max, self._hosts = app, max_bytes, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(headers)
        if refused is not None:
            close = {"Connection": "close"}  # its body is not read
            await JSONResponse({"error": refused[1]}, refused[0], close)(scope, receive, send)
            return
        seen, whole = 0, False
        refusal: JSONResponse | None = None
        deadline = asyncio.get_running_loop().time() + BODY_S

        async def counted() -> Message:
            nonlocal seen, whole, refusal
            if whole:  # what comes now is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refusal = self._too_slow()
                raise TooSlowError from None  # the application answers with what it makes of it
            seen += len(message.get("body", b""))
            if seen > self._max:
                refusal = self._too_large()
                raise TooLargeError
            whole = not message.get("more_body", False)
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.lower().encode(), v.encode()) for k, v in SECURITY_HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        async def answer(message: Message) -> None:
            if refusal is None:
                await with_headers(message)

        with suppress(TooLargeError, TooSlowError):
            await self._app(scope, counted, answer)
        if refusal is not None:
            await refusal(scope, receive, with_headers)

    def _too_large(self) -> JSONResponse:
        told = f"the request is larger than {self._max / 1e6:g} MB; give a smaller file"
        return JSONResponse({"error": told}, 413, headers={"Connection": "close"})

    def _too_slow(self) -> JSONResponse:
        told = f"the request did not come within {BODY_S:g} s; send it faster, or a smaller file"
        return JSONResponse({"error": told}, 408, headers={"Connection": "close"})

    def _refused(self, headers: dict[bytes, str]) -> tuple[int, str] | None:
        host = headers.get(b"host", "")
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if "*" not in self._hosts and name not in self._hosts:
            return 403, f"this server is not {name or 'reached without a name'}; see --host"
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "requests from other sites are refused"
        if b"transfer-encoding" in headers and b"content-length" in headers:
            return 400, "the request says twice how long it is"  # a proxy may believe the other
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > self._max:
            return 413, f"the request is larger than {self._max / 1e6:g} MB; give a smaller file"
        return None
