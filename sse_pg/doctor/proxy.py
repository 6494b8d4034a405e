"""Checks of the way from a client to a server, through whatever proxies there are: opens streams and looks at them.

Nothing is published. What a stream says by itself is enough: it greets at once, it tells a client that shows a cursor
that means nothing so, and it breaks its silence with heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

from sse_pg.auth.exposure import is_loopback
from sse_pg.client.parser import Block, Parser
from sse_pg.doctor.finding import Finding, error, ok, unchecked, warning
from sse_pg.errors import ClientError, one_line

CHANNEL = "sse-pg.doctor"
#: A Last-Event-ID that is no cursor; a server that is shown it says so in a gap.
NO_CURSOR = "sse-pg-doctor"
#: Seconds to connect, and seconds for the head of an answer, as for the first block after it.
CONNECT, PATIENCE = 4.0, 8.0
#: Seconds after which a first block is late.
LATE = 1.0

UNTRUSTED = (
    "name a certificate that clients trust in the proxy, with its chain; where it is your own authority's, run this "
    "with SSL_CERT_FILE=authority.pem"
)
UNBUFFER = (
    "turn buffering off for /api/events/stream; nginx: `proxy_buffering off;`, and no `proxy_ignore_headers "
    "X-Accel-Buffering` (the server sends X-Accel-Buffering: no)"
)


@dataclass
class _Open:
    """A stream that was opened."""

    response: aiohttp.ClientResponse
    started: float
    parser: Parser = field(default_factory=Parser)
    blocks: list[Block] = field(default_factory=list)
    comments: int = 0

    async def read(self) -> bool:
        """Take in what comes next; False at the end of the stream."""
        chunk = await self.response.content.readany()
        self.blocks += self.parser.feed(chunk)
        self.comments = self.parser.comments
        return bool(chunk)


async def proxy(url: str, *, wait: float, headers: Mapping[str, str]) -> list[Finding]:
    """Open streams of the server at ``url`` (``https://host``, and a prefix if any) and tell what is wrong with them.

    ``wait``: for how many seconds a quiet stream is watched; 0 leaves that out. ``headers`` go with each request.
    """
    target = url.rstrip("/") + "/api/events/stream"
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return [
            error("stream", f"{url!r} is not an http:// or https:// URL", "give --url the address that clients use")
        ]
    found: list[Finding] = []
    try:
        async with _opened(target, headers) as stream:
            found += await _greeted(stream, target)
            if any(each.state == "error" for each in found):
                return found
            found += _access(target, headers)
            found += [_compression(stream), await _protocol(target), await _resumes(target, headers)]
            found.append(await _quiet(stream, wait))
    except (aiohttp.ClientError, ClientError) as problem:
        untrusted = isinstance(problem, aiohttp.ClientConnectorCertificateError)
        mend = UNTRUSTED if untrusted else "see that the proxy and a server are up"
        found.append(error("stream", f"{target} cannot be read: {_reason(problem)}", mend))
    except (OSError, TimeoutError) as problem:
        words = f"not even the head of an answer arrives ({_reason(problem)}): it is held back, or no server is there"
        found.append(error("buffering", words, UNBUFFER))
    return found


@asynccontextmanager
async def _opened(target: str, headers: Mapping[str, str], **more: str) -> AsyncIterator[_Open]:
    """Open a stream as a browser does, which takes compressed answers."""
    sent = {"Accept": "text/event-stream", "Accept-Encoding": "gzip, deflate", "Cache-Control": "no-cache"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT)
    started = time.monotonic()
    async with aiohttp.ClientSession(timeout=timeout) as session:
        async with asyncio.timeout(PATIENCE):
            response = await session.get(
                target, params={"channels": CHANNEL}, headers={**sent, **headers, **more}, allow_redirects=False
            )
        try:
            yield _Open(response, started)
        finally:
            response.close()


async def _greeted(stream: _Open, target: str) -> list[Finding]:
    """Judge the head of the answer, and when the first block comes."""
    response = stream.response
    if response.status != 200:
        mend = "let the proxy pass /api/events/ on to a server that is up"
        if response.status in (301, 302, 307, 308):
            mend = f"give --url the address that it redirects to: {response.headers.get('Location', '?')}"
        elif response.status in (401, 403):
            mend = "show a token that may read the channel sse-pg.doctor, in SSE_PG_TOKEN or with --header"
        return [error("stream", f"{target} answers {response.status}", mend)]
    if response.content_type != "text/event-stream":
        return [
            error(
                "stream",
                f"the answer is {response.content_type}, not text/event-stream",
                "let the proxy pass /api/events/ on to the server, and its Content-Type back",
            )
        ]
    found = [ok("stream", f"{target} answers text/event-stream")]
    control = response.headers.get("Cache-Control", "")
    if "no-cache" not in control:
        found.append(
            warning(
                "caching",
                f"Cache-Control is {control or 'missing'}: a cache may keep the stream",
                "let the proxy pass Cache-Control on as the server sends it",
            )
        )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not stream.blocks and await stream.read():
                pass
    took = time.monotonic() - stream.started
    if not stream.blocks:
        found.append(error("buffering", f"nothing of the stream arrives in {took:.0f} s: it is held back", UNBUFFER))
    elif stream.blocks[0].event != "sse-pg.hello":
        found.append(error("buffering", "the stream does not begin with sse-pg.hello", "--url leads to another server"))
    elif took > LATE:
        found.append(warning("buffering", f"the first block takes {took:.1f} s", UNBUFFER))
    else:
        found.append(ok("buffering", f"the first block is there after {took * 1000:.0f} ms"))
    return found


def _access(target: str, headers: Mapping[str, str]) -> list[Finding]:
    """Judge that the stream was opened with these headers."""
    if is_loopback(urlsplit(target).hostname or "") or {"authorization", "cookie"} & {name.lower() for name in headers}:
        return []
    return [
        warning(
            "access",
            "the stream opens without a token: whoever reaches this address reads everything",
            "set SSE_PG_TOKEN_SECRET or another source of keys, or let the proxy ask who comes",
        )
    ]


def _compression(stream: _Open) -> Finding:
    encoding = stream.response.headers.get("Content-Encoding", "identity")
    if encoding == "identity":
        return ok("compression", "none")
    return warning(
        "compression",
        f"the stream is compressed ({encoding}): compressors hold events back until there is enough",
        "take text/event-stream out of what is compressed; nginx: `gzip off;` for /api/events/stream",
    )


async def _protocol(target: str) -> Finding:
    """Find out by ALPN what a browser would speak; without TLS browsers speak HTTP/1.1."""
    parts = urlsplit(target)
    host = parts.hostname or ""
    six = "a browser opens six connections to a host, and each stream holds one"
    if parts.scheme == "http":
        if is_loopback(host):
            return ok("protocol", f"HTTP/1.1 without TLS, on this machine ({six})")
        return warning("protocol", f"no TLS, so browsers speak HTTP/1.1: {six}", "serve HTTPS with HTTP/2 in the proxy")
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    _reader, writer = await asyncio.wait_for(
        asyncio.open_connection(host, parts.port or 443, ssl=context, server_hostname=host), PATIENCE
    )
    chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    if chosen == "h2":
        return ok("protocol", "HTTP/2")
    return warning("protocol", f"HTTP/1.1: {six}", "turn HTTP/2 on in the proxy; nginx: `http2 on;`")


async def _resumes(target: str, headers: Mapping[str, str]) -> Finding:
    """Show a cursor that means nothing: who gets it says so, at once, in a gap."""
    async with _opened(target, headers, **{"Last-Event-ID": NO_CURSOR}) as stream:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not stream.blocks and await stream.read():
                    pass
    if any(block.event == "sse-pg.gap" and NO_CURSOR in block.data for block in stream.blocks):
        return ok("resume", "Last-Event-ID reaches the server")
    return error(
        "resume",
        "Last-Event-ID does not reach the server: a browser that reconnects loses what it missed",
        "let the proxy pass the request header Last-Event-ID on",
    )


async def _quiet(stream: _Open, wait: float) -> Finding:
    """Watch a stream on which nothing is published."""
    if not wait:
        return unchecked("quiet", "whether a quiet stream lives on was not watched", "--wait 60 watches for 60 s")
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
            f"a quiet stream is cut after {lasted:.0f} s",
            "let the proxy wait for longer than SSE_PG_HEARTBEAT_SECONDS; nginx: `proxy_read_timeout 1h;`",
        )
    signs = len(stream.blocks) + stream.comments - before
    if not signs:
        return warning(
            "quiet",
            f"nothing came for {wait:g} s, no heartbeat either",
            "watch for longer than SSE_PG_HEARTBEAT_SECONDS (--wait); if still nothing comes, the proxy holds it back: "
            + UNBUFFER,
        )
    return ok("quiet", f"a quiet stream lives on for {wait:g} s; signs of life: {signs}")


def _reason(problem: BaseException) -> str:
    if isinstance(problem, TimeoutError):
        return f"no answer within {PATIENCE:g} s"
    return one_line(problem)
