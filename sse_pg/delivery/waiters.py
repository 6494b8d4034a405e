"""Who waits for a read of the log: one that begins after they asked, until what it found is handed on."""

from __future__ import annotations

import asyncio

from sse_pg.core.frontier import Frontier

Waiter = asyncio.Future[None]


class Waiters:
    """Those whose read has not begun, and those whose read is over and held back."""

    def __init__(self) -> None:
        self._asking: list[Waiter] = []
        self._held: list[tuple[Waiter, int]] = []
        """Who asked for a read that is over, and the highest id that it saw."""

    def ask(self) -> Waiter:
        """Return what is done when such a read is handed on."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._asking.append(waiter)
        return waiter

    def begin(self) -> list[Waiter]:
        """Return those for whom a read that begins now is the one."""
        waiting, self._asking = self._asking, []
        return waiting

    def again(self, waiting: list[Waiter]) -> None:
        """Have them wait for another read; theirs has failed."""
        self._asking += waiting

    def end(self, waiting: list[Waiter], frontier: Frontier) -> None:
        """Tell everybody whose read is handed on by now; ``waiting`` are those of the read that has just ended."""
        self._held += [(waiter, frontier.seen) for waiter in waiting]
        self._held = [held for held in self._held if not _tell(frontier, *held)]


def _tell(frontier: Frontier, waiter: Waiter, seen: int) -> bool:
    """Tell a waiter that what was seen up to an id is handed on; False while some of it is held back."""
    if frontier.holds_up_to(seen):
        return False
    if not waiter.done():
        waiter.set_result(None)
    return True
