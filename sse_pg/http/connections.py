"""The connections of a server: how many, for how long without a request, and what is answered to what is not HTTP."""

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
from sse_pg.http.problem import TURNED_AWAY, Problem, unavailable

log = logging.getLogger(__name__)

#: Bytes of a request line: a thousand channel names fit into a URL.
MAX_LINE = 65536
#: Bytes of a header, and how many headers a request has: bounds what a head can hold in memory.
MAX_HEADER = 16384
MAX_HEADERS = 64
#: Connections that wait to be accepted.
BACKLOG = 1024
#: Connections beyond the limit that are told so; more are cut without a word.
TOLD = 1000
#: Seconds that one of them gets to send its request, which has to be read before it is answered.
PATIENCE = 2.0
#: Seconds for which the rest of a body is read and thrown away, so that its sender gets to read the answer.
LINGER = 5.0


class Connection(web.RequestHandler):
    """A connection. What aiohttp cannot take for a request is answered with a problem document, too."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never came to a handler."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        if status >= 500:
            log.error("a request from %s failed", request.remote, exc_info=exc)
            problem = Problem(status, "Something went wrong here; the server's log has more.")
        else:
            log.debug("a bad request from %s: %s", request.remote, message)
            problem = _not_http(exc)
        response = problem.response()
        response.force_close()
        return response


def _not_http(error: BaseException | None) -> Problem:
    text = str(error.args[0] if error is not None and error.args else "")
    if isinstance(error, LineTooLong):
        if str(error.args[1]) == str(MAX_LINE):
            return Problem(414, f"The URL is too long: a request line has at most {MAX_LINE} bytes.")
        return Problem(431, f"A header is too long: it has at most {MAX_HEADER} bytes.")
    if "headers" in text.lower() and "many" in text.lower():
        return Problem(431, f"There are too many headers: at most {MAX_HEADERS}.")
    return Problem(400, "This is not an HTTP request.")


class Site(web.BaseSite):
    """Listens for a runner, on an address or on a socket that listens already."""

    __slots__ = ("_host", "_port", "_refused", "_settings", "_sock", "_streams")

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
        """``streams`` tells how many connections are streams: aiohttp no longer counts those."""
        super().__init__(runner, backlog=BACKLOG)
        self._settings = settings
        self._host = host
        self._port = port
        self._sock = sock
        self._streams = streams
        self._refused: set[Refusal] = set()

    @property
    def name(self) -> str:
        """Return where it listens, for aiohttp's own messages."""
        host, port = (self._host, self._port) if self._sock is None else self._sock.getsockname()[:2]
        return f"http://{host}:{port}"

    async def start(self) -> None:
        """Begin to accept. Raises OSError where the address cannot be listened on."""
        await super().start()
        loop = asyncio.get_running_loop()
        where: dict[str, Any] = {"sock": self._sock} if self._sock else {"host": self._host, "port": self._port}
        self._server = await loop.create_server(self._accept, backlog=BACKLOG, **where)

    async def leave(self) -> None:
        """Accept no more and close the port. Who has connected is taken in first: closing would cut him off.

        A proxy may have sent a publish to a connection that nobody has accepted yet, and must not send it again
        elsewhere; one that is refused, it may. Between the last one taken and the end of the port lie two system calls.
        """
        server = self._server
        assert isinstance(server, asyncio.Server)
        loop = asyncio.get_running_loop()
        ports = [each.dup() for each in server.sockets]
        for each in server.sockets:
            loop.remove_reader(each)
        await asyncio.sleep(0)  # asyncio drops those whose acceptance is under way when it closes a server
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
            if isinstance(self._runner, web.AppRunner) and TURNED_AWAY in self._runner.app:
                self._runner.app[TURNED_AWAY]["connections"] += 1
            return Refusal(self._refused, self._settings.max_connections)
        options: dict[str, Any] = {
            # Runs from the moment of the connection, and again from each answer, until the head of a request is whole:
            # it bounds silence as well as a head that drips.
            "keepalive_timeout": self._settings.idle,
            "access_log": None,
            "lingering_time": LINGER,
            "max_line_size": MAX_LINE,
            "max_field_size": MAX_HEADER,
            "max_headers": MAX_HEADERS,
        }
        return Connection(server, loop=asyncio.get_running_loop(), **options)


class Refusal(asyncio.Protocol):
    """A connection beyond the limit: it is told to come back, once its request has begun to arrive."""

    def __init__(self, told: set[Refusal], limit: int) -> None:
        self._told = told
        self._limit = limit
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request, if few others do."""
        assert isinstance(transport, asyncio.Transport)
        if len(self._told) >= TOLD:
            transport.abort()
            return
        self._told.add(self)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Answer, whatever the request is, and end the connection."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        problem = unavailable(f"This server has its {self._limit} connections.")
        response = problem.response()
        body = response.body
        assert isinstance(body, bytes)
        head = [f"HTTP/1.1 {problem.status} {problem.title}", f"Content-Length: {len(body)}", "Connection: close"]
        head += [f"{name}: {value}" for name, value in response.headers.items() if name != "Content-Length"]
        transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for the next one."""
        self._told.discard(self)
        if self._timer is not None:
            self._timer.cancel()
