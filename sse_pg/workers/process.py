"""A worker process, as the supervisor sees it: starts it, reads its reports, sends it requests, ends it."""

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
from sse_pg.workers.messages import SIGNALS, Report, Request, StartMessage

log = logging.getLogger(__name__)

#: How long a worker may take until it listens, and one that replaces another until it is ready.
START_TIMEOUT_S = 60.0
#: Maximum size of a report.
MAX_REPORT_BYTES = 2**20
#: Requests are dropped while the worker has so much to read.
MAX_UNREAD_BYTES = 2**18


class Process:
    """A worker process and the state that it reports. The task ``ended`` is done when it has ended, with the reason."""

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, received: Callable[[Process, Report], None]
    ) -> None:
        self.pid = process.pid
        self._number = number
        self._process = process
        self._received = received
        self._start_s = self._end_s = time.monotonic()
        self._listening, self._ready = asyncio.Event(), asyncio.Event()
        self._url = ""
        self._killed_for = ""
        self.ended = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls,
        number: int,
        settings: Settings,
        sockets: list[socket.socket],
        received: Callable[[Process, Report], None],
    ) -> Process:
        """Start a worker on these sockets. Signals to it are blocked until it has set its handlers."""
        descriptors = [each.fileno() for each in sockets]
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "sse_pg.workers.child"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MAX_REPORT_BYTES,
                pass_fds=descriptors,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        assert process.stdin is not None
        # No drain(): if the process dies before it reads this, its end is noticed anyway.
        process.stdin.write(StartMessage(settings, descriptors).line())
        return cls(number, process, received)

    @property
    def lifetime(self) -> float:
        """How many seconds the process lived."""
        return self._end_s - self._start_s

    @property
    def is_listening(self) -> bool:
        """Whether it listens on its sockets and handles requests."""
        return self._listening.is_set()

    async def wait_until_listening(self) -> str:
        """Wait until it listens; return the URL. Raises WorkerError if it ends instead."""
        await either(self._listening, self.ended)
        if self.ended.done():
            raise WorkerError(f"worker {self._number} does not start: {self.ended.result()}")
        return self._url

    async def wait_until_ready(self) -> None:
        """Wait until it is ready. Raises WorkerError if it ends or is killed for being too slow."""
        await either(self._ready, self.ended, START_TIMEOUT_S)
        if not self._ready.is_set() and not self.ended.done():
            self._kill(f"it is not ready after {START_TIMEOUT_S:g} s")
            await asyncio.wait({self.ended})
        if self.ended.done():
            raise WorkerError(self.ended.result())

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def request(self, request: Request) -> None:
        """Send a request, unless the worker does not read the ones before."""
        pipe = self._process.stdin
        assert pipe is not None
        if not pipe.is_closing() and pipe.transport.get_write_buffer_size() < MAX_UNREAD_BYTES:
            pipe.write(request.line())

    def _kill(self, reason: str) -> None:
        self._killed_for = reason
        self.send_signal(signal.SIGKILL)

    async def _watch(self) -> str:
        assert self._process.stdout is not None
        late = asyncio.get_running_loop().call_later(
            START_TIMEOUT_S, self._kill, f"it does not listen after {START_TIMEOUT_S:g} s"
        )
        failed = ""
        async for line in self._process.stdout:
            try:
                report = Report.read(line)
            except msgspec.DecodeError:
                continue  # something that was printed before the worker replaced its stdout
            if report.url:
                late.cancel()
                self._url = report.url
                self._listening.set()
            if report.ready:
                self._ready.set()
            failed = report.failed or failed
            self._received(self, report)
        late.cancel()
        code = await self._process.wait()
        self._end_s = time.monotonic()
        return self._killed_for or failed or _meaning(code)


async def end(processes: Iterable[Process], number: int, timeout_s: float) -> None:
    """Send a signal to processes and wait until they have ended; kill those that do not."""
    left = list(processes)
    for process in left:
        process.send_signal(number)
    if left:
        await asyncio.wait({process.ended for process in left}, timeout=timeout_s)
    for process in left:
        if not process.ended.done():
            log.error("process %d has not ended within %g s; it is killed", process.pid, timeout_s)
            process.send_signal(signal.SIGKILL)
            await asyncio.wait({process.ended})


def _meaning(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
