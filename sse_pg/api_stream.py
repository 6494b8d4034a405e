"""GET /api/events/stream: Server-Sent Events, from a cursor or from now on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Coroutine
from random import random

from aiohttp import web
from aiohttp.http import HttpVersion11

from sse_pg import fields, logs, wire
from sse_pg.bus import Bus
from sse_pg.cursor import START, Cursor
from sse_pg.errors import BusUnavailable, CursorError
from sse_pg.problem import FieldError, Problem, invalid, unavailable
from sse_pg.stream import Stream

log = logging.getLogger(__name__)

HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}
#: Milliseconds after which data that a peer does not acknowledge ends its connection.
UNACKNOWLEDGED_MS = 30000
#: Seconds that a stream without a cursor waits for the tail before it opens.
READ_UP = 1.0
#: Channels of a stream that a log line names.
SHOWN = 5


class StreamApi:
    """Opening streams and seeing them to their end."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [web.get("/api/events/stream", self.stream, allow_head=False)]

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answer with a stream that lasts until the client goes or the server ends it.

        What is local here stays in memory as long as the stream is open: the rest is done elsewhere.
        """
        bus = self._bus
        identity = await bus.access.identify(request)
        user = fields.query_user(request.query)
        stream = await self._admit(request, user, bus.access.user(identity, user))
        follows = user if not stream.channels else None
        opened = time.monotonic()
        number = 0
        reason = "the client went"
        expiry: asyncio.TimerHandle | None = None
        response = web.StreamResponse(headers=HEADERS)
        with bus.limits.streams.one(stream.user, bus.limits.proxies.client(request)):
            try:
                if follows is not None:
                    await bus.followers.follow(stream, follows, identity.subscribe)
                else:
                    bus.authorizer.watch(stream)
                    await bus.access.require(identity, stream.user, "subscribe", stream.channels, "channels")
                response.force_close()
                await response.prepare(request)
                _bound_unacknowledged(stream.transport)
                number = bus.hub.add(stream)
                if identity.expires is not None:
                    expiry = asyncio.get_running_loop().call_later(
                        max(0.0, identity.expires - time.time()), stream.end, "its token has expired"
                    )
                log.info(
                    "stream opened: %s",
                    _whom(request, stream),
                    extra=logs.fields(**self._about(request, stream, number)),
                )
                await _unless_ended(stream, self._bring_up(stream, _asked_for(request)))
                reason = await stream.ended
                return response
            except Exception:
                if not response.prepared:
                    raise
                # The head is out: a problem document would land in the middle of the blocks.
                log.exception("a stream failed: %s", _whom(request, stream))
                reason = "an error"
                stream.transport.abort()
                return response
            finally:
                if expiry is not None:
                    expiry.cancel()
                if (
                    stream.ended.done() and not stream.ended.cancelled()
                ):  # cutting off a slow client also cancels what runs here
                    reason = stream.ended.result()
                bus.hub.leave(stream, reason)
                bus.authorizer.unwatch(stream)
                if follows is not None:
                    bus.followers.leave(stream, follows)
                if number:
                    self._tell_end(request, stream, number, reason, time.monotonic() - opened)

    def _tell_end(self, request: web.Request, stream: Stream, number: int, reason: str, seconds: float) -> None:
        log.info(
            "stream closed: %s, %s, %.1f s, %d events and %d replayed, %d bytes",
            _whom(request, stream), reason, seconds, stream.events, stream.replayed, stream.sent_bytes,
            extra=logs.fields(
                **self._about(request, stream, number),
                reason=reason,
                seconds=round(seconds, 3),
                events=stream.events,
                replayed=stream.replayed,
                bytes=stream.sent_bytes,
            ),
        )  # fmt: skip

    def _about(self, request: web.Request, stream: Stream, number: int) -> dict[str, object]:
        """Return what both log lines of a stream have; its number is of this process."""
        return {
            "stream": number,
            "remote": self._bus.limits.proxies.client(request),
            "user": stream.user,
            "channels": sorted(stream.channels)[:SHOWN],
            "channel_count": len(stream.channels),
        }

    async def _admit(self, request: web.Request, user: str | None, asked_about: str | None) -> Stream:
        """Return the stream that is asked for, not yet open; raises the problem that says why there is none.

        ``asked_about`` is whom the access rules are asked about.
        """
        bus = self._bus
        channels = fields.query_channels(request.query, "channels", bus.settings.max_channels)
        envelope = fields.query_flag(request.query, "envelope")
        if user is None and not channels:
            raise invalid([FieldError("channels", "name channels, or a userId, or both")])
        await self._require_ready(request)
        if len(bus.hub.streams) >= bus.settings.max_streams:
            raise unavailable(f"This server has its {bus.settings.max_streams} streams.", limit="streams")
        if user is not None and channels:
            await self._require_subscribed(user, channels)
        if request.transport is None:
            raise asyncio.CancelledError  # the client went while we looked
        return Stream(
            request.transport,
            channels=frozenset(channels),
            cursor=START,
            envelope=envelope,
            chunked=request.version >= HttpVersion11,
            buffer_limit=bus.settings.stream_buffer,
            now=time.monotonic(),
            user=asked_about,
        )

    async def _require_ready(self, request: web.Request) -> None:
        """Wait a moment for the LISTEN connection; turn the client away where it does not come, or the server stops.

        An EventSource never comes back after an answer other than 200, and comes back after a lost connection. So who
        asks for an event stream by name has its connection dropped; anybody else is told 503.
        """
        bus = self._bus
        if not bus.draining and not bus.tail.listening.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(bus.settings.pool_timeout):
                    await bus.tail.listening.wait()
        reason = bus.why_not_ready()
        if reason is None:
            return
        if "text/event-stream" in request.headers.get("Accept", "") and request.transport is not None:
            bus.turned_away["not_ready"] += 1
            request.transport.abort()
            raise asyncio.CancelledError
        raise unavailable(f"Not ready: {reason}.", limit="not_ready")

    async def _require_subscribed(self, user: str, channels: list[str]) -> None:
        subscribed = {name for name, _ in await self._bus.store.subscriptions(user)}
        missing = [name for name in channels if name not in subscribed]
        if missing:
            raise Problem(
                403,
                f"User {user} is not subscribed to {', '.join(missing)}.",
                errors=[FieldError("channels", name) for name in missing],
            )

    async def _bring_up(self, stream: Stream, asked: str | None) -> None:
        """Greet a stream and make it live; where the database is away, wait with the stream open."""
        greeted = False
        while True:
            try:
                if not greeted:
                    cursor, lost = await self._start_of(asked)
                    self._greet(stream, cursor or self._bus.hub.position, asked if lost else None)
                    greeted = True
                await self._bus.replay.catch_up(stream)
                return
            except BusUnavailable as error:
                log.warning("a stream waits for the database: %s", error)
                await asyncio.sleep(0.2 + 0.6 * random())  # noqa: S311 - jitter
                await self._bus.tail.listening.wait()

    async def _start_of(self, asked: str | None) -> tuple[Cursor | None, bool]:
        """Return where a stream begins (None: now), and whether what was asked for is of no log, or of a lost one."""
        counts, kind = self._bus.cursors, "none"
        try:
            if asked is not None:
                cursor, lost = await self._bus.replay.judge(Cursor.parse(asked))
                counts["lost" if lost else "known"] += 1
                return cursor, lost
        except CursorError:
            kind = "malformed"
        counts[kind] += 1
        # Let the tail read what is committed, so that "from now on" leaves it out. It may be behind: not for long.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_UP):
                await self._bus.tail.fresh()
        return None, asked is not None

    def _greet(self, stream: Stream, cursor: Cursor, lost: str | None) -> None:
        """Send the first block, and say so where the cursor that the client asked for means nothing here.

        In one write: a client that drops between the two would take the hello's position for its own.
        """
        retry_ms = int(self._bus.settings.retry * 1000 * (0.5 + random()))  # noqa: S311 - jitter, not a secret
        stream.cursor = cursor
        stream.greeted = True
        greeting = wire.hello(cursor, retry_ms)
        if lost is not None:
            self._bus.hub.gap_notices["unknown"] += 1
            greeting += wire.gap("unknown", _printable(lost), cursor)
        stream.tell(greeting, cursor, time.monotonic())


async def _unless_ended(stream: Stream, work: Coroutine[None, None, None]) -> None:
    """Do some work on a stream, but no longer than until it is ended."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task, stream.ended), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()


def _asked_for(request: web.Request) -> str | None:
    """Return the cursor a client came with. The header is newer than the URL: browsers repeat the URL as it was."""
    for text in (
        request.headers.get("Last-Event-ID"),
        request.query.get("lastEventId"),
        request.query.get("last_event_id"),
    ):
        if text:
            return text
    return None


def _printable(asked: str) -> str:
    """Return what can be told of a text that is no cursor; a header may hold bytes that are not UTF-8."""
    return asked[:128].encode(errors="replace").decode()


def _whom(request: web.Request, stream: Stream) -> str:
    names = sorted(stream.channels)
    shown = ",".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return f"{request.remote} user={stream.user!r} channels={shown!r}"


def _bound_unacknowledged(transport: asyncio.Transport) -> None:
    """Let the kernel end a connection whose peer is gone without a word."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
