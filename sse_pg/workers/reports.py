"""The pipe to the supervisor: a worker's reports. A supervisor that does not read never holds up the worker."""

from __future__ import annotations

import asyncio
import contextlib
import os

from sse_pg.workers.messages import Report

#: Reports of numbers are dropped while the supervisor has so much to read.
MAX_UNREAD_BYTES = 2**18
#: Time that the supervisor gets to read the last reports of a worker that ends.
CLOSE_TIMEOUT_S = 1.0


class Reports(asyncio.Protocol):
    """Sends reports over a descriptor: through the event loop once ``start`` was called, before that at once."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._transport: asyncio.WriteTransport | None = None
        self._closed: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """From now on send through this event loop."""
        loop = asyncio.get_running_loop()
        self._closed = loop.create_future()
        # The transport closes its own descriptor with the loop; what is sent after that goes over the other.
        pipe = os.fdopen(os.dup(self._descriptor), "wb", buffering=0)
        self._transport, _ = await loop.connect_write_pipe(lambda: self, pipe)

    def send(self, report: Report) -> None:
        """Send a report. It is dropped if the supervisor is gone, or if it is one of many that nobody reads."""
        if self._transport is None:
            with contextlib.suppress(BrokenPipeError, BlockingIOError):
                os.write(self._descriptor, report.line())
        elif not self._transport.is_closing():
            is_one_of_many = report.numbers is not None or report.wants_totals
            if not is_one_of_many or self._transport.get_write_buffer_size() < MAX_UNREAD_BYTES:
                self._transport.write(report.line())

    async def close(self) -> None:
        """Wait until the supervisor has read everything, but not for long; then send without the event loop again."""
        if self._transport is None or self._closed is None:
            return
        self._transport.close()
        await asyncio.wait({self._closed}, timeout=CLOSE_TIMEOUT_S)
        if not self._closed.done():
            self._transport.abort()
        self._transport = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that everything is written, or that the supervisor is gone."""
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)
