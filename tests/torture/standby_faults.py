"""Faults of a standby: it lags, stops replaying, restarts and is killed, while servers read from it."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

import psycopg
from support.standby import Standby


class StandbyFaults:
    """Injects one fault after the other into one standby, and ends each."""

    def __init__(self, seed: int, standby: Standby) -> None:
        self._random = Random(f"{seed} standby")
        self._standby = standby
        self.done: list[str] = []

    async def run(self, pause: float) -> None:
        """Go on until cancelled."""
        kinds = [(self.pause_replay, 4), (self.delay_replay, 3), (self.restart_standby, 1), (self.kill_standby, 1)]
        while True:
            await asyncio.sleep(self._random.expovariate(1 / pause))
            (kind,) = self._random.choices([k for k, _ in kinds], [w for _, w in kinds])
            self.done.append(kind.__name__)
            with contextlib.suppress(psycopg.Error):
                await kind()

    async def pause_replay(self) -> None:
        """Let it stop replaying for some time."""
        await asyncio.to_thread(self._standby.execute, "SELECT pg_wal_replay_pause()")
        await asyncio.sleep(self._random.uniform(0.1, 4))
        await asyncio.to_thread(self._standby.resume)

    async def delay_replay(self) -> None:
        """Let it replay each commit later than it was made."""
        delay = self._random.choice((50, 300, 1500))
        await asyncio.to_thread(self._standby.delay, delay)
        await asyncio.sleep(self._random.uniform(1, 5))
        await asyncio.to_thread(self._standby.delay, 0)

    async def restart_standby(self) -> None:
        """Restart it properly."""
        await asyncio.to_thread(self._standby.stop)
        await asyncio.to_thread(self._standby.start)

    async def kill_standby(self) -> None:
        """End it at once, and keep it down for a moment."""
        await asyncio.to_thread(self._standby.stop, kill=True)
        await asyncio.sleep(self._random.uniform(0, 2))
        await asyncio.to_thread(self._standby.start)

    async def end(self) -> None:
        """Let it run, and replay everything."""
        await asyncio.to_thread(self._standby.stop, kill=True)
        await asyncio.to_thread(self._standby.start)
        await asyncio.to_thread(self._standby.delay, 0)
