"""Two servers on one database, of which one is killed: who is counted, and what a user may still open."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import aiohttp
import psycopg
import pytest
from support.process import Process
from support.waiting import PROCESS_TIMEOUT_S

LIVE = "SELECT name, active_connections FROM sse_pg.live_servers() ORDER BY name"


@pytest.fixture
def servers(database_url: str) -> Iterator[dict[str, Process]]:
    """Two processes, each of which allows a user two streams."""
    with contextlib.ExitStack() as stack:
        started = {}
        for name in ("kept", "lost"):
            started[name] = Process(
                *("serve", "--port", "0"),
                DATABASE_URL=database_url,
                SSE_PG_OPEN="true",
                SSE_PG_SERVER_NAME=name,
                SSE_PG_MAX_STREAMS_PER_USER="2",
                SSE_PG_MAX_STREAMS_PER_ADDRESS="3",
            )
            stack.callback(started[name].kill)
        yield started


class Seen:
    """Everything that says how many streams there are, as the servers that are left say it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, database_url: str) -> None:
        self._session = session
        self._url = url
        self._database_url = database_url

    async def _json(self, path: str) -> Any:
        async with self._session.get(f"{self._url}/api/events/{path}") as response:
            return await response.json()

    async def counts(self) -> list[dict[str, int]]:
        """Return the streams of each server: in SQL, and in each of the endpoints."""
        async with await psycopg.AsyncConnection.connect(self._database_url, autocommit=True) as conn:
            found = [dict(await (await conn.execute(LIVE)).fetchall())]
        active, stats, streams = [await self._json(path) for path in ("active-connections", "stats", "streams")]
        assert active["activeConnections"] == sum(each["activeConnections"] for each in active["servers"])
        for listed in (active["servers"], stats["servers"], [streams["server"], *streams["otherServers"]]):
            found.append({each["name"]: each["activeConnections"] for each in listed})
        return found

    async def become(self, **streams: int) -> None:
        """Wait until all of them say the same."""
        found: list[dict[str, int]] = []
        try:
            async with asyncio.timeout(PROCESS_TIMEOUT_S):
                while found != [streams] * 4:
                    found = await self.counts()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"expected {streams}, found {found}")

    async def streams_in_metrics(self) -> int:
        """Return the open streams that the metrics of the server show."""
        async with self._session.get(f"{self._url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("sse_pg_streams{"))


@pytest.mark.oldest
async def test_a_server_is_killed(servers: dict[str, Process], database_url: str) -> None:
    """Its streams count nowhere any more; the limits of a user are those of each process, before and after."""
    urls = {name: await asyncio.to_thread(process.url) for name, process in servers.items()}
    async with aiohttp.ClientSession() as session:

        async def open_stream(name: str, user: str) -> aiohttp.ClientResponse:
            return await session.get(f"{urls[name]}/api/events/stream?userId={user}")

        async def statuses(name: str, *users: str) -> list[int]:
            opened = [await open_stream(name, user) for user in users]
            streams.setdefault(name, []).extend(each for each in opened if each.status == 200)
            return [each.status for each in opened]

        streams: dict[str, list[aiohttp.ClientResponse]] = {}
        for user in "uv":
            body = {"userId": user, "channel": "a"}
            (await session.post(f"{urls['kept']}/api/events/channels/subscribe", json=body)).raise_for_status()
        seen = Seen(session, urls["kept"], database_url)
        # Twice what is set, because there are two processes; three of an address on each.
        assert await statuses("lost", "u", "u", "u", "v", "v") == [200, 200, 429, 200, 429]
        assert await statuses("kept", "u", "u", "u") == [200, 200, 429]
        await seen.become(kept=2, lost=3)

        await asyncio.to_thread(servers["lost"].end, signal.SIGKILL)
        await seen.become(kept=2)
        assert await seen.streams_in_metrics() == 2
        # What was open on the other server neither counts here nor makes room.
        assert await statuses("kept", "u", "v", "v") == [429, 200, 429]
        await seen.become(kept=3)
        streams["kept"].pop(0).close()
        await seen.become(kept=2)
        assert await statuses("kept", "u", "u") == [200, 429]
        await seen.become(kept=3)
        for each in (*streams["kept"], *streams["lost"]):
            each.close()
