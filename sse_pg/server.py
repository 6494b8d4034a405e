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
from sse_pg.http.connections import Site

log = logging.getLogger(__name__)

#: Open files that a server asks for at most.
MOST_FILES = 1_048_576
#: Seconds that requests in flight get when the server stops.
LAST_REQUESTS = 10.0
#: Seconds that connections accepted last get to send their request when the port is left or another process takes over.
LAST_ACCEPTED = 0.5
#: Seconds between two looks at whether anybody is still connected.
LOOK = 0.02
#: Seconds that connections wait for a new process to follow the log, after which they are told that it does not.
FIRST_READ = 3.0


async def serve(
    settings: Settings,
    announce: Callable[[str], None],
    *,
    app: web.Application | None = None,
    sockets: Sequence[socket.socket] = (),
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then drain. ``announce`` gets the URL once the port is open.

    ``sockets``, which listen already, are taken in place of the address: who waits on them is accepted when the log is
    followed; SIGHUP says that another process accepts now. ``ready`` is called once the log is followed.
    ``app`` is the application, where the caller has made it.
    Raises CannotListen when the address cannot be listened on.
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
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=LAST_REQUESTS)
    await runner.setup()

    def streams() -> int:
        return len(app[BUS].hub.streams)

    telling = asyncio.create_task(_tell(app[BUS].tail.listening, ready)) if ready else None
    try:
        if sockets:
            await either(stop, app[BUS].tail.listening, FIRST_READ)
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
            await _let_go(runner, app[BUS], sockets)
            await app[BUS].end_streams(settings.drain)
        else:
            await drain(runner, app[BUS], settings.drain, idle=not by_hand.is_set())
    finally:
        if telling is not None:
            telling.cancel()
        await runner.cleanup()


def _raise_file_limit() -> None:
    """Take the open files that the system grants: each stream is one, and the limit that is set at first is often 1024.

    It is that low for programs that use select(), which this one does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def drain(runner: web.AppRunner, bus: Bus, seconds: float, *, idle: bool = True) -> None:
    """End the streams over a time, and leave the port when nobody is connected any more, or the time is over.

    Until then it listens: whoever asks /readyz is told that this server stops. A connection that is kept alive stays
    for its next request, whose answer closes it. Closed without one, it may take a publish with it that a proxy has
    just sent, and must not send to another server. Without ``idle`` nobody waits for those: a person at a terminal
    does not want to.
    """
    until = asyncio.get_running_loop().time() + seconds
    await bus.end_streams(seconds)
    if idle:
        await _empty(runner, until)
    for site in runner.sites:
        if isinstance(site, Site):
            await site.leave()
    await _empty(runner, asyncio.get_running_loop().time() + LAST_ACCEPTED)


async def _empty(runner: web.AppRunner, until: float) -> None:
    """Wait until there is no connection, or for a moment of the loop's clock."""
    loop, server = asyncio.get_running_loop(), runner.server
    # aiohttp tells nobody that a connection has ended.
    while server is not None and server.connections and loop.time() < until:  # noqa: ASYNC110
        await asyncio.sleep(LOOK)


async def _let_go(runner: web.AppRunner, bus: Bus, sockets: Sequence[socket.socket]) -> None:
    """Accept no more, and refuse nobody who was accepted: their requests have a moment to come in."""
    bus.leaving = True
    for each in sockets:
        # Not closed yet: asyncio drops the connections whose acceptance is under way when it closes a server.
        asyncio.get_running_loop().remove_reader(each)
    await asyncio.sleep(LAST_ACCEPTED)
    if runner.server is not None:
        runner.server.pre_shutdown()  # closes what is kept alive without a request


async def _tell(listening: asyncio.Event, ready: Callable[[], None]) -> None:
    await listening.wait()
    ready()
