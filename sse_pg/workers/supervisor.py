"""Several server processes on one port: starts them, replaces those that die, ends them all.

The process of ``sse-pg serve`` is the parent; it has the embedded PostgreSQL and the migrations behind it and serves
nothing itself. Each worker (sse_pg.worker) has a place with listening sockets of its own, which the parent keeps open:
who waits there to be accepted outlives the worker, and two workers can share a place while one follows the other.

SIGTERM and SIGINT end all workers, SIGHUP renews one after the other. Workers have sessions of their own, so that
Ctrl-C reaches the parent alone; a pipe tells them when the parent is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from functools import partial

from sse_pg.config import Settings
from sse_pg.either import either
from sse_pg.server import REQUEST_GRACE_S
from sse_pg.workers.messages import Report, Word
from sse_pg.workers.port import SharedPort
from sse_pg.workers.process import Process, end
from sse_pg.workers.slot import Place
from sse_pg.workers.totals import RollCall

log = logging.getLogger(__name__)

#: Seconds that a worker gets to end, beyond its draining and its last requests.
GRACE = 5.0


async def supervise(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve with ``settings.workers`` processes until SIGINT or SIGTERM; returns when all have ended.

    ``announce`` gets the URL once all listen. Raises SettingError when the address cannot be listened on, and
    WorkerError when a worker cannot start at first; one that dies later is replaced.
    """
    stop, renew = asyncio.Event(), asyncio.Event()
    hung_up = _terminal_watch()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, lambda: stop.set() if hung_up() else renew.set())
    with SharedPort(settings.host, settings.port) as port:
        workers = Workers(settings, port)
        try:
            running = asyncio.create_task(workers.run(announce, renew))
            await either(stop, running)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        finally:
            await workers.end()


class Workers:
    """All the places, and every process that was started for them."""

    def __init__(self, settings: Settings, port: SharedPort) -> None:
        self._settings = settings
        self._port = port
        self._places = [Place(number, self._spawn) for number in range(1, settings.workers + 1)]
        self._processes: set[Process] = set()
        self._roll_call = RollCall()
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self, announce: Callable[[str], None], renew: asyncio.Event) -> None:
        """Fill the places and keep them filled, until cancelled; ``renew`` asks for new workers in all of them."""
        for place in self._places:
            await place.fill()
        urls = [await place.process.listens() for place in self._places]
        announce(urls[0])
        async with asyncio.TaskGroup() as group:
            for place in self._places:
                group.create_task(place.keep())
            group.create_task(self._renew(renew))

    async def end(self) -> None:
        """End every worker in good order; kill those that take too long."""
        for place in self._places:
            place.close()  # each worker leaves its port by itself: nobody is to wait here once it has
        await end(self._processes, signal.SIGTERM, self._patience)

    async def _renew(self, asked: asyncio.Event) -> None:
        while True:
            await asked.wait()
            asked.clear()
            for place in self._places:
                old = await place.renew()
                if old is not None:
                    await end({old}, signal.SIGHUP, self._patience)
            log.info("the workers have been renewed")

    async def _spawn(self, place: Place) -> Process:
        if not place.sockets:
            place.sockets = self._port.listen()
        process = await Process.start(place.number, self._settings, place.sockets, self._heard)
        self._processes.add(process)

        def ended(_: asyncio.Task[str]) -> None:
            self._processes.discard(process)
            self._roll_call.ended(process.pid)

        process.gone.add_done_callback(ended)
        return process

    def _heard(self, process: Process, report: Report) -> None:
        """Take in what a worker reports about numbers."""
        if report.numbers is not None:
            self._roll_call.told(process.pid, report.numbers)
        if report.asks:
            task = asyncio.create_task(self._answer(process))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer(self, process: Process) -> None:
        asks = {each.pid: partial(each.say, Word()) for each in self._processes if each.serves}
        process.say(Word(all=await self._roll_call.numbers(asks)))

    @property
    def _patience(self) -> float:
        return self._settings.drain + REQUEST_GRACE_S + GRACE


def _terminal_watch() -> Callable[[], bool]:
    """Return what tells whether the terminal that there was at first is gone: that, too, sends SIGHUP."""
    had = _has_terminal()
    return lambda: had and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
