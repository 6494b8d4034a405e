"""A process of a worker, as its parent has it: started, listened to, told things, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable

import msgspec

from sse_pg.config import Settings
from sse_pg.either import either
from sse_pg.errors import WorkerError
from sse_pg.workers.messages import SIGNALS, Order, Report, Word

log = logging.getLogger(__name__)

#: Seconds that a worker gets to listen, and one that renews another to be ready.
START = 60.0
#: Bytes of a report, and of what a worker has not read yet while it is told more.
LONGEST_REPORT, UNREAD = 2**20, 2**18


class Process:
    """A process of a worker, and what it reports. ``gone`` gives the reason when it has ended."""

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, heard: Callable[[Process, Report], None]
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
        heard: Callable[[Process, Report], None],
    ) -> Process:
        """Start a worker on these sockets; signals wait until it has its handlers."""
        descriptors = [each.fileno() for each in sockets]
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "sse_pg.workers.child"),
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
        await either(self._listening, self.gone)
        if self.gone.done():
            raise WorkerError(f"worker {self._number} does not start: {self.gone.result()}")
        return self._url

    async def is_ready(self) -> None:
        """Wait until it serves. Raises WorkerError, with the process ended, when it does not come to that."""
        await either(self._ready, self.gone, START)
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


async def end(processes: Iterable[Process], number: int, patience: float) -> None:
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


def _meaning(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
