"""One open stream: its socket, and what happens to it."""

from __future__ import annotations

import asyncio

from sse_pg import wire
from sse_pg.cursor import Cursor


class Stream:
    """A client that listens to a set of channels. Writing never waits for it.

    ``cursor`` is what the client was offered while it catches up; once the hub has taken the stream in (``live``), the
    hub's position says so for all.
    """

    __slots__ = (
        "buffer_limit",
        "channels",
        "chunked",
        "cursor",
        "ended",
        "envelope",
        "events",
        "greeted",
        "live",
        "replayed",
        "sent_bytes",
        "told",
        "told_at",
        "transport",
        "user",
        "written_at",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        channels: frozenset[str],
        cursor: Cursor,
        envelope: bool,
        chunked: bool,
        buffer_limit: int,
        now: float,
        user: str | None = None,
    ) -> None:
        self.user = user
        """Whom the access rules are asked about."""
        self.transport = transport
        self.channels = channels
        self.cursor = cursor
        self.envelope = envelope
        self.chunked = chunked
        self.buffer_limit = buffer_limit
        self.greeted = False
        """Whether its first block was sent."""
        self.live = False
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Resolves to the reason when this side ends the stream."""
        self.written_at = now
        self.told = cursor
        """The position the client was told last, and when: ``told_at``."""
        self.told_at = now
        self.sent_bytes = 0
        self.events = 0
        """Live events that it was sent; while it is in a group, less what the group was sent before."""
        self.replayed = 0
        """Events that it was sent while it caught up."""

    def write(self, data: bytes, now: float) -> None:
        """Send blocks as they are to this client alone."""
        self.push(wire.chunk(data) if self.chunked else data, now)

    def push(self, framed: bytes, now: float) -> None:
        """Send bytes that are framed for this client's kind of connection; cut it off where it does not read."""
        transport = self.transport
        if transport.is_closing() or self.ended.done():
            return
        if transport.get_write_buffer_size() > self.buffer_limit:
            self.end("slow")
            return
        transport.write(framed)
        self.sent_bytes += len(framed)
        self.written_at = now

    def tell(self, data: bytes, position: Cursor, now: float) -> None:
        """Send blocks after which the client knows ``position``."""
        self.write(data, now)
        self.told = position
        self.told_at = now

    def end(self, reason: str) -> None:
        """End the stream from this side; a slow client's buffer is thrown away."""
        if not self.ended.done():
            self.ended.set_result(reason)
        if reason == "slow":
            self.transport.abort()

    async def drained(self) -> None:
        """Wait until the client has read most of what was sent; returns at once when the stream has ended."""
        while not self.ended.done() and not self.transport.is_closing():
            if self.transport.get_write_buffer_size() <= self.buffer_limit // 4:
                return
            await asyncio.sleep(0.005)
