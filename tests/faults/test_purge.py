"""A server that stops for a while, as a machine does that is suspended or swaps, while another one purges."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import psycopg
from support.client import Client
from support.process import process
from support.waiting import PROCESS_TIMEOUT_S, wait_for

EVENTS = 5000
#: Whether a server has the lock of the one that notes what is settled.
ELECTED = """
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = sse_pg.lock_class('tail') AND objid = 3
       AND mode = 'ExclusiveLock' AND granted
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def test_a_purge_does_not_overtake_a_server_that_stands_still(db: psycopg.Connection, database_url: str) -> None:
    settings = {
        "DATABASE_URL": database_url,
        "SSE_PG_PARTITION_SIZE": "1000",
        "SSE_PG_KEEP_EVENTS": "2000",
        "SSE_PG_MAINTENANCE_SECONDS": "1",
    }
    with contextlib.ExitStack() as stack:
        fast = stack.enter_context(process("serve", "--port", "0", **settings))
        # The first server notes what is settled, as long as it is connected. This test waits for such a note.
        wait_for(lambda: db.execute(ELECTED).fetchall())
        slow = stack.enter_context(process("serve", "--port", "0", **settings))
        slow_url, fast_url = slow.url(), fast.url()
        async with Client(slow_url) as one, Client(fast_url) as two, one.stream("a") as late, two.stream("a") as early:
            slow.popen.send_signal(signal.SIGSTOP)
            try:
                for start in range(0, EVENTS, 100):
                    db.execute(
                        "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g)"
                        "  FROM generate_series(%s::int, %s) g",
                        [start + 1, start + 100],
                    )
                async with asyncio.timeout(PROCESS_TIMEOUT_S):
                    assert [event.json() for event in await early.events(EVENTS)] == list(range(1, EVENTS + 1))
                    # The other server has noted that it needs nothing any more.
                    while db.execute("SELECT settled_to = %s FROM sse_pg.log", [EVENTS]).fetchone() != (True,):
                        await asyncio.sleep(0.05)
                    while db.execute("SELECT state FROM sse_pg.purge(2000)").fetchone() == ("more",):
                        pass
            finally:
                slow.popen.send_signal(signal.SIGCONT)
            async with asyncio.timeout(PROCESS_TIMEOUT_S):
                assert [event.json() for event in await late.events(EVENTS)] == list(range(1, EVENTS + 1))
                while db.execute("SELECT purged_to >= 2999 FROM sse_pg.log").fetchone() != (True,):
                    db.execute("SELECT sse_pg.purge(2000)")
                    await asyncio.sleep(0.1)
