"""Tasks that wait for a read of the log which begins after they asked, until what it found is handed on."""

from __future__ import annotations

import asyncio

from sse_pg.core.frontier import Frontier

Waiter = asyncio.Future[None]


class Waiters:
    """The waiters whose read has not begun, and those whose read is over but held back by a fresh gap."""

    def __init__(self) -> None:
        self._asking: list[Waiter] = []
        self._held: list[tuple[Waiter, int]] = []
        """Waiters whose read is over, each with the highest id that the read saw."""

    def ask(self) -> Waiter:
        """Return a future that is done when such a read is handed on."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._asking.append(waiter)
        return waiter

    def begin(self) -> list[Waiter]:
        """Return the waiters whose read begins now."""
        waiting, self._asking = self._asking, []
        return waiting

    def requeue(self, waiting: list[Waiter]) -> None:
        """Let waiters whose read failed wait for the next one."""
        self._asking += waiting

    def end(self, waiting: list[Waiter], frontier: Frontier) -> None:
        """Resolve every waiter whose read is handed on by now; ``waiting`` are those of the read that just ended."""
        self._held += [(waiter, frontier.seen) for waiter in waiting]
        self._held = [held for held in self._held if not _resolve(frontier, *held)]


def _resolve(frontier: Frontier, waiter: Waiter, seen: int) -> bool:
    """Resolve a waiter, and return True, if everything up to the id ``seen`` is handed on."""
    if frontier.holds_up_to(seen):
        return False
    if not waiter.done():
        waiter.set_result(None)
    return True
