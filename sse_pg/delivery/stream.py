"""One open stream: its connection, and what happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import Envelope
from sse_pg.delivery.end_reason import EndReason

#: Time that a client has to read the rest of what was sent when the server ends its stream.
END_TIMEOUT_S = 5.0
#: A client that catches up and reads nothing of what was sent for this long is cut off.
STALL_TIMEOUT_S = 60.0


class Stream(asyncio.Protocol):
    """A client that listens to a set of channels, and the asyncio protocol of its connection. Writing never waits.

    While the stream catches up, ``cursor`` is what the client was offered. Once the stream is ``live``, the client was
    offered the hub's position, except for the batches that a sweep still owes it.
    """

    __slots__ = (
        "_drained",
        "_on_end",
        "_paused",
        "batch",
        "buffer_limit",
        "channels",
        "chunked",
        "cursor",
        "envelope",
        "events",
        "expiry",
        "follows",
        "greeted",
        "group",
        "held",
        "live",
        "number",
        "opened_at",
        "reason",
        "remote",
        "replayed",
        "sent_bytes",
        "sent_position",
        "sent_position_at",
        "task",
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
        envelope: Envelope | None,
        chunked: bool,
        buffer_limit: int,
        now: float,
        user: str | None = None,
        follows: str | None = None,
        remote: str = "unknown",
    ) -> None:
        """``on_end`` is called once, after the stream has ended, in its own turn of the event loop."""
        self.user = user
        """The user that the access rules decide about."""
        self.follows = follows
        """The user whose subscriptions are its channels, if the request named no channels."""
        self.remote = remote
        """The client's address."""
        self.transport = transport
        self.channels = channels
        self.cursor = cursor
        self.envelope = envelope
        self.chunked = chunked
        self.buffer_limit = buffer_limit
        self.greeted = False
        """Whether its first block was sent."""
        self.held: asyncio.Future[None] | None = None
        """Done when the stream may receive events again; None if it may. While it is held, it is not live."""
        self.live = False
        self.group: object = None
        """The group that it is in while it is live; the hub's."""
        self.batch = 0
        """The number of the last batch of the group that it was sent."""
        self.reason: EndReason | None = None
        """Why it has ended; None while it has not."""
        self.task: asyncio.Task[None] | None = None
        """The task that brings it up; cancelled when the stream ends."""
        self.expiry: asyncio.TimerHandle | None = None
        self.number = 0
        """Its number among the streams of this process; 0 before it is open."""
        self.opened_at = now
        self.written_at = now
        self.sent_position = cursor
        """The last position that the client was sent. ``sent_position_at`` is when, by time.monotonic()."""
        self.sent_position_at = now
        self.sent_bytes = 0
        self.events = 0
        """Live events sent to it. While it is in a group, minus those that the group was sent before it entered."""
        self.replayed = 0
        """Events sent to it while it caught up."""
        self._on_end = on_end
        self._paused = False
        self._drained: asyncio.Future[None] | None = None

    def write(self, data: bytes, now: float) -> None:
        """Send unframed blocks to this client alone."""
        self.push(wire.chunk(data) if self.chunked else data, now)

    def push(self, framed: bytes, now: float) -> None:
        """Send bytes that are framed for this connection already; end the stream if the client does not read."""
        if self.reason is not None:
            return
        if self._paused and self.transport.get_write_buffer_size() > self.buffer_limit:
            self.end(EndReason.SLOW)
            return
        self.transport.write(framed)
        self.sent_bytes += len(framed)
        self.written_at = now

    def write_position(self, data: bytes, position: Cursor, now: float) -> None:
        """Send blocks from which the client learns ``position``."""
        self.write(data, now)
        self.sent_position = position
        self.sent_position_at = now

    def open(self, number: int) -> None:
        """Mark the stream as open: it has its own connection now. ``number`` is its number in this process."""
        self.number = number
        if self.reason is not None:
            asyncio.get_running_loop().call_soon(self._finish)

    def end(self, reason: EndReason) -> None:
        """End the stream; the first reason counts.

        The connection is closed in a later turn of the event loop, because the caller may be iterating over streams.
        A stream that is not open yet does not open.
        """
        if self.reason is None:
            self.reason = reason
            if self.number:
                asyncio.get_running_loop().call_soon(self._finish)

    async def drained(self) -> None:
        """Wait until the client has read most of what was sent; end the stream if it reads nothing for a while."""
        while self._paused and self.reason is None:
            unread = self.transport.get_write_buffer_size()
            self._drained = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(STALL_TIMEOUT_S):
                    await self._drained
            except TimeoutError:
                if self.transport.get_write_buffer_size() >= unread:
                    self.end(EndReason.SLOW)

    def _finish(self) -> None:
        for pending in (self.task, self.expiry):
            if pending is not None:
                pending.cancel()
        self.task = self.expiry = None
        transport = self.transport
        if self.reason is not None and self.reason.aborts:
            transport.abort()
        elif not transport.is_closing():
            if self.chunked:
                transport.write(wire.LAST_CHUNK)
            transport.close()
            if transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(END_TIMEOUT_S, transport.abort)
        self._on_end(self)

    # ---- calls from the event loop about the connection; anything that a client sends after its request is ignored

    def eof_received(self) -> None:
        """End the stream, because the client has closed its side."""
        self.end(EndReason.CLIENT)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the stream, because the client has closed its side."""
        self.end(EndReason.CLIENT)

    def pause_writing(self) -> None:
        """Note that the client has not read enough of what was sent."""
        self._paused = True

    def resume_writing(self) -> None:
        """Note that the client has read most of what was sent."""
        self._paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
