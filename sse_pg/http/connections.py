"""The connections of a server: how many, how long without a request, and the response to bytes that are not HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from sse_pg.config import Settings
from sse_pg.http.problem import REFUSED_REQUESTS, Problem, http_problem, internal_error, unavailable

log = logging.getLogger(__name__)

#: Maximum bytes of a request line: a thousand channel names fit into a URL.
MAX_REQUEST_LINE_BYTES = 65536
#: Maximum bytes of a header, and maximum number of headers. Together they bound the memory of a request's head.
MAX_HEADER_BYTES = 16384
MAX_HEADERS = 64
#: Maximum number of connections that wait on a listening socket to be accepted.
BACKLOG = 4096
#: Maximum number of connections accepted in one turn of the event loop: others have theirs while thousands connect.
ACCEPTS_PER_TURN = 8
#: Connections above the limit that are open at the same time to receive a 503. Further ones are closed at once.
MAX_REFUSALS = 1000
#: Time within which such a connection has to send its request: the 503 is the response to it.
REFUSAL_TIMEOUT_S = 2.0
#: Time for which the rest of a body is read and discarded after an early response, so that the client can read that.
DISCARD_TIMEOUT_S = 5.0


class Connection(web.RequestHandler):
    """A connection. Bytes that aiohttp cannot parse as a request get a problem document as well."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Respond to a request that never reached a handler."""
        if request.writer.output_size > 0:
            raise ConnectionError("a response has already begun")
        if isinstance(exc, UnicodeEncodeError) and "Expect" in request.headers:
            # aiohttp quotes an unknown expectation in its response, and fails if it is not UTF-8.
            problem = http_problem(web.HTTPExpectationFailed(), request)
        elif status >= 500:
            log.error("request from %s failed", request.remote, exc_info=exc)
            problem = internal_error(status)
        else:
            log.debug("bad request from %s: %s", request.remote, message)
            problem = _not_http(exc)
        response = problem.response()
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response. An error that aiohttp raises before the middlewares run becomes a problem document, too."""
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            resp = http_problem(resp, request).response()
            resp.force_close()  # the body was not read
        return await super().finish_response(request, resp, start_time)


def _not_http(error: BaseException | None) -> Problem:
    text = str(error.args[0] if error is not None and error.args else "")
    if isinstance(error, LineTooLong):
        if str(error.args[1]) == str(MAX_REQUEST_LINE_BYTES):
            return Problem(414, f"The request line is longer than {MAX_REQUEST_LINE_BYTES} bytes.")
        return Problem(431, f"A header is longer than {MAX_HEADER_BYTES} bytes.")
    if "headers" in text.lower() and "many" in text.lower():
        return Problem(431, f"The request has more than {MAX_HEADERS} headers.")
    if "url" in text.lower():
        return Problem(400, "The URL contains characters that have to be percent-encoded.")
    return Problem(400, "This is not a valid HTTP request.")


class Site(web.BaseSite):
    """Listens for a runner, on an address or on a socket that is already listening."""

    __slots__ = ("_host", "_port", "_refusals", "_settings", "_sock", "_streams")

    def __init__(
        self,
        runner: web.BaseRunner,
        settings: Settings,
        *,
        host: str | None = None,
        port: int | None = None,
        sock: socket.socket | None = None,
        streams: Callable[[], int],
    ) -> None:
        """``streams`` returns the number of connections that are streams, which aiohttp no longer counts."""
        super().__init__(runner, backlog=BACKLOG)
        self._settings = settings
        self._host = host
        self._port = port
        self._sock = sock
        self._streams = streams
        self._refusals: set[Refusal] = set()

    @property
    def name(self) -> str:
        """Return the address, for aiohttp's own messages."""
        host, port = (self._host, self._port) if self._sock is None else self._sock.getsockname()[:2]
        return f"http://{host}:{port}"

    async def start(self) -> None:
        """Begin to accept connections. Raises OSError if the address cannot be listened on."""
        await super().start()
        loop = asyncio.get_running_loop()
        where: dict[str, Any] = {"sock": self._sock} if self._sock else {"host": self._host, "port": self._port}
        # asyncio accepts as many connections in one turn as may wait, so the two are set one after the other.
        self._server = await loop.create_server(self._accept, backlog=ACCEPTS_PER_TURN, **where)
        for each in self._server.sockets:
            with each.dup() as port:
                port.listen(BACKLOG)

    async def leave(self) -> None:
        """Close the port. Clients that have already connected are accepted first: closing would reset them.

        A proxy may have sent a publish on a connection that is not accepted yet, and must not repeat it elsewhere after
        a reset. After a refused connection it may. Only two system calls lie between the last accept and the close.
        """
        server = self._server
        assert isinstance(server, asyncio.Server)
        loop = asyncio.get_running_loop()
        ports = [each.dup() for each in server.sockets]
        for each in server.sockets:
            loop.remove_reader(each)
        await asyncio.sleep(0)  # closing an asyncio server drops connections that it is just accepting
        server.close()
        waiting: list[socket.socket] = []
        for port in ports:
            with port, contextlib.suppress(OSError):
                while True:
                    waiting.append(port.accept()[0])
        for each in waiting:
            each.setblocking(False)
            await loop.connect_accepted_socket(self._accept, each)

    def _accept(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        if len(server.connections) + self._streams() >= self._settings.max_connections:
            if isinstance(self._runner, web.AppRunner) and REFUSED_REQUESTS in self._runner.app:
                self._runner.app[REFUSED_REQUESTS]["connections"] += 1
            return Refusal(self._refusals, self._settings.max_connections)
        options: dict[str, Any] = {
            # Runs from the start of the connection, and again from each response, until the head of a request is
            # complete. So it bounds idle connections as well as heads that arrive byte by byte.
            "keepalive_timeout": self._settings.idle,
            "access_log": None,
            "auto_decompress": False,  # inflate.py does it
            "lingering_time": DISCARD_TIMEOUT_S,
            "max_line_size": MAX_REQUEST_LINE_BYTES,
            "max_field_size": MAX_HEADER_BYTES,
            "max_headers": MAX_HEADERS,
        }
        return Connection(server, loop=asyncio.get_running_loop(), **options)


class Refusal(asyncio.Protocol):
    """A connection above the limit: it gets a 503 as soon as its request begins to arrive."""

    def __init__(self, refusals: set[Refusal], limit: int) -> None:
        self._refusals = refusals
        self._limit = limit
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the request, unless too many refused connections already do."""
        assert isinstance(transport, asyncio.Transport)
        if len(self._refusals) >= MAX_REFUSALS:
            transport.abort()
            return
        self._refusals.add(self)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(REFUSAL_TIMEOUT_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Respond, whatever the request is, and close the connection."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        problem = unavailable(f"Connection limit reached ({self._limit} on this server); retry later.")
        response = problem.response()
        body = response.body
        assert isinstance(body, bytes)
        head = [f"HTTP/1.1 {problem.status} {problem.title}", f"Content-Length: {len(body)}", "Connection: close"]
        head += [f"{name}: {value}" for name, value in response.headers.items() if name != "Content-Length"]
        transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for the next one."""
        self._refusals.discard(self)
        if self._timer is not None:
            self._timer.cancel()
