"""Fetching files over HTTP into a shared cache, checked before anybody sees them.

``Downloads.get`` hands a whole, checked file to a function: one that is at hand, one of the cache
(see ``pipeline.datasets.download_cache``), or one that is fetched now. A transfer counts only when
its length is what the server announced, its SHA-256 is what the caller or the server published, and
the function that reads it finds it whole. Anything less is fetched again, after a pause that
doubles, until the attempts or the time are used up.

The Hugging Face hub publishes length and SHA-256 of a file in the headers ``X-Linked-Size`` and
``X-Linked-Etag`` of the redirect that leads to its store (``huggingface_hub.constants``).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pipeline.common import file_hash
from pipeline.datasets.download_cache import CacheFolder, CacheFullError, Identity, Part

T = TypeVar("T")
_CHUNK = 1 << 16
_MAX_JSON_BYTES = 1 << 30  # that a gzip file of JSON may unfold to
_LONGEST_PAUSE_S = 30.0
# Answers of a server that may be different a moment later; every other 4xx is final.
_PASSING = {408, 425, 429}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DownloadError(Exception):
    """A file cannot be had. The message names it and says why."""


class TooLargeError(DownloadError):
    """A file is larger than the caller takes."""


class DamagedError(Exception):
    """The bytes of a file are not what they should be: half of it, or something else."""


class _TryAgainError(Exception):
    def __init__(self, message: str, after_s: float = 0.0, digest: str = "") -> None:
        super().__init__(message)
        self.after_s, self.digest = after_s, digest


@dataclass(frozen=True)
class Policy:
    """How long to try."""

    attempts: int = 5
    pause_s: float = 1.0  # before the second attempt; doubles, and varies by half
    idle_s: float = 20.0  # without a byte, after which an attempt is given up
    # For one file with all attempts and pauses. Below the time that an object may take in the job
    # (120 s unless said otherwise), so that the failure says what was slow.
    total_s: float = 90.0


@dataclass(frozen=True)
class Downloads:
    """Where fetched files are kept, and how they are fetched. Picklable; holds no connection."""

    cache: CacheFolder
    keep: bool = True  # False: a fetched file is removed as soon as it was read
    max_bytes: int | None = None  # of one file
    policy: Policy = field(default_factory=Policy)

    def get(
        self,
        url: str | None,
        name: str,
        use: Callable[[Path], T],
        *,
        sha256: str | None = None,
        found: Sequence[Path] = (),
    ) -> T:
        """What ``use`` makes of the file, which stays in place while ``use`` runs.

        Args:
            url: where it is fetched from (http or https); None: it is not fetched.
            name: of the file in the cache, a relative POSIX path.
            use: reads the file at the path that it is given, whose suffix may differ; raises
                ``DamagedError`` where the file is not whole.
            sha256: of the file, where it is known.
            found: places where the file may be already. They are read, never changed.

        Raises:
            DownloadError: the file cannot be had (``TooLargeError``: not within ``max_bytes``).

        """
        damage = None
        for path in found:
            if path.is_file():
                try:
                    return _checked(path, sha256, use)
                except DamagedError as error:
                    damage = str(error)
        if url is None:
            raise DownloadError(f"{name} is {'damaged: ' + damage if damage else 'not there'}")
        try:
            return self._cached_or_fetched(url, name, use, sha256)
        except CacheFullError as error:
            raise DownloadError(f"{name}: {error}; raise --cache-size") from None
        except TimeoutError as error:
            raise DownloadError(f"{name}: {error}") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise DownloadError(f"{name}: the cache cannot be used: {reason}") from error

    def _cached_or_fetched(
        self, url: str, name: str, use: Callable[[Path], T], sha256: str | None
    ) -> T:
        deadline = time.monotonic() + self.policy.total_s
        stale: Identity | None = None
        while True:
            with self.cache.reading(name) as hit:
                if hit is not None:
                    try:
                        value = _checked(hit.path, sha256, use)
                    except DamagedError:
                        stale, hit = hit.identity, None
            if hit is not None:
                if not self.keep:
                    self.cache.discard(name)
                return value
            with self.cache.writing(name, deadline, stale) as part:
                if part is not None:
                    return self._fetch(url, part, use, sha256, deadline)
            # Another worker has fetched it meanwhile.

    def _fetch(
        self, url: str, part: Part, use: Callable[[Path], T], sha256: str | None, deadline: float
    ) -> T:
        reason, after_s, tried, digest = "", 0.0, 0, ""
        for attempt in range(self.policy.attempts):
            if attempt:
                pause = self.policy.pause_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                pause = max(min(pause, _LONGEST_PAUSE_S), after_s)
                if time.monotonic() + pause > deadline:
                    break
                time.sleep(pause)
            tried, after_s, verified = tried + 1, 0.0, False
            part.clear()
            try:
                verified = _transfer(url, part, sha256, self.max_bytes, self.policy, deadline)
                value = use(part.path)
            except _TryAgainError as error:
                reason, after_s = str(error), error.after_s
                if error.digest and error.digest == digest:
                    break  # twice the same wrong bytes: the server has another file
                digest = error.digest
            except DamagedError as error:
                reason = str(error)
                if verified:  # as published: it will not get better
                    break
            else:
                if self.keep:
                    part.commit()
                return value
        times = "1 attempt" if tried == 1 else f"{tried} attempts"
        raise DownloadError(f"{url}: {reason} ({times})")


def _checked(path: Path, sha256: str | None, use: Callable[[Path], T]) -> T:
    if sha256 is not None:
        found = file_hash(path)
        if found != sha256:
            raise DamagedError(_wrong_hash(found, sha256))
    return use(path)


def _wrong_hash(found: str, published: str) -> str:
    return f"its SHA-256 is {found[:12]}..., {published[:12]}... was published"


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, never from https to less, and keeps what they say of the file."""

    def __init__(self) -> None:
        self.size: int | None = None
        self.sha256: str | None = None

    def note(self, headers: Message) -> None:
        """Keep length and SHA-256 where the headers publish them."""
        size = headers.get("X-Linked-Size", "")
        if size.isdigit():
            self.size = int(size)
        etag = headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"').lower()
        if _SHA256.fullmatch(etag):
            self.sha256 = etag

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        self.note(headers)
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise HTTPError(req.full_url, code, "redirects from https to less", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type, unused-ignore]


def _transfer(
    url: str,
    part: Part,
    sha256: str | None,
    max_bytes: int | None,
    policy: Policy,
    deadline: float,
) -> bool:
    """Write what lies at ``url`` to ``part``; whether a published SHA-256 was confirmed.

    Raises ``_TryAgainError`` for what may pass, ``DownloadError`` for what will not.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: only http and https addresses are fetched")
    redirects = _Redirects()
    request = Request(url, headers={"User-Agent": "mrd3d", "Accept-Encoding": "identity"})
    wait = max(0.1, min(policy.idle_s, deadline - time.monotonic()))
    digest = hashlib.sha256()
    total = 0
    try:
        with build_opener(redirects).open(request, timeout=wait) as response:
            redirects.note(response.headers)
            announced = response.headers.get("Content-Length", "")
            length = int(announced) if announced.isdigit() else None
            _check_size(url, length, max_bytes)
            if length is not None:
                with _disk():
                    part.reserve(length, deadline)
            while length is None or total < length:
                chunk = response.read1(_CHUNK if length is None else min(_CHUNK, length - total))
                if not chunk:
                    break
                total += len(chunk)
                if length is None:
                    _check_size(url, total, max_bytes)
                digest.update(chunk)
                with _disk():
                    part.reserve(total, deadline)
                    part.stream.write(chunk)
                if time.monotonic() > deadline:
                    raise _TryAgainError(f"took over {policy.total_s:g} s, {total:,} bytes came")
    except HTTPError as error:
        with error:
            message = f"the server answers {error.code} {error.reason}".strip()
            if error.code < 500 and error.code not in _PASSING:
                raise DownloadError(f"{url}: {message}") from None
            after = error.headers.get("Retry-After", "") if error.headers else ""
            raise _TryAgainError(message, float(after) if after.isdigit() else 0.0) from None
    except _DiskError:
        raise
    except TimeoutError:
        raise _TryAgainError(f"no answer for {wait:.0f} s, {total:,} bytes came") from None
    except URLError as error:
        reason = error.reason
        shown = reason.strerror if isinstance(reason, OSError) else str(reason)
        raise _TryAgainError(f"no connection: {shown or reason}") from None
    except (OSError, HTTPException) as error:
        raise _TryAgainError(f"the connection broke: {error or type(error).__name__}") from None
    for what, size in (("announced", length), ("published", redirects.size)):
        if size is not None and total != size:
            raise _TryAgainError(f"ended after {total:,} of {size:,} bytes that were {what}")
    part.end()
    for published in {sha256, redirects.sha256} - {None}:
        if digest.hexdigest() != published:
            raise _TryAgainError(
                _wrong_hash(digest.hexdigest(), str(published)), 0.0, digest.hexdigest()
            )
    return bool(sha256 or redirects.sha256)


class _DiskError(OSError):
    """Not the network, but the disk of the cache."""


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _DiskError(error.errno, error.strerror) from error


def _check_size(url: str, size: int | None, max_bytes: int | None) -> None:
    if size is not None and max_bytes is not None and size > max_bytes:
        raise TooLargeError(f"{url}: {size:,} bytes; the limit is {max_bytes:,}")


# -- checks of formats -------------------------------------------------------------------------


def check_glb(data: bytes) -> None:
    """Raise ``DamagedError`` unless ``data`` is as long as its glTF binary header says.

    The header is magic, version and the length of the whole file (glTF 2.0, section 4.4.2). Bytes
    after that length are no sign of a broken transfer and are left to the reader of the mesh.
    """
    if len(data) < 12 or data[:4] != b"glTF":
        raise DamagedError(
            f"{len(data):,} bytes that do not begin with glTF" if data else "the file is empty"
        )
    (length,) = struct.unpack_from("<I", data, 8)
    if len(data) < length:
        raise DamagedError(f"{len(data):,} bytes, the glTF header says {length:,}")


def read_gzip_json(path: Path) -> Any:
    """The JSON value of a gzip file. Raises ``DamagedError`` where the file is not whole."""
    try:
        with gzip.open(path, "rb") as stream:
            data = stream.read(_MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise DamagedError(f"unfolds to more than {_MAX_JSON_BYTES:,} bytes")
        return json.loads(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(f"not a whole gzip file ({error})") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"not JSON ({error})"[:200]) from None
