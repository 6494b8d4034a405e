"""GET /api/events/stream: Server-Sent Events, from a cursor or from now on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from random import random

from aiohttp import web
from aiohttp.http import HttpVersion11

from sse_pg import logs
from sse_pg.auth.identity import Identity
from sse_pg.bus import Bus
from sse_pg.core import wire
from sse_pg.core.cursor import DOCTOR_TEXT, START, Cursor
from sse_pg.core.envelope import WHOLE, CloudEvent, Envelope, source_of
from sse_pg.core.framing import Framing
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.ends import is_over
from sse_pg.delivery.stream import Stream
from sse_pg.errors import BusUnavailable, ClientGone, CursorError
from sse_pg.http.accept_encoding import accepts_gzip
from sse_pg.http.problem import FieldError, Problem, invalid, unavailable
from sse_pg.http.query import (
    query_channels,
    query_choice,
    query_flag,
    query_integer,
    query_user,
    require_known,
)
from sse_pg.http.takeover import StreamHead, take_over

log = logging.getLogger(__name__)

HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "Vary": "Accept-Encoding",
}
HEADERS_GZIP = {**HEADERS, "Content-Encoding": "gzip"}
#: Parameters of the query, with those that may hold the cursor, in the order in which they count. The last two are the
#: spellings of Mercure and of some clients.
CURSOR_PARAMETERS = ("lastEventId", "lastEventID", "last_event_id")
PARAMETERS = ("channels", "userId", "envelope", "denied", "until", "latest", *CURSOR_PARAMETERS)
#: Maximum of ``latest``, and of the events of all channels together with which a stream can begin.
MAX_LATEST = 1000
MAX_FIRST_EVENTS = 10_000
#: Maximum time that a stream without a cursor waits for the tail to read what is committed.
FRESH_TIMEOUT_S = 1.0
#: Maximum number of channels that a log line names.
MAX_LOGGED_CHANNELS = 5


class StreamApi:
    """Opens streams and cleans up after them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._on_end = self._ended  # one object for all streams
        self._opening = 0
        bus.hub.bring_up = self._bring_up_again

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [web.get("/api/events/stream", self.stream, allow_head=False)]

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Respond with a stream. It goes on after this has returned, until the client leaves or the server ends it."""
        identity = await self._bus.access.identify(request)
        with self._bus.demand.hold():  # a server at rest comes back; from hub.add() on the stream itself counts
            return await self._open_if_possible(request, identity)

    async def _open_if_possible(self, request: web.Request, identity: Identity) -> web.StreamResponse:
        await self._require_ready(request)
        limit = self._bus.settings.max_streams
        # Those that are being opened count: between here and there are queries.
        if len(self._bus.hub.streams) + self._opening >= limit:
            raise unavailable(f"Stream limit reached ({limit} on this server); retry later.", limit="streams")
        self._opening += 1
        try:
            return await self._open(request, identity)
        finally:
            self._opening -= 1

    async def _open(self, request: web.Request, identity: Identity) -> web.StreamResponse:
        bus = self._bus
        require_known(request.query, *PARAMETERS)
        user = query_user(request.query)
        asked, latest = _requested_cursor(request), query_integer(request.query, "latest", 0, 1, MAX_LATEST)
        stream = await self._admit(request, user, bus.access.user(identity, user))
        response = StreamHead(headers=HEADERS_GZIP if stream.framing is Framing.GZIP else HEADERS)
        response.force_close()
        bus.limits.streams.take(stream.user, stream.remote)
        try:
            if stream.follows is not None:
                await bus.followers.follow(stream, stream.follows, identity.subscribe)
            else:
                bus.authorizer.watch(stream)
                if stream.denied is None:
                    await bus.access.require(identity, stream.user, "subscribe", stream.channels, "channels")
                else:
                    channels = stream.channels
                    bus.hub.deny(stream, channels - await bus.access.readable(identity, stream.user, channels))
            if asked is None:
                _require_few(latest, len(stream.channels))
            if stream.until_end:
                bus.hub.ends.watch(stream)
                if asked is not None and await self._is_over(stream, asked):
                    self._release(stream)
                    return web.Response(status=204, headers={"Cache-Control": "no-store"})
            await response.prepare(request)
            take_over(request, stream)
        except BaseException:
            self._release(stream)
            raise
        bus.hub.add(stream)
        if len(bus.hub.streams) == 1:
            bus.tail.attend()
        if identity.expires is not None:
            stream.expiry = asyncio.get_running_loop().call_later(
                max(0.0, identity.expires - time.time()), stream.end, EndReason.EXPIRED
            )
        log.info("stream opened: %s", _whom(stream), extra=logs.fields(**_about(stream)))
        if bus.draining:  # draining began while it was being opened, so it is not among the streams that are ended
            stream.end(EndReason.DRAIN)
        if stream.reason is None:  # a revocation may have ended it while its head was being sent
            stream.task = asyncio.create_task(self._bring_up(stream, asked, latest))
        return response

    def _release(self, stream: Stream) -> None:
        """Release what a stream holds in the limits and access rules."""
        self._bus.limits.streams.give_back(stream.user, stream.remote)
        self._bus.authorizer.unwatch(stream)
        self._bus.hub.ends.unwatch(stream)
        if stream.follows is not None:
            self._bus.followers.leave(stream, stream.follows)

    def _ended(self, stream: Stream) -> None:
        """Clean up after a stream that has ended."""
        reason = stream.reason
        assert reason is not None
        self._bus.hub.leave(stream, reason)
        self._release(stream)
        seconds = time.monotonic() - stream.opened_at
        log.info(
            "stream closed: %s, %s, %.1f s, %d events and %d replayed, %d bytes",
            _whom(stream), reason.description, seconds, stream.events, stream.replayed, stream.sent_bytes,
            extra=logs.fields(
                **_about(stream),
                reason=reason.value,
                seconds=round(seconds, 3),
                events=stream.events,
                replayed=stream.replayed,
                bytes=stream.sent_bytes,
            ),
        )  # fmt: skip

    async def _admit(self, request: web.Request, user: str | None, asked_about: str | None) -> Stream:
        """Return the requested stream, which is not open yet. Raises the problem that says why it cannot be opened.

        ``asked_about`` is the user for whom the access rule is asked.
        """
        bus = self._bus
        channels = query_channels(request.query, "channels", bus.settings.max_channels)
        envelope = self._envelope(request)
        if user is None and not channels:
            raise invalid([FieldError("channels", "required, unless userId is given")])
        skip = query_choice(request.query, "denied", ("refuse", "skip")) == "skip"
        if skip and not channels:
            raise invalid([FieldError("denied", "needs channels: a stream of userId alone has what is allowed")])
        until_end = "until" in request.query
        if until_end and request.query["until"] != "end":
            raise invalid([FieldError("until", "must be end")])
        if until_end and not channels:
            raise invalid([FieldError("until", "needs channels: those that have to be finished")])
        missing = [] if user is None or not channels else await self._not_subscribed(user, channels)
        if missing and (not skip or len(missing) == len(channels)):
            raise _not_subscribed_problem(user, missing)
        if request.transport is None:
            raise ClientGone
        return Stream(
            request.transport,
            self._on_end,
            channels=frozenset(channels).difference(missing),
            denied=frozenset(missing) if skip else None,
            cursor=START,
            envelope=envelope,
            framing=self._framing(request),
            buffer_limit=bus.settings.stream_buffer,
            now=time.monotonic(),
            user=asked_about,
            follows=user if not channels else None,
            remote=bus.limits.proxies.client(request),
            until_end=until_end,
        )

    def _framing(self, request: web.Request) -> Framing:
        """Return how the bytes travel: compressed if the client accepts that and the setting allows it."""
        if request.version < HttpVersion11:
            return Framing.PLAIN
        if self._bus.settings.compression == "on" and accepts_gzip(request.headers.getall("Accept-Encoding", ())):
            return Framing.GZIP
        return Framing.CHUNKED

    def _envelope(self, request: web.Request) -> Envelope | None:
        """Return the form of the data that a request asks for; None if it is the payload alone."""
        if request.query.get("envelope") == "cloudevents":
            return CloudEvent(source_of(self._bus.pool.log_identity or ""))
        return WHOLE if query_flag(request.query, "envelope", "cloudevents") else None

    async def _require_ready(self, request: web.Request) -> None:
        """Wait briefly for the LISTEN connection. Refuse the client if it does not come up, or the server is stopping.

        An EventSource never reconnects after a response other than 200, but does after a lost connection. So if the
        Accept header names event streams, the connection is dropped; other clients get a 503.
        """
        bus = self._bus
        if not bus.draining and not bus.tail.listening.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(bus.settings.pool_timeout):
                    await bus.tail.listening.wait()
        reason = bus.why_not_ready()
        if reason is None and bus.tail.listening.is_set():
            return
        if "text/event-stream" in request.headers.get("Accept", "") and request.transport is not None:
            bus.refused_requests["not_ready"] += 1
            request.transport.abort()
            raise ClientGone
        raise unavailable(f"Not ready: {reason or bus.tail.last_error}.", limit="not_ready")

    async def _not_subscribed(self, user: str, channels: list[str]) -> list[str]:
        subscribed = {name for name, _ in await self._bus.store.subscriptions(user)}
        return [name for name in channels if name not in subscribed]

    def _bring_up_again(self, stream: Stream) -> None:
        """Let a stream catch up that was live. A crowd of them nearly always can at once, which needs no tasks."""
        try:
            if not stream.until_end and self._bus.replay.catch_up_at_once(stream):
                return
        except Exception:
            log.exception("stream failed: %s", _whom(stream))
            stream.end(EndReason.ERROR)
        else:
            stream.task = asyncio.create_task(self._bring_up(stream, None))

    async def _bring_up(self, stream: Stream, asked: str | None, latest: int = 0) -> None:
        """Send the first block, unless it was sent before, and make the stream live.

        Without a cursor, it begins with the ``latest`` last events of each channel. While the database is unavailable,
        the open stream waits.
        """
        try:
            while True:
                try:
                    if stream.until_end:
                        await self._learn_ends(stream)
                    if not stream.greeted:
                        cursor, lost = await self._start_of(asked)
                        if asked is None and latest:
                            cursor = await self._bus.replay.latest.begin(stream, latest)
                        self._greet(stream, cursor, asked if lost else None)
                    await self._bus.replay.catch_up(stream)
                    if stream.until_end:
                        self._bus.hub.end_if_finished(stream)
                    return
                except BusUnavailable as error:
                    log.warning("stream waits for the database: %s", error)
                    await asyncio.sleep(0.2 + 0.6 * random())  # noqa: S311 - jitter
                    await self._bus.tail.listening.wait()
        except Exception:
            # The head is already sent, so a problem document would end up among the blocks.
            log.exception("stream failed: %s", _whom(stream))
            stream.end(EndReason.ERROR)
        finally:
            stream.task = None

    async def _is_over(self, stream: Stream, asked: str) -> bool:
        """Return whether a client with this cursor has everything of its channels, and each of them is finished.

        The last events are looked up after the cursor was found to be true, at the primary: a standby may lack the
        event that has opened a channel again. If that is not possible now, the stream opens, and ends if it has to.
        """
        bus = self._bus
        with contextlib.suppress(CursorError, BusUnavailable, TimeoutError):
            async with asyncio.timeout(bus.settings.pool_timeout):
                cursor, lost = await bus.replay.validate(Cursor.parse(asked))
                channels = stream.channels
                return not lost and is_over(await bus.store.last_events(sorted(channels)), channels, cursor)
        return False

    async def _learn_ends(self, stream: Stream) -> None:
        """Look up the last events of a stream's channels, unless they are known."""
        ends = self._bus.hub.ends
        if channels := ends.unknown(stream.channels):
            log = ends.log
            ends.learn(log, channels, await self._bus.read_store.last_events(channels))

    async def _start_of(self, asked: str | None) -> tuple[Cursor | None, bool]:
        """Return where a stream begins (None: now), and whether the requested cursor is of a lost or unknown log."""
        counts, kind = self._bus.cursors, "none"
        try:
            if asked is not None:
                cursor, lost = await self._bus.replay.validate(Cursor.parse(asked))
                counts["lost" if lost else "known"] += 1
                return cursor, lost
        except CursorError:
            kind = "none" if asked == DOCTOR_TEXT else "malformed"
        counts[kind] += 1
        # "From now on" excludes what is committed already, so let the tail read that first, if it is not far behind.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FRESH_TIMEOUT_S):
                await self._bus.tail.fresh()
        return None, asked is not None

    def _greet(self, stream: Stream, start: Cursor | None, lost: str | None) -> None:
        """Send the first block, with the channels that are denied, and a gap if the client's cursor is unknown here.

        A stream with ``until=end`` that begins now is also told which of its channels are finished already. All go out
        in one write: a client that disconnected before the gap would resume from the hello's position.
        """
        retry_ms = int(self._bus.settings.retry * 1000 * (0.5 + random()))  # noqa: S311 - jitter, not a secret
        cursor = self._bus.hub.position if start is None else start
        stream.cursor, stream.log = cursor, self._bus.hub.log
        stream.greeted = True
        greeting = wire.hello(cursor, retry_ms)
        if stream.denied:
            greeting += wire.denied(stream.denied, cursor)
        if lost is not None:
            if lost != DOCTOR_TEXT:  # nobody lost anything, and an alert counts these
                self._bus.hub.gap_notices["unknown"] += 1
            greeting += wire.gap("unknown", _printable(lost), cursor)
        if stream.until_end and (start is None or lost is not None):
            for channel in self._bus.hub.ends.ends_of(stream.channels, cursor):
                greeting += wire.end(channel, cursor)
        stream.write_position(greeting, cursor, time.monotonic())


def _not_subscribed_problem(user: str | None, missing: list[str]) -> Problem:
    return Problem(
        403,
        f"User {user} is not subscribed to {', '.join(missing)}.",
        errors=[FieldError("channels", name) for name in missing],
    )


def _require_few(latest: int, channels: int) -> None:
    """Raise a 422 if a stream is to begin with more events than it may: the server notes each of them."""
    if latest * channels > MAX_FIRST_EVENTS:
        fault = f"{latest} for each of {channels} channels are more than {MAX_FIRST_EVENTS} events"
        raise invalid([FieldError("latest", fault)])


def _requested_cursor(request: web.Request) -> str | None:
    """Return the client's cursor. The header is newer than the URL, which browsers repeat unchanged."""
    for text in (
        request.headers.get("Last-Event-ID"),
        *map(request.query.get, CURSOR_PARAMETERS),
    ):
        if text:
            return text
    return None


def _printable(asked: str) -> str:
    """Return the start of a text that is no cursor as valid UTF-8; a header may contain other bytes."""
    return asked[:128].encode(errors="replace").decode()


def _about(stream: Stream) -> dict[str, object]:
    """Return the fields that both log lines of a stream have. Its number is unique within this process."""
    return {
        "stream": stream.number,
        "remote": stream.remote,
        "user": stream.user,
        "channels": sorted(stream.channels)[:MAX_LOGGED_CHANNELS],
        "channel_count": len(stream.channels),
    }


def _whom(stream: Stream) -> str:
    names = sorted(stream.channels)
    others = len(names) - MAX_LOGGED_CHANNELS
    shown = ",".join(names[:MAX_LOGGED_CHANNELS]) + (f" and {others} more" if others > 0 else "")
    return f"{stream.remote} user={stream.user!r} channels={shown!r}"
