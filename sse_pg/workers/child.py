"""One of several server processes on a port: ``python -m sse_pg.workers.child``, started by sse_pg.workers.

It reads one line from its stdin, the order; what comes after that is about the numbers of all workers. The end of that
pipe means that the parent is gone, by whatever means. To its stdout it writes reports, one a line. SIGTERM ends it as
it ends any server; SIGHUP says that another worker has taken over its sockets.
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
from sse_pg.server import serve
from sse_pg.workers.messages import SIGNALS, Order, Report, Word
from sse_pg.workers.totals import Asking

log = logging.getLogger("sse_pg.workers.child")  # not __name__, which is __main__ here


def main() -> None:
    """Serve as ordered, until a signal or the end of the parent."""
    reports = os.dup(1)
    os.dup2(2, 1)  # whatever prints does not garble the reports
    line = _first_line()
    if not line:
        sys.exit(1)
    order = Order.read(line)
    logs.configure(order.settings.log_level, order.settings.log_format, pid=True)
    parent = _Parent()
    threading.Thread(target=parent.listen, name="parent", daemon=True).start()

    def tell(report: Report) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(reports, report.line())

    sockets = [socket.socket(fileno=number) for number in order.sockets]
    for each in sockets:
        each.set_inheritable(False)
    try:
        asyncio.run(_serve(order.settings, sockets, tell, parent))
    except Exception as error:
        log.debug("the worker fails", exc_info=True)
        tell(Report(failed=describe(error)[:1000]))
        sys.exit(1)


async def _serve(
    settings: Settings, sockets: list[socket.socket], tell: Callable[[Report], None], parent: _Parent
) -> None:
    asking = Asking(lambda: tell(Report(asks=True)))
    app = create_app(settings)
    app[GATHER] = asking.numbers

    def hear(word: Word) -> None:
        if word.all is not None:
            asking.answered(word.all)
        else:
            tell(Report(numbers=read(app[BUS])))

    parent.attend(hear)
    # At the first await of serve(), which has set its handlers by then.
    asyncio.get_running_loop().call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)
    try:
        await serve(
            settings,
            lambda url: tell(Report(url=url)),
            app=app,
            sockets=sockets,
            ready=lambda: tell(Report(ready=True)),
        )
    finally:
        tell(Report(numbers=read(app[BUS])))


def _first_line() -> bytes:
    """Read the order, and nothing into a buffer that the thread would have to know."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 65536)
        if not data:
            return b""
        line += data
    return line


class _Parent:
    """What the parent says, read by a thread of its own: a worker whose event loop hangs ends with the parent, too."""

    def __init__(self) -> None:
        self._tell: Callable[[Word], object] | None = None

    def attend(self, hear: Callable[[Word], None]) -> None:
        """From now on call ``hear`` in this event loop; what was said before is lost."""
        loop = asyncio.get_running_loop()
        self._tell = lambda word: loop.call_soon_threadsafe(hear, word)

    def listen(self) -> None:
        """Read until the pipe ends: the parent was killed, without having told us to stop, and so are we."""
        rest = b""
        while data := os.read(0, 65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                with contextlib.suppress(RuntimeError):  # the event loop has ended
                    if self._tell is not None:
                        self._tell(msgspec.json.decode(line, type=Word))
        log.error("the parent of this worker is gone; the worker ends")
        os._exit(1)


if __name__ == "__main__":
    main()
