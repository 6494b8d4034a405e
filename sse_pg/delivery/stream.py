"""One open stream: its connection, and what happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.delivery.end_reason import EndReason

#: Seconds in which a client may read the rest of what was sent when this side ends its stream.
LINGER = 5.0


class Stream(asyncio.Protocol):
    """A client that listens to a set of channels, and the protocol of its connection. Writing never waits for it.

    ``cursor`` is what the client was offered while it catches up; once the hub has taken the stream in (``live``), the
    hub's position says so for all.
    """

    __slots__ = (
        "_drained",
        "_on_end",
        "_paused",
        "buffer_limit",
        "channels",
        "chunked",
        "cursor",
        "envelope",
        "events",
        "expiry",
        "follows",
        "greeted",
        "live",
        "number",
        "opened_at",
        "reason",
        "remote",
        "replayed",
        "sent_bytes",
        "task",
        "told",
        "told_at",
        "transport",
        "user",
        "written_at",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        on_end: Callable[[Stream], None],
        *,
        channels: frozenset[str],
        cursor: Cursor,
        envelope: bool,
        chunked: bool,
        buffer_limit: int,
        now: float,
        user: str | None = None,
        follows: str | None = None,
        remote: str = "unknown",
    ) -> None:
        """``on_end`` is called once, when the stream has ended, in a turn of the event loop of its own."""
        self.user = user
        """Whom the access rules are asked about."""
        self.follows = follows
        """The user whose subscriptions are its channels, where it named none."""
        self.remote = remote
        """The address of the client."""
        self.transport = transport
        self.channels = channels
        self.cursor = cursor
        self.envelope = envelope
        self.chunked = chunked
        self.buffer_limit = buffer_limit
        self.greeted = False
        """Whether its first block was sent."""
        self.live = False
        self.reason: EndReason | None = None
        """Why it has ended, or None."""
        self.task: asyncio.Task[None] | None = None
        """What brings it up; ends with it."""
        self.expiry: asyncio.TimerHandle | None = None
        self.number = 0
        """0 before it is open."""
        self.opened_at = now
        self.written_at = now
        self.told = cursor
        """The position the client was told last, and when: ``told_at``."""
        self.told_at = now
        self.sent_bytes = 0
        self.events = 0
        """Live events that it was sent; while it is in a group, less what the group was sent before."""
        self.replayed = 0
        """Events that it was sent while it caught up."""
        self._on_end = on_end
        self._paused = False
        self._drained: asyncio.Future[None] | None = None

    def write(self, data: bytes, now: float) -> None:
        """Send blocks as they are to this client alone."""
        self.push(wire.chunk(data) if self.chunked else data, now)

    def push(self, framed: bytes, now: float) -> None:
        """Send bytes that are framed for this client's kind of connection; cut it off where it does not read."""
        if self.reason is not None:
            return
        if self._paused and self.transport.get_write_buffer_size() > self.buffer_limit:
            self.end(EndReason.SLOW)
            return
        self.transport.write(framed)
        self.sent_bytes += len(framed)
        self.written_at = now

    def tell(self, data: bytes, position: Cursor, now: float) -> None:
        """Send blocks after which the client knows ``position``."""
        self.write(data, now)
        self.told = position
        self.told_at = now

    def open(self, number: int) -> None:
        """Begin, with a connection of its own; ``number`` is its place among the streams of this process."""
        self.number = number
        if self.reason is not None:
            asyncio.get_running_loop().call_soon(self._finish)

    def end(self, reason: EndReason) -> None:
        """End the stream; the first reason counts. The rest happens soon: who ends it may be going through streams.

        One that is not open yet does not open.
        """
        if self.reason is None:
            self.reason = reason
            if self.number:
                asyncio.get_running_loop().call_soon(self._finish)

    async def drained(self) -> None:
        """Wait until the client has read most of what was sent."""
        if self._paused:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def _finish(self) -> None:
        for pending in (self.task, self.expiry):
            if pending is not None:
                pending.cancel()
        self.task = self.expiry = None
        transport = self.transport
        if self.reason is not None and self.reason.cuts:
            transport.abort()
        elif not transport.is_closing():
            if self.chunked:
                transport.write(wire.LAST_CHUNK)
            transport.close()
            if transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(LINGER, transport.abort)
        self._on_end(self)

    # ---- what the event loop tells of the connection; what a client sends after its request is not looked at

    def eof_received(self) -> None:
        """End with the client."""
        self.end(EndReason.CLIENT)

    def connection_lost(self, exc: Exception | None) -> None:
        """End with the client."""
        self.end(EndReason.CLIENT)

    def pause_writing(self) -> None:
        """Note that the client has some reading to do."""
        self._paused = True

    def resume_writing(self) -> None:
        """Note that the client has read most of it."""
        self._paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
