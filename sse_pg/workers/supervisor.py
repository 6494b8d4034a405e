"""Several server processes on one port: starts them, replaces those that die, stops them all.

The process of ``sse-pg serve`` is the supervisor. It owns the embedded PostgreSQL and has applied the migrations, but
serves nothing itself. Each worker has a slot with listening sockets of its own, which the supervisor keeps open. A
client that waits there to be accepted is therefore not lost with the worker, and two workers can share a slot while one
replaces the other.

SIGTERM and SIGINT stop all workers, SIGHUP renews them one by one. Each worker has its own session, so that Ctrl-C
reaches only the supervisor; a pipe tells the workers when the supervisor is gone.
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
from sse_pg.workers.messages import Report, Request
from sse_pg.workers.port import SharedPort
from sse_pg.workers.process import Process, end
from sse_pg.workers.slot import Slot
from sse_pg.workers.totals import Totals

log = logging.getLogger(__name__)

#: How long a worker may take to exit after it has drained its streams and finished its last requests.
EXIT_GRACE_S = 5.0


async def supervise(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve with ``settings.workers`` processes until SIGINT or SIGTERM; return when all have ended.

    ``announce`` gets the URL once all workers listen. Raises SettingError if the address cannot be listened on, and
    WorkerError if a worker cannot start at first. A worker that dies later is replaced.
    """
    stop, renew = asyncio.Event(), asyncio.Event()
    terminal_is_gone = _terminal_watch()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, lambda: stop.set() if terminal_is_gone() else renew.set())
    with SharedPort(settings.host, settings.port) as port:
        supervisor = Supervisor(settings, port)
        try:
            running = asyncio.create_task(supervisor.run(announce, renew))
            await either(stop, running)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        finally:
            await supervisor.stop()


class Supervisor:
    """All slots, and every process that was started in them."""

    def __init__(self, settings: Settings, port: SharedPort) -> None:
        self._settings = settings
        self._port = port
        self._slots = [Slot(number, self._spawn) for number in range(1, settings.workers + 1)]
        self._processes: set[Process] = set()
        self._totals = Totals()
        self._responses: set[asyncio.Task[None]] = set()

    async def run(self, announce: Callable[[str], None], renew: asyncio.Event) -> None:
        """Start the workers and replace those that die, until cancelled. ``renew`` asks to renew all of them."""
        for slot in self._slots:
            await slot.start()
        urls = [await slot.process.wait_until_listening() for slot in self._slots]
        announce(urls[0])
        async with asyncio.TaskGroup() as group:
            for slot in self._slots:
                group.create_task(slot.keep_running())
            group.create_task(self._renew_when(renew))

    async def stop(self) -> None:
        """Stop every worker gracefully; kill those that take too long."""
        for slot in self._slots:
            slot.close()  # the workers stop listening by themselves; no client may be left waiting on these
        await end(self._processes, signal.SIGTERM, self._exit_timeout_s)

    async def _renew_when(self, asked: asyncio.Event) -> None:
        while True:
            await asked.wait()
            asked.clear()
            for slot in self._slots:
                old = await slot.renew()
                if old is not None:
                    await end({old}, signal.SIGHUP, self._exit_timeout_s)
            log.info("the workers have been renewed")

    async def _spawn(self, slot: Slot) -> Process:
        if not slot.sockets:
            slot.sockets = self._port.listen()
        process = await Process.start(slot.number, self._settings, slot.sockets, self._received)
        self._processes.add(process)

        def ended(_: asyncio.Task[str]) -> None:
            self._processes.discard(process)
            self._totals.ended(process.pid)

        process.ended.add_done_callback(ended)
        return process

    def _received(self, process: Process, report: Report) -> None:
        """Handle the part of a report that is about numbers."""
        if report.numbers is not None:
            self._totals.reported(process.pid, report.numbers)
        if report.wants_totals:
            task = asyncio.create_task(self._send_totals(process))
            self._responses.add(task)
            task.add_done_callback(self._responses.discard)

    async def _send_totals(self, process: Process) -> None:
        requests = {each.pid: partial(each.request, Request()) for each in self._processes if each.is_listening}
        process.request(Request(totals=await self._totals.collect(requests)))

    @property
    def _exit_timeout_s(self) -> float:
        return self._settings.drain + REQUEST_GRACE_S + EXIT_GRACE_S


def _terminal_watch() -> Callable[[], bool]:
    """Return a function that says whether the terminal of the start is gone, because that sends SIGHUP too."""
    had_terminal = _has_terminal()
    return lambda: had_terminal and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
