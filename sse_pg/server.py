"""Runs the application: listens, waits for a signal, drains."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aiohttp import web

from sse_pg.app import BUS, create_app
from sse_pg.config import Settings
from sse_pg.connections import Site
from sse_pg.errors import SettingError

log = logging.getLogger(__name__)

#: Open files that a server asks for at most.
MOST_FILES = 1_048_576
#: Seconds that requests in flight get when the server stops.
LAST_REQUESTS = 10.0
#: Seconds that connections accepted last get to send their request when another process takes over.
LAST_ACCEPTED = 0.5
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
    Raises SettingError when the address cannot be listened on.
    """
    _raise_file_limit()
    stop, handed_over = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

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
            await _first(app[BUS].tail.listening.wait(), stop.wait(), FIRST_READ)
        try:
            for each in sockets:
                await Site(runner, settings, sock=each, streams=streams).start()
            if not sockets:
                await Site(runner, settings, host=settings.host, port=settings.port, streams=streams).start()
        except OSError as error:
            raise SettingError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
        host, port = runner.addresses[0][:2]
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await stop.wait()
        log.info("stopping: %d streams end within %g s", len(app[BUS].hub.streams), settings.drain)
        if handed_over.is_set():
            await _let_go(runner, sockets)
        # Else still listening: whoever asks /readyz is told that this server stops, rather than refused.
        await app[BUS].end_streams(settings.drain)
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


async def _first(one: Coroutine[Any, Any, object], two: Coroutine[Any, Any, object], seconds: float) -> None:
    """Wait until one or the other is done, or the time is over."""
    tasks = {asyncio.ensure_future(each) for each in (one, two)}
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _let_go(runner: web.AppRunner, sockets: Sequence[socket.socket]) -> None:
    """Accept no more, and refuse nobody who was accepted: their requests have a moment to come in."""
    for each in sockets:
        # Not closed yet: asyncio drops the connections whose acceptance is under way when it closes a server.
        asyncio.get_running_loop().remove_reader(each)
    await asyncio.sleep(LAST_ACCEPTED)
    if runner.server is not None:
        runner.server.pre_shutdown()  # closes what is kept alive without a request


async def _tell(listening: asyncio.Event, ready: Callable[[], None]) -> None:
    await listening.wait()
    ready()
