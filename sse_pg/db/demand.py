"""Whether anybody needs the database now, so that a server that nobody needs can let go of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from sse_pg.errors import BusUnavailable


def _no_streams() -> int:
    return 0


class Demand:
    """Counts who needs the database: the open streams, and requests for as long as they use a connection.

    After ``let_go_after`` seconds without either, the tail begins a rest: the server has no connection at all. The
    first request or stream ends it. The server's own upkeep (the registry, maintenance, the check behind /readyz) uses
    the database, but does not need it: it neither prolongs the time nor ends a rest.
    """

    def __init__(self, let_go_after: float = 0.0, streams: Callable[[], int] = _no_streams) -> None:
        """``let_go_after`` is in seconds; 0 means never. ``streams`` returns how many streams are open."""
        self._let_go_after = let_go_after
        self._streams = streams
        self._holders = 0
        self._upkeep = 0
        self._needed_at = time.monotonic()
        self._here = asyncio.Event()
        self._here.set()
        self._asked = asyncio.Event()

    @property
    def is_away(self) -> bool:
        """Whether the server has let go of the database, and has not come back yet."""
        return not self._here.is_set()

    @property
    def idle_s(self) -> float:
        """For how many seconds nobody has needed the database; 0 while somebody does."""
        if self._holders or self._streams():
            self._needed_at = time.monotonic()
            return 0.0
        return time.monotonic() - self._needed_at

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Need the database for the block. A server at rest starts to come back; ``until_here`` waits for that."""
        self._holders += 1
        self._asked.set()
        try:
            yield
        finally:
            self._holders -= 1
            self._needed_at = time.monotonic()

    @contextlib.contextmanager
    def upkeep(self) -> Iterator[None]:
        """Use the database for the block, and do not let go of it meanwhile. Raises BusUnavailable at rest."""
        if self.is_away and not self._asked.is_set():
            raise BusUnavailable("this server has let go of the database")
        self._upkeep += 1
        try:
            yield
        finally:
            self._upkeep -= 1

    async def until_here(self, timeout: float | None) -> None:
        """Wait until the server has the database. Raises BusUnavailable after ``timeout`` seconds (None: never)."""
        if not self.is_away:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._here.wait()
        except TimeoutError:
            raise BusUnavailable(f"the database has not responded within {timeout:g} s after a rest") from None

    # ------------------------------------------------------------ for the tail, which begins and ends a rest

    @property
    def rests_in_s(self) -> float | None:
        """In how many seconds a rest may begin if nobody needs the database until then; None if never."""
        return max(0.0, self._let_go_after - self.idle_s) if self._let_go_after else None

    def begin_rest(self) -> bool:
        """Begin a rest and return True, unless somebody needs the database, or has needed it lately."""
        if self.rests_in_s != 0.0 or self._upkeep:
            return False
        self._here.clear()
        self._asked.clear()
        return True

    async def until_needed(self) -> None:
        """Wait, at rest, until somebody needs the database."""
        await self._asked.wait()

    def end_rest(self) -> None:
        """Let those go on who wait for the database: the server has it again, or has tried."""
        self._here.set()
