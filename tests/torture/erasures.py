"""Erasures at random, and a channel with a retention of its own, while readers resume."""

from __future__ import annotations

import asyncio
from random import Random

import psycopg

from torture.writers import CHANNELS

#: The channel whose events are kept for a moment only.
KEPT = CHANNELS[-1]
#: Notes what is deleted row by row, in the transaction that deletes it, and begins to keep the channel for a moment.
NOTE_DELETIONS = f"""
    CREATE TABLE gone (id bigint PRIMARY KEY);
    CREATE FUNCTION note_gone() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.gone VALUES (OLD.id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_gone AFTER DELETE ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION note_gone();
    SELECT sse_pg.keep('{KEPT}', '1 second');
"""
#: Maintenance that is not waited for in a short run.
SETTINGS = {"SSE_PG_MAINTENANCE_SECONDS": "0.3"}
ERASE = "SELECT sse_pg.erase(%s, clock_timestamp() - %s * interval '1 second', %s)"


def gone(conninfo: str) -> set[int]:
    """Return the ids that were deleted row by row."""
    with psycopg.connect(conninfo) as conn:
        return {number for (number,) in conn.execute("SELECT id FROM gone")}


class Eraser:
    """Erases some of what the writers publish, from every channel but the kept one. Some of it is rolled back."""

    def __init__(self, seed: int, conninfo: str) -> None:
        self._random = Random(f"{seed} eraser")
        self._conninfo = conninfo
        self.erased = 0

    async def run(self, pause: float) -> None:
        """Erase until cancelled; ``pause`` is the mean time between two erasures in seconds."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=5) as conn:
                    while True:
                        await asyncio.sleep(self._random.expovariate(1 / pause))
                        containing = None if self._random.random() < 0.1 else f'{{"n": {self._random.randint(1, 4)}}}'
                        age = self._random.choice((0, 0, 0.5, 3))
                        channel = self._random.choice(CHANNELS[:-1])
                        ((count,),) = await (await conn.execute(ERASE, (channel, age, containing))).fetchall()
                        if self._random.random() < 0.2:
                            await conn.rollback()
                        else:
                            await conn.commit()
                            self.erased += count
            except (psycopg.Error, OSError):
                await asyncio.sleep(0.1)
