"""What the streams of a process share: counts of what they were sent and have not read, the queue of the ended ones."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from sse_pg.delivery.turns import SLICE_S
from sse_pg.delivery.unread import Unread


class Ledger:
    """The bytes that all streams were sent, and what is left to do for streams that have ended.

    Thousands of streams can end in the same moment: a proxy dies, tokens expire, a right is withdrawn. So the rest of
    the work for each of them is done in slices.
    """

    __slots__ = ("_ended", "_scheduled", "sent_bytes", "unread")

    def __init__(self, max_unread: int) -> None:
        """``max_unread``: bytes that all clients together may have unread."""
        self.sent_bytes = 0
        self.unread = Unread(max_unread)
        self._ended: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def finish_soon(self, finish: Callable[[], None]) -> None:
        """Call ``finish`` in a later turn of the event loop."""
        self._ended.append(finish)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._finish)

    def _finish(self) -> None:
        until = time.monotonic() + SLICE_S
        try:
            while self._ended:
                self._ended.popleft()()
                if time.monotonic() >= until:
                    break
        finally:
            self._scheduled = bool(self._ended)
            if self._scheduled:
                asyncio.get_running_loop().call_soon(self._finish)
