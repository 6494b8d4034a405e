"""Taking a connection over from aiohttp, after it has read the request and sent the head of the response.

A stream that is open for hours needs a socket and a few numbers. The objects that aiohttp keeps while it serves a
request (parser, request, response, two tasks with their frames) would take most of the memory of such a stream. They
are released here.
"""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from sse_pg.delivery.stream import Stream
from sse_pg.errors import ClientGone
from sse_pg.http.loop import ServerLoop

#: Time after which the kernel ends a connection whose peer acknowledges no data.
UNACKNOWLEDGED_MS = 30000


class StreamHead(web.StreamResponse):
    """The head of a response whose body goes on after the handler has returned."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: the stream writes the end."""


def take_over(request: web.Request, stream: Stream) -> None:
    """Make a stream the protocol of the connection, after the head of the response was sent.

    Raises ClientGone if the client has closed the connection.
    """
    transport, handler = request.transport, request.protocol
    if transport is None or transport.is_closing():
        raise ClientGone
    transport.set_protocol(stream)
    transport.set_write_buffer_limits(high=0)  # the stream hears of every byte that the kernel does not take
    if stream.framing.head:
        transport.write(stream.framing.head)
    transport.resume_reading()  # aiohttp pauses it if the client pipelines requests
    sock = transport.get_extra_info("socket")
    if sock is not None:
        _bound_unacknowledged(sock)
        loop = asyncio.get_running_loop()
        if isinstance(loop, ServerLoop):
            loop.serve_last(sock.fileno())
    handler.transport = None  # else the handler would close it
    handler.connection_lost(None)


def _bound_unacknowledged(sock: socket.socket) -> None:
    """Let the kernel end the connection if the peer vanishes without closing it."""
    if sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
