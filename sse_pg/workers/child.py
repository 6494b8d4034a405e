"""A worker process: ``python -m sse_pg.workers.child``, started by ``sse_pg.workers.process``.

It reads the start message from its stdin, then requests. The end of that pipe means that the supervisor is gone,
however it ended. It writes reports to its stdout. SIGTERM ends it as it ends any server; SIGHUP says that another
worker has taken over its sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import msgspec

from sse_pg import logs
from sse_pg.api.metrics import GATHER
from sse_pg.api.readings import read
from sse_pg.app import BUS, create_app
from sse_pg.config import Settings
from sse_pg.db.connection import describe
from sse_pg.http.loop import run as run_in_server_loop
from sse_pg.server import serve
from sse_pg.workers.messages import SIGNALS, Report, Request, StartMessage
from sse_pg.workers.reports import Reports
from sse_pg.workers.totals import TotalsClient

#: Maximum length of the reason in a report.
MAX_REASON_CHARS = 1000

log = logging.getLogger("sse_pg.workers.child")  # __name__ is __main__ here


def main() -> None:
    """Serve according to the start message, until a signal or the end of the supervisor."""
    reports = Reports(os.dup(1))
    os.dup2(2, 1)  # so that nothing that is printed ends up among the reports
    line = _first_line()
    if not line:
        sys.exit(1)
    start = StartMessage.read(line)
    logs.configure(start.settings.log_level, start.settings.log_format, pid=True)
    supervisor = _Supervisor()
    threading.Thread(target=supervisor.read_requests, name="supervisor", daemon=True).start()

    sockets = [socket.socket(fileno=number) for number in start.sockets]
    for each in sockets:
        each.set_inheritable(False)
    try:
        run_in_server_loop(_serve(start.settings, sockets, reports, supervisor))
    except Exception as error:
        log.debug("the worker fails", exc_info=True)
        reports.send(Report(failed=describe(error)[:MAX_REASON_CHARS]))
        sys.exit(1)


async def _serve(settings: Settings, sockets: list[socket.socket], reports: Reports, supervisor: _Supervisor) -> None:
    send = reports.send
    await reports.start()
    totals = TotalsClient(lambda: send(Report(wants_totals=True)))
    app = create_app(settings)
    app[GATHER] = totals.fetch

    def handle(request: Request) -> None:
        if request.totals is not None:
            totals.received(request.totals)
        else:
            send(Report(numbers=read(app[BUS])))

    supervisor.deliver_to(handle)
    # This runs at the first await of serve(), which has set its handlers by then.
    asyncio.get_running_loop().call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)
    try:
        await serve(
            settings,
            lambda url: send(Report(url=url)),
            app=app,
            sockets=sockets,
            ready=lambda: send(Report(ready=True)),
        )
    finally:
        send(Report(numbers=read(app[BUS])))
        await reports.close()


def _first_line() -> bytes:
    """Read the start message, unbuffered, so that the thread can go on reading the descriptor."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 65536)
        if not data:
            return b""
        line += data
    return line


class _Supervisor:
    """The pipe from the supervisor. A thread reads it, so that a worker whose event loop hangs also ends with it."""

    def __init__(self) -> None:
        self._deliver: Callable[[Request], object] | None = None

    def deliver_to(self, handle: Callable[[Request], None]) -> None:
        """From now on call ``handle`` in this event loop for each request. Earlier requests are dropped."""
        loop = asyncio.get_running_loop()
        self._deliver = lambda request: loop.call_soon_threadsafe(handle, request)

    def read_requests(self) -> None:
        """Read until the pipe ends. Then the supervisor was killed before it could stop this worker, so exit."""
        rest = b""
        while data := os.read(0, 65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                with contextlib.suppress(RuntimeError):  # the event loop has ended
                    if self._deliver is not None:
                        self._deliver(msgspec.json.decode(line, type=Request))
        log.error("the supervisor of this worker is gone; the worker ends")
        os._exit(1)


if __name__ == "__main__":
    main()
