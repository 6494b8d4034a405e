"""The numbers of all workers, asked for by one of them: it asks the parent, the parent asks all and adds up.

Both ways are lines on pipes that are there anyway, from which a worker that hangs or dies takes nothing: the parent
keeps what a worker said last. So a counter, once shown, does not go back when a worker ends, is killed or is renewed.
Rejected: prometheus_client's own way for several processes, which needs files, maps each number into memory, and knows
no numbers that are only looked up when somebody asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from sse_pg.core.metrics import Numbers, combined, counters_of
from sse_pg.http.problem import unavailable

#: Seconds that a worker gets to tell its numbers; what it told before stands in for them.
ANSWER = 1.0
#: Seconds until a worker that asked the parent gives up.
PATIENCE = 5.0


class RollCall:
    """The parent's side; workers are known by their process ids."""

    def __init__(self) -> None:
        self._told: dict[int, Numbers] = {}
        self._gone: Numbers = {}
        self._awaited: dict[int, asyncio.Future[None]] = {}
        self._lock = asyncio.Lock()

    async def numbers(self, workers: Mapping[int, Callable[[], None]]) -> Numbers:
        """Return the numbers of all; ``workers`` are, by process id, what asks one of them."""
        async with self._lock:
            loop = asyncio.get_running_loop()
            self._awaited = {pid: loop.create_future() for pid in workers}
            for ask in workers.values():
                ask()
            await asyncio.wait(self._awaited.values(), timeout=ANSWER)
            return combined(self._told.values(), self._gone)

    def told(self, pid: int, numbers: Numbers) -> None:
        """Take in what a worker tells."""
        self._told[pid] = numbers
        waiting = self._awaited.get(pid)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def ended(self, pid: int) -> None:
        """Keep the counters of a worker that has ended."""
        self._gone = combined([counters_of(self._told.pop(pid, {}))], self._gone)
        waiting = self._awaited.get(pid)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


class Asking:
    """A worker's side: one question at a time to the parent, however many ask."""

    def __init__(self, ask: Callable[[], None]) -> None:
        """``ask`` sends the question; the answer comes to ``answered``."""
        self._ask = ask
        self._lock = asyncio.Lock()
        self._waiting: asyncio.Future[Numbers] | None = None

    async def numbers(self) -> Numbers:
        """Return the numbers of all workers. Raises the 503 where the parent does not answer."""
        async with self._lock:
            self._waiting = asyncio.get_running_loop().create_future()
            self._ask()
            try:
                async with asyncio.timeout(PATIENCE):
                    return await self._waiting
            except TimeoutError:
                raise unavailable("The process that knows all workers does not answer.") from None

    def answered(self, numbers: Numbers) -> None:
        """Take in the answer."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(numbers)
