"""Runs the application: listens, waits for a signal, drains."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable, Sequence

from aiohttp import web

from sse_pg.app import BUS, create_app
from sse_pg.bus import Bus
from sse_pg.config import Settings
from sse_pg.either import either
from sse_pg.errors import CannotListen
from sse_pg.heap import Heap
from sse_pg.http.connections import Site

log = logging.getLogger(__name__)

#: Maximum number of open files that a server asks for.
MAX_OPEN_FILES = 1_048_576
#: Time that requests in flight get when the server stops.
REQUEST_GRACE_S = 10.0
#: Time that the last accepted connections get to send their request when this process stops accepting.
ACCEPT_GRACE_S = 0.5
#: Time between two checks whether anybody is still connected.
CONNECTION_POLL_S = 0.02
#: Time that connections wait until a new process follows the log; after that they get the response that it does not.
FIRST_READ_TIMEOUT_S = 3.0


async def serve(
    settings: Settings,
    announce: Callable[[str], None],
    *,
    app: web.Application | None = None,
    sockets: Sequence[socket.socket] = (),
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then drain. ``announce`` is called with the URL once the port is open.

    ``sockets`` already listen, and are used in place of the address. Their connections are accepted once the log is
    followed. SIGHUP means that another process accepts from now on. ``ready`` is called once the log is followed.
    ``app`` is the application, if the caller has made it.
    Raises CannotListen if it is not possible to listen on the address.
    """
    _raise_file_limit()
    stop, handed_over, by_hand = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def interrupt() -> None:
        by_hand.set()
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)

    def hand_over() -> None:
        handed_over.set()
        stop.set()

    if sockets:
        loop.add_signal_handler(signal.SIGHUP, hand_over)
    app = app or create_app(settings)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=REQUEST_GRACE_S)
    await runner.setup()

    def streams() -> int:
        return len(app[BUS].hub.streams)

    heap = asyncio.create_task(Heap(streams).run())
    notifier = asyncio.create_task(_call_when_set(app[BUS].tail.listening, ready)) if ready else None
    try:
        if sockets:
            await either(stop, app[BUS].tail.listening, FIRST_READ_TIMEOUT_S)
        try:
            for each in sockets:
                await Site(runner, settings, sock=each, streams=streams).start()
            if not sockets:
                await Site(runner, settings, host=settings.host, port=settings.port, streams=streams).start()
        except OSError as error:
            raise CannotListen(settings.host, settings.port, error) from error
        host, port = runner.addresses[0][:2]
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await stop.wait()
        if streams():
            log.info("stopping: %d streams end within %g s", streams(), settings.drain)
        else:
            log.info("stopping")
        if handed_over.is_set():
            await _stop_accepting(runner, app[BUS], sockets)
            await app[BUS].end_streams(settings.drain)
        else:
            await drain(runner, app[BUS], settings.drain, idle=not by_hand.is_set())
    finally:
        heap.cancel()
        if notifier is not None:
            notifier.cancel()
        await runner.cleanup()


def _raise_file_limit() -> None:
    """Raise the limit on open files as far as the system allows: each stream is one, and the default is often 1024.

    The default is low for the sake of programs that use select(), which this one does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def drain(runner: web.AppRunner, bus: Bus, seconds: float, *, idle: bool = True) -> None:
    """End the streams over ``seconds``, and stop listening once nobody is connected or the time is over.

    Until then the server listens, so that /readyz can say that it is stopping. A connection that is kept alive stays
    open until the response to its next request closes it. Closing it earlier could lose a publish that a proxy has just
    sent and must not repeat elsewhere. Without ``idle``, these connections are not waited for: a person at a terminal
    does not want to wait.
    """
    until = asyncio.get_running_loop().time() + seconds
    await bus.end_streams(seconds)
    if idle:
        await _wait_until_empty(runner, until)
    for site in runner.sites:
        if isinstance(site, Site):
            await site.leave()
    await _wait_until_empty(runner, asyncio.get_running_loop().time() + ACCEPT_GRACE_S)


async def _wait_until_empty(runner: web.AppRunner, until: float) -> None:
    """Wait until there is no connection, or until a time of the event loop's clock."""
    loop, server = asyncio.get_running_loop(), runner.server
    # aiohttp has no event for the end of a connection.
    while server is not None and server.connections and loop.time() < until:  # noqa: ASYNC110
        await asyncio.sleep(CONNECTION_POLL_S)


async def _stop_accepting(runner: web.AppRunner, bus: Bus, sockets: Sequence[socket.socket]) -> None:
    """Stop accepting, and give the connections that were accepted a moment to send their request."""
    bus.leaving = True
    for each in sockets:
        # Not closed yet: when asyncio closes a server, it drops connections that are just being accepted.
        asyncio.get_running_loop().remove_reader(each)
    await asyncio.sleep(ACCEPT_GRACE_S)
    if runner.server is not None:
        runner.server.pre_shutdown()  # closes what is kept alive without a request


async def _call_when_set(event: asyncio.Event, callback: Callable[[], None]) -> None:
    await event.wait()
    callback()
