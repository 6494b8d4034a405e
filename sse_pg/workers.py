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
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import msgspec

from sse_pg.config import Settings
from sse_pg.errors import WorkerError
from sse_pg.roll_call import RollCall
from sse_pg.server import LAST_REQUESTS
from sse_pg.shared_port import SharedPort
from sse_pg.worker import SIGNALS, Order, Report, Word

log = logging.getLogger(__name__)

#: Seconds that a worker gets to listen, and one that renews another to be ready.
START = 60.0
#: Seconds that a worker gets to end, beyond its draining and its last requests.
GRACE = 5.0
#: Bytes of a report, and of what a worker has not read yet while it is told more.
LONGEST_REPORT, UNREAD = 2**20, 2**18
#: A worker that lived for so many seconds had started well.
SETTLED = 10.0
#: Seconds until a place is filled again whose last workers died at once: the first, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0


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
            await _either(stop, running)
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
        self._places = [_Place(number, self._spawn) for number in range(1, settings.workers + 1)]
        self._processes: set[_Process] = set()
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
        await _end(self._processes, signal.SIGTERM, self._patience)
        for place in self._places:
            place.close()

    async def _renew(self, asked: asyncio.Event) -> None:
        while True:
            await asked.wait()
            asked.clear()
            for place in self._places:
                old = await place.renew()
                if old is not None:
                    await _end({old}, signal.SIGHUP, self._patience)
            log.info("the workers have been renewed")

    async def _spawn(self, place: _Place) -> _Process:
        if not place.sockets:
            place.sockets = self._port.listen()
        process = await _Process.start(place.number, self._settings, place.sockets, self._heard)
        self._processes.add(process)

        def ended(_: asyncio.Task[str]) -> None:
            self._processes.discard(process)
            self._roll_call.ended(process.pid)

        process.gone.add_done_callback(ended)
        return process

    def _heard(self, process: _Process, report: Report) -> None:
        """Take in what a worker reports about numbers."""
        if report.numbers is not None:
            self._roll_call.told(process.pid, report.numbers)
        if report.asks:
            task = asyncio.create_task(self._answer(process))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer(self, process: _Process) -> None:
        asks = {each.pid: partial(each.say, Word()) for each in self._processes if each.serves}
        process.say(Word(all=await self._roll_call.numbers(asks)))

    @property
    def _patience(self) -> float:
        return self._settings.drain + LAST_REQUESTS + GRACE


class _Place:
    """One of the workers, whichever process it is now."""

    def __init__(self, number: int, spawn: Callable[[_Place], Awaitable[_Process]]) -> None:
        self.number = number
        self.sockets: list[socket.socket] = []
        self.process: _Process
        self._spawn = spawn
        self._swapped = asyncio.Event()
        self._lock = asyncio.Lock()

    async def fill(self) -> None:
        """Start a process for this place."""
        self.process = await self._spawn(self)
        log.info("worker %d is process %d", self.number, self.process.pid)

    async def keep(self) -> None:
        """Start the next process whenever one dies, until cancelled; at once, unless they die young."""
        young = 0
        while True:
            process = self.process
            await _either(self._swapped, process.gone)
            self._swapped.clear()
            if self.process is not process or not process.gone.done():
                continue
            young = young + 1 if process.age < SETTLED else 0
            pause = min(FIRST_PAUSE * 2.0 ** (young - 1), LONGEST_PAUSE) if young else 0.0
            log.error(
                "worker %d (process %d) ended: %s; the next one starts %s",
                self.number, process.pid, process.gone.result(), f"in {pause:g} s" if pause else "now",
            )  # fmt: skip
            if young > 1:
                self.close()  # nobody waits here while the other workers could serve
            while self.process is process:
                await asyncio.sleep(pause)
                pause = LONGEST_PAUSE
                await self._refill(process)

    async def renew(self) -> _Process | None:
        """Put a new process beside the one that is here; return the old one once the new one is ready."""
        async with self._lock:
            try:
                new = await self._spawn(self)
                await new.is_ready()
            except (OSError, WorkerError) as error:
                log.warning("worker %d is not renewed: %s", self.number, error)
                return None
            old, self.process = self.process, new
            self._swapped.set()
            log.info("worker %d is process %d, after process %d", self.number, new.pid, old.pid)
            return old

    def close(self) -> None:
        """Close the sockets here; who waits on them for a worker has to come again."""
        for each in self.sockets:
            each.close()
        self.sockets = []

    async def _refill(self, dead: _Process) -> None:
        async with self._lock:
            if self.process is dead:
                try:
                    await self.fill()
                except OSError as error:
                    log.warning("worker %d cannot be started: %s", self.number, error)


class _Process:
    """A process of a worker, and what it reports. ``gone`` gives the reason when it has ended."""

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, heard: Callable[[_Process, Report], None]
    ) -> None:
        self.pid = process.pid
        self._number = number
        self._process = process
        self._heard = heard
        self._started = self._ended = time.monotonic()
        self._listening, self._ready = asyncio.Event(), asyncio.Event()
        self._url = ""
        self._killed_for = ""
        self.gone = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls,
        number: int,
        settings: Settings,
        sockets: list[socket.socket],
        heard: Callable[[_Process, Report], None],
    ) -> _Process:
        """Start a worker on these sockets; signals wait until it has its handlers."""
        descriptors = [each.fileno() for each in sockets]
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "sse_pg.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LONGEST_REPORT,
                pass_fds=descriptors,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        assert process.stdin is not None
        # No drain(): a process that died before it read this is noticed by its end.
        process.stdin.write(Order(settings, descriptors).line())
        return cls(number, process, heard)

    @property
    def age(self) -> float:
        """Seconds that the process lived."""
        return self._ended - self._started

    @property
    def serves(self) -> bool:
        """Whether it listens, and hears what is said to it."""
        return self._listening.is_set()

    async def listens(self) -> str:
        """Wait until it listens; return the URL. Raises WorkerError when it ends instead."""
        await _either(self._listening, self.gone)
        if self.gone.done():
            raise WorkerError(f"worker {self._number} does not start: {self.gone.result()}")
        return self._url

    async def is_ready(self) -> None:
        """Wait until it serves. Raises WorkerError, with the process ended, when it does not come to that."""
        await _either(self._ready, self.gone, START)
        if not self._ready.is_set() and not self.gone.done():
            self._kill(f"it is not ready after {START:g} s")
            await asyncio.wait({self.gone})
        if self.gone.done():
            raise WorkerError(self.gone.result())

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def say(self, word: Word) -> None:
        """Say something to the worker, unless it does not read what was said before."""
        pipe = self._process.stdin
        assert pipe is not None
        if not pipe.is_closing() and pipe.transport.get_write_buffer_size() < UNREAD:
            pipe.write(word.line())

    def _kill(self, reason: str) -> None:
        self._killed_for = reason
        self.send(signal.SIGKILL)

    async def _watch(self) -> str:
        assert self._process.stdout is not None
        late = asyncio.get_running_loop().call_later(START, self._kill, f"it does not listen after {START:g} s")
        failed = ""
        async for line in self._process.stdout:
            try:
                report = Report.read(line)
            except msgspec.DecodeError:
                continue  # something printed before the worker took its stdout aside
            if report.url:
                late.cancel()
                self._url = report.url
                self._listening.set()
            if report.ready:
                self._ready.set()
            failed = report.failed or failed
            self._heard(self, report)
        late.cancel()
        code = await self._process.wait()
        self._ended = time.monotonic()
        return self._killed_for or failed or _meaning(code)


async def _end(processes: Iterable[_Process], number: int, patience: float) -> None:
    """Send a signal to processes and wait until they have ended; kill those that do not."""
    left = list(processes)
    for process in left:
        process.send(number)
    if left:
        await asyncio.wait({process.gone for process in left}, timeout=patience)
    for process in left:
        if not process.gone.done():
            log.error("process %d does not end within %g s; it is killed", process.pid, patience)
            process.send(signal.SIGKILL)
            await asyncio.wait({process.gone})


async def _either(
    event: asyncio.Event, task: asyncio.Task[str] | asyncio.Task[None], timeout: float | None = None
) -> None:
    """Wait until the event is set or the task is done."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, task}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def _meaning(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


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
