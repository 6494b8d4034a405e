"""The numbers of all workers. One worker asks the supervisor, which asks all of them and adds the numbers up.

The requests and reports use the pipes that are there anyway. The supervisor keeps the last numbers of each worker, so a
counter that was shown does not go back when a worker ends, is killed or is renewed. Rejected: the way of
prometheus_client for several processes, which needs files, maps every number into memory, and cannot look up a number
when it is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from sse_pg.core.metrics import Numbers, combined, counters_of
from sse_pg.http.problem import unavailable

#: How long the supervisor waits for the numbers of a worker. After that its last numbers are used.
WORKER_TIMEOUT_S = 1.0
#: How long a worker waits for the totals.
TOTALS_TIMEOUT_S = 5.0


class Totals:
    """The supervisor's side. Workers are known by their process ids."""

    def __init__(self) -> None:
        self._last: dict[int, Numbers] = {}
        self._ended: Numbers = {}
        self._awaited: dict[int, asyncio.Future[None]] = {}
        self._lock = asyncio.Lock()

    async def collect(self, requests: Mapping[int, Callable[[], None]]) -> Numbers:
        """Return the numbers of all workers. ``requests`` are functions that ask a worker, by its process id."""
        async with self._lock:
            loop = asyncio.get_running_loop()
            self._awaited = {pid: loop.create_future() for pid in requests}
            for request in requests.values():
                request()
            await asyncio.wait(self._awaited.values(), timeout=WORKER_TIMEOUT_S)
            return combined(self._last.values(), self._ended)

    def reported(self, pid: int, numbers: Numbers) -> None:
        """Store the numbers of a worker."""
        self._last[pid] = numbers
        self._stop_waiting(pid)

    def ended(self, pid: int) -> None:
        """Keep the counters of a worker that has ended."""
        self._ended = combined([counters_of(self._last.pop(pid, {}))], self._ended)
        self._stop_waiting(pid)

    def _stop_waiting(self, pid: int) -> None:
        waiting = self._awaited.get(pid)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


class TotalsClient:
    """A worker's side: one request to the supervisor at a time, however many callers wait."""

    def __init__(self, request: Callable[[], None]) -> None:
        """``request`` asks the supervisor; the response comes to ``received``."""
        self._request = request
        self._lock = asyncio.Lock()
        self._waiting: asyncio.Future[Numbers] | None = None

    async def fetch(self) -> Numbers:
        """Return the numbers of all workers. Raises the 503 if the supervisor does not respond."""
        async with self._lock:
            self._waiting = asyncio.get_running_loop().create_future()
            self._request()
            try:
                async with asyncio.timeout(TOTALS_TIMEOUT_S):
                    return await self._waiting
            except TimeoutError:
                raise unavailable("The supervisor of the workers does not respond.") from None

    def received(self, totals: Numbers) -> None:
        """Hand the supervisor's response to the caller that waits for it."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(totals)
