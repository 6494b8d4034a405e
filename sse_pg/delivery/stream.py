"""One open stream: its connection, and what happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import Envelope
from sse_pg.core.framing import Framing
from sse_pg.core.latest import Latest
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.ledger import Ledger

#: Time that a client has to read the rest of what was sent when the server ends its stream.
END_TIMEOUT_S = 5.0
#: A client that catches up and reads nothing of what was sent for this long is cut off.
STALL_TIMEOUT_S = 60.0


class Mark:
    """Up to where a stream was sent. Streams that were sent the same share one."""

    __slots__ = ("at", "number", "position")

    def __init__(self, number: int, position: Cursor, at: float) -> None:
        self.number = number
        """The number of the last delivery of which it has what its group got."""
        self.position = position
        """The last position that the client was sent."""
        self.at = at
        """When, by time.monotonic()."""


class Stream(asyncio.Protocol):
    """A client that listens to a set of channels, and the asyncio protocol of its connection. Writing never waits.

    While the stream catches up, ``cursor`` is what the client was offered. Once the stream is ``live``, the client was
    offered the hub's position, except for the batches that a sweep still owes it.
    """

    __slots__ = (
        "_drained",
        "_on_end",
        "buffer_limit",
        "channels",
        "cursor",
        "denied",
        "envelope",
        "events",
        "expired_to",
        "expiry",
        "follows",
        "framing",
        "greeted",
        "group",
        "held",
        "latest",
        "ledger",
        "live",
        "log",
        "mark",
        "number",
        "opened_at",
        "paused",
        "reason",
        "remote",
        "replayed",
        "sent_bytes",
        "task",
        "told",
        "transport",
        "until_end",
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
        framing: Framing,
        buffer_limit: int,
        now: float,
        denied: frozenset[str] | None = None,
        user: str | None = None,
        follows: str | None = None,
        remote: str = "unknown",
        until_end: bool = False,
    ) -> None:
        """``on_end`` is called once, after the stream has ended, in its own turn of the event loop."""
        self.user = user
        """The user that the access rules decide about."""
        self.follows = follows
        """The user whose subscriptions are its channels, if the request named no channels."""
        self.remote = remote
        """The client's address."""
        self.until_end = until_end
        """Whether it ends when each of its channels is finished."""
        self.transport = transport
        self.channels = channels
        self.denied = denied
        """The channels that were asked for and are not allowed; None if one of them ends the stream."""
        self.cursor = cursor
        self.log = 0
        """The number of the log that the cursor belongs to, among those that this server has read."""
        self.envelope = envelope
        self.framing = framing
        self.buffer_limit = buffer_limit
        self.greeted = False
        """Whether its first block was sent."""
        self.held: asyncio.Future[None] | None = None
        """Done when the stream may receive events again; None if it may. While it is held, it is not live."""
        self.latest: Latest | None = None
        """What it is still to be sent one by one of the last events of its channels; None if nothing."""
        self.live = False
        self.group: object = None
        """The group that it is in while it is live; that of the fan-out."""
        self.ledger: Ledger | None = None
        """That of the hub, once it is open."""
        self.reason: EndReason | None = None
        """Why it has ended; None while it has not."""
        self.task: asyncio.Task[None] | None = None
        """The task that brings it up; cancelled when the stream ends."""
        self.expiry: asyncio.TimerHandle | None = None
        self.number = 0
        """Its number among the streams of this process; 0 before it is open."""
        self.opened_at = now
        self.written_at = now
        """When it was last written to. Events that it gets as a member of its group are not noted here."""
        self.mark = Mark(0, cursor, now)
        self.told = cursor
        """The last cursor that the client was sent, except by live events."""
        self.paused = False
        """Whether something of what was sent is still in this process, because its client has not read enough."""
        self.sent_bytes = 0
        self.events = 0
        """Live events sent to it."""
        self.replayed = 0
        """Events sent to it while it caught up."""
        self.expired_to = 0
        """Up to which id a gap event has said that events of single channels are no longer retained."""
        self._on_end = on_end
        self._drained: asyncio.Future[None] | None = None

    def write(self, data: bytes, now: float) -> None:
        """Send unframed blocks to this client alone."""
        self.push(self.framing.single(data), now)

    def push(self, framed: bytes, now: float) -> None:
        """Send bytes that are framed for this connection already; end the stream if the client does not read."""
        if self.reason is not None or (self.paused and self.too_slow(len(framed))):
            return
        self.transport.write(framed)
        self.sent_bytes += len(framed)
        if self.ledger is not None:
            self.ledger.sent_bytes += len(framed)
        self.written_at = now

    def too_slow(self, size: int) -> bool:
        """Return whether the stream has to end before ``size`` bytes are written to it, and end it.

        It has to if its client has more to read than its limit, or if all clients together have.
        """
        unread = self.transport.get_write_buffer_size()
        if unread > self.buffer_limit:
            self.end(EndReason.SLOW)
        elif self.ledger is not None:
            self.ledger.unread.note(self, unread + size)
        return self.reason is not None

    @property
    def last_write_at(self) -> float:
        """When it was last written to. For a live event this may be earlier, by what a sweep takes."""
        return max(self.written_at, self.mark.at)

    def note_position(self, position: Cursor, now: float) -> None:
        """Note that the client was sent a position."""
        self.mark = Mark(self.mark.number, position, now)

    def write_position(self, data: bytes, position: Cursor, now: float) -> None:
        """Send blocks from which the client learns ``position``."""
        self.write(data, now)
        self.note_position(position, now)
        self.told = position

    def open(self, number: int, ledger: Ledger) -> None:
        """Mark the stream as open: it has its own connection now. ``number`` is its number in this process."""
        self.number = number
        self.ledger = ledger
        if self.reason is not None:
            ledger.finish_soon(self._finish)

    def end(self, reason: EndReason) -> None:
        """End the stream; the first reason counts.

        The connection is closed in a later turn of the event loop, because the caller may be iterating over streams.
        A stream that is not open yet does not open.
        """
        if self.reason is None:
            self.reason = reason
            if self.ledger is not None:
                self.ledger.finish_soon(self._finish)

    @property
    def unread(self) -> int:
        """Bytes that were sent to it and that the operating system has not taken yet."""
        return self.transport.get_write_buffer_size()

    async def drained(self) -> None:
        """Wait until nothing of what was sent is left in this process; end the stream if it takes nothing for a while.

        What the kernel holds keeps the client busy meanwhile.
        """
        while self.paused and self.reason is None:
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
            if self.framing.end:
                transport.write(self.framing.end)
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
        if self.ledger is not None:
            self.ledger.unread.forget(self)
        self.end(EndReason.CLIENT)

    def pause_writing(self) -> None:
        """Note that the kernel has not taken all that was sent."""
        self.paused = True
        if self.ledger is not None:
            self.ledger.unread.note(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Note that the kernel has taken everything."""
        self.paused = False
        if self.ledger is not None:
            self.ledger.unread.forget(self)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
