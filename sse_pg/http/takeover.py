"""Taking a connection away from aiohttp, once it has read the request and sent the head of the answer.

A stream that is open for hours needs a socket and a few numbers. What aiohttp keeps for a request that is being
answered (parser, request, answer, two tasks with their frames) is more than half of what such a stream takes in memory,
and is let go of here.
"""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from sse_pg.delivery.stream import Stream
from sse_pg.errors import ClientGone

#: Milliseconds after which data that a peer does not acknowledge ends its connection.
UNACKNOWLEDGED_MS = 30000


class OpenAnswer(web.StreamResponse):
    """An answer that goes on when its handler has returned."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Leave the end to the stream."""


def take_over(request: web.Request, stream: Stream) -> None:
    """Let a stream have the connection of its request, whose head was sent.

    Raises ClientGone if the client closed its connection meanwhile.
    """
    transport, handler = request.transport, request.protocol
    if transport is None or transport.is_closing():
        raise ClientGone
    transport.set_protocol(stream)
    transport.set_write_buffer_limits(high=stream.buffer_limit // 4, low=stream.buffer_limit // 4)
    transport.resume_reading()  # aiohttp stops it for a client that sends one request after the other
    _bound_unacknowledged(transport)
    handler.transport = None  # it would close it
    handler.connection_lost(None)


def _bound_unacknowledged(transport: asyncio.Transport) -> None:
    """Let the kernel end a connection whose peer is gone without a word."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
