"""Checks of the path from a client to a server, including all proxies: they open streams and watch them.

Nothing is published, because every stream sends something by itself: a first block at once, a gap if the client sends a
cursor that is unknown, and heartbeats when it is idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

from sse_pg.auth.exposure import is_loopback
from sse_pg.client.parser import Block, Parser
from sse_pg.client.responses import problem_of, reason_of
from sse_pg.core.cursor import DOCTOR_TEXT
from sse_pg.core.framing import GZIP_HEAD
from sse_pg.doctor.finding import Finding, error, ok, unchecked, warning
from sse_pg.errors import ClientError

CHANNEL = "sse-pg.doctor"
#: Time to connect; time for the head of a response, and again for the first block after it.
CONNECT_TIMEOUT_S, RESPONSE_TIMEOUT_S = 4.0, 8.0
#: Time after which the first block counts as late.
FIRST_BLOCK_LATE_S = 1.0

FIX_CERTIFICATE = (
    "configure the proxy with a certificate that clients trust, including its chain; if it comes from your own "
    "authority, run this command with SSL_CERT_FILE=authority.pem"
)
FIX_BUFFERING = (
    "turn off buffering for /api/events/stream; nginx: `proxy_buffering off;`, and no `proxy_ignore_headers "
    "X-Accel-Buffering` (the server sends X-Accel-Buffering: no)"
)


@dataclass
class _Stream:
    """An open stream, and what has arrived so far."""

    response: aiohttp.ClientResponse
    started: float
    parser: Parser = field(default_factory=Parser)
    blocks: list[Block] = field(default_factory=list)
    comments: int = 0
    head: bytes = b""
    """The first bytes as they arrive, compressed or not."""
    _inflate: Callable[[bytes], bytes] | None = None

    async def read(self) -> bool:
        """Wait for the next data; return False at the end of the stream. Raises zlib.error if it cannot be read."""
        chunk = await self.response.content.readany()
        self.head += chunk[: len(GZIP_HEAD) - len(self.head)]
        self.blocks += self.parser.feed(self._decoded(chunk))
        self.comments = self.parser.comments
        return bool(chunk)

    def _decoded(self, chunk: bytes) -> bytes:
        if self.encoding != "gzip":
            return chunk
        if self._inflate is None:
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress
        return self._inflate(chunk)

    @property
    def encoding(self) -> str:
        """The encoding of the response."""
        return self.response.headers.get("Content-Encoding", "identity")


async def proxy(url: str, *, wait: float, headers: Mapping[str, str]) -> list[Finding]:
    """Open streams of the server at ``url`` (``https://host``, with a prefix if there is one); return the findings.

    ``wait`` is how many seconds a quiet stream is watched; 0 skips that. ``headers`` are sent with each request.
    """
    target = url.rstrip("/") + "/api/events/stream"
    if not _is_http(target):
        return [
            error("stream", f"{url!r} is not an http:// or https:// URL", "give --url the address that clients use")
        ]
    found: list[Finding] = []
    try:
        async with _opened(target, headers) as stream:
            found += await _first_block(stream, target)
            if any(each.state == "error" for each in found):
                return found
            found += _access(target, headers)
            found += [_compression(stream), await _protocol(target), await _resumes(target, headers)]
            found.append(await _quiet(stream, wait))
    except (aiohttp.ClientError, ClientError, zlib.error) as problem:
        untrusted = isinstance(problem, aiohttp.ClientConnectorCertificateError)
        fix = FIX_CERTIFICATE if untrusted else "check that the proxy and a server are up"
        found.append(error("stream", f"{target} cannot be read: {_reason(problem)}", fix))
    except (OSError, TimeoutError) as problem:
        what = f"the head of the response does not arrive ({_reason(problem)}): it is held back, or there is no server"
        found.append(error("buffering", what, FIX_BUFFERING))
    return found


@asynccontextmanager
async def _opened(target: str, headers: Mapping[str, str], **more: str) -> AsyncIterator[_Stream]:
    """Open a stream as a browser does, which accepts compressed responses. It is decoded here: see _compression()."""
    sent = {"Accept": "text/event-stream", "Accept-Encoding": "gzip", "Cache-Control": "no-cache"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
    started = time.monotonic()
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        async with asyncio.timeout(RESPONSE_TIMEOUT_S):
            response = await session.get(
                target, params={"channels": CHANNEL}, headers={**sent, **headers, **more}, allow_redirects=False
            )
        try:
            yield _Stream(response, started)
        finally:
            response.close()


async def _first_block(stream: _Stream, target: str) -> list[Finding]:
    """Check the head of the response, and when the first block arrives."""
    response = stream.response
    if response.status != 200:
        fix = "let the proxy forward /api/events/ to a server that is up"
        if response.status in (301, 302, 307, 308):
            fix = f"use the address that it redirects to as --url: {response.headers.get('Location', '?')}"
        elif response.status in (401, 403):
            fix = "send a token that may read the channel sse-pg.doctor, in SSE_PG_TOKEN or with --header"
        return [error("stream", await _refusal(response), fix)]
    if response.content_type != "text/event-stream":
        return [
            error(
                "stream",
                f"the response is {response.content_type}, not text/event-stream",
                "let the proxy forward /api/events/ to the server and return its Content-Type unchanged",
            )
        ]
    found = [ok("stream", f"{target} responds with text/event-stream")]
    control = response.headers.get("Cache-Control", "")
    if "no-cache" not in control:
        found.append(
            warning(
                "caching",
                f"Cache-Control is {control or 'missing'}: a cache may store the stream",
                "let the proxy return Cache-Control as the server sends it",
            )
        )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RESPONSE_TIMEOUT_S):
            while not stream.blocks and await stream.read():
                pass
    took = time.monotonic() - stream.started
    if not stream.blocks:
        found.append(
            error("buffering", f"nothing of the stream arrives within {took:.0f} s: it is held back", FIX_BUFFERING)
        )
    elif stream.blocks[0].event != "sse-pg.hello":
        found.append(
            error("buffering", "the stream does not begin with sse-pg.hello", "check --url: this is another server")
        )
    elif took > FIRST_BLOCK_LATE_S:
        found.append(warning("buffering", f"the first block arrives after {took:.1f} s", FIX_BUFFERING))
    else:
        found.append(ok("buffering", f"the first block arrives after {took * 1000:.0f} ms"))
    return found


async def _refusal(response: aiohttp.ClientResponse) -> str:
    """Return the status of a refusal and what the response says about it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RESPONSE_TIMEOUT_S):
            return await problem_of(response)
    return f"{response.url} responds with {response.status}"


def _access(target: str, headers: Mapping[str, str]) -> list[Finding]:
    """Warn if the stream, which is open, needed no token."""
    if is_loopback(urlsplit(target).hostname or "") or {"authorization", "cookie"} & {name.lower() for name in headers}:
        return []
    return [
        warning(
            "access",
            "the stream opens without a token: anybody who can reach this address can read everything",
            "set SSE_PG_TOKEN_SECRET or another source of keys, or let the proxy authenticate the clients",
        )
    ]


def _compression(stream: _Stream) -> Finding:
    if stream.encoding == "identity":
        return ok("compression", "none")
    if stream.head == GZIP_HEAD:
        return ok("compression", "gzip, by the server, which holds nothing back")
    return warning(
        "compression",
        f"the stream is compressed on its way ({stream.encoding}): "
        "a compressor holds events back until a block of it is full",
        "do not compress text/event-stream; nginx: `gzip off;` for /api/events/stream",
    )


async def _protocol(target: str) -> Finding:
    """Find out with ALPN which protocol a browser would use; without TLS it is HTTP/1.1."""
    parts = urlsplit(target)
    host = parts.hostname or ""
    six = "a browser opens only six connections per host, and each stream occupies one"
    if parts.scheme == "http":
        if is_loopback(host):
            return ok("protocol", f"HTTP/1.1 without TLS, on this machine ({six})")
        return warning("protocol", f"no TLS, so browsers use HTTP/1.1: {six}", "let the proxy serve HTTPS with HTTP/2")
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    _reader, writer = await asyncio.wait_for(
        asyncio.open_connection(host, parts.port or 443, ssl=context, server_hostname=host), RESPONSE_TIMEOUT_S
    )
    chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    if chosen == "h2":
        return ok("protocol", "HTTP/2")
    return warning("protocol", f"HTTP/1.1: {six}", "turn on HTTP/2 in the proxy; nginx: `http2 on;`")


async def _resumes(target: str, headers: Mapping[str, str]) -> Finding:
    """Send a Last-Event-ID that is not a cursor: a server that receives it sends a gap at once."""
    async with _opened(target, headers, **{"Last-Event-ID": DOCTOR_TEXT}) as stream:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESPONSE_TIMEOUT_S):
                while not stream.blocks and await stream.read():
                    pass
    if any(block.event == "sse-pg.gap" and DOCTOR_TEXT in block.data for block in stream.blocks):
        return ok("resume", "Last-Event-ID reaches the server")
    return error(
        "resume",
        "Last-Event-ID does not reach the server: a browser that reconnects loses the events that it missed",
        "let the proxy forward the request header Last-Event-ID",
    )


async def _quiet(stream: _Stream, wait: float) -> Finding:
    """Check that a stream on which nothing is published stays open and gets heartbeats."""
    if not wait:
        return unchecked("quiet", "whether a quiet stream stays open was not checked", "--wait 60 watches it for 60 s")
    began = time.monotonic()
    before = len(stream.blocks) + stream.comments
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(wait):
            while await stream.read():
                pass
    lasted = time.monotonic() - began
    if lasted < wait:
        return error(
            "quiet",
            f"a quiet stream is closed after {lasted:.0f} s",
            "set the idle timeout of the proxy above SSE_PG_HEARTBEAT_SECONDS; nginx: `proxy_read_timeout 1h;`",
        )
    arrived = len(stream.blocks) + stream.comments - before
    if not arrived:
        return warning(
            "quiet",
            f"nothing arrived within {wait:g} s, not even a heartbeat",
            "watch for longer than SSE_PG_HEARTBEAT_SECONDS (--wait); if nothing arrives then, the proxy holds "
            "it back: " + FIX_BUFFERING,
        )
    return ok("quiet", f"a quiet stream stays open for {wait:g} s; it got {arrived} heartbeats or blocks")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _reason(problem: BaseException) -> str:
    if isinstance(problem, TimeoutError):
        return f"no response within {RESPONSE_TIMEOUT_S:g} s"
    return " ".join(reason_of(problem).split())
