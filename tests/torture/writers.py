"""Writers: every way to publish, with delays, rollbacks, savepoints and deaths, each event marked as its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
import psycopg

CHANNELS = tuple(f"c{n}" for n in range(8))
INSERT = "INSERT INTO sse_pg.events (channel, event_type, payload, headers) VALUES (%s, %s, %s, %s)"


@dataclass
class Answers:
    """The outcomes of the events that were published over HTTP."""

    accepted: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    unknown: int = 0


class Writer:
    """One writer with a connection of its own; it makes a new one whenever that is lost."""

    def __init__(
        self, number: int, seed: int, conninfo: str, urls: list[str], answers: Answers, *, pooled: bool = False
    ) -> None:
        """``pooled``: the connections go through a transaction pooler, so nothing is prepared."""
        self._random = Random(f"{seed} writer {number}")
        self._number = number
        self._conninfo = conninfo
        self._urls = urls
        self._answers = answers
        self._options: dict[str, Any] = {"prepare_threshold": None} if pooled else {}
        self._count = 0
        self._transaction = 0
        self.stopping = False

    async def run(self, pause: float) -> None:
        """Publish until ``stopping``; ``pause`` is the mean time between transactions in seconds."""
        async with aiohttp.ClientSession() as session:
            while not self.stopping:
                try:
                    async with await psycopg.AsyncConnection.connect(
                        self._conninfo, connect_timeout=5, **self._options
                    ) as conn:
                        while not self.stopping:
                            await self._one(conn, session)
                            await asyncio.sleep(self._random.expovariate(1 / pause))
                except (psycopg.Error, OSError, ValueError):  # psycopg's copy_end(): two errors, one of them a pooler's
                    await asyncio.sleep(0.1)

    async def _one(self, conn: psycopg.AsyncConnection[Any], session: aiohttp.ClientSession) -> None:
        self._transaction += 1
        self._place = 0
        kinds = (
            (self._single, 30),
            (self._several, 20),
            (self._savepoints, 10),
            (self._copy, 5),
            (self._function, 10),
            (self._slow, 2),
            (self._prepared, 2),
            (self._dies, 1),
        )
        if self._random.random() < 0.25:
            await self._http(session)
            return
        (kind,) = self._random.choices([k for k, _ in kinds], [w for _, w in kinds])
        await kind(conn)
        if self._random.random() < 0.1:
            await conn.rollback()
        else:
            await conn.commit()

    def _event(self) -> tuple[str, str, str, str | None]:
        self._count += 1
        self._place += 1
        payload = {
            "m": self._number << 32 | self._count,
            "t": self._transaction,
            "n": self._place,
            "pad": "x" * int(self._random.expovariate(1 / 40)),
        }
        headers = json.dumps({"mark": payload["m"]}) if self._random.random() < 0.3 else None
        return self._random.choice(CHANNELS), "tick", json.dumps(payload), headers

    async def _delay(self, mean: float) -> None:
        if self._random.random() < 0.5:
            await asyncio.sleep(self._random.expovariate(1 / mean))

    async def _single(self, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute(INSERT, self._event())
        await self._delay(0.003)

    async def _several(self, conn: psycopg.AsyncConnection[Any]) -> None:
        for _ in range(self._random.randint(2, 8)):
            await conn.execute(INSERT, self._event())
            await self._delay(0.01)

    async def _function(self, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SELECT sse_pg.publish(%s, %s, %s, headers => %s)", self._event())

    async def _savepoints(self, conn: psycopg.AsyncConnection[Any]) -> None:
        for _ in range(self._random.randint(1, 3)):
            with contextlib.suppress(ZeroDivisionError):
                async with conn.transaction():
                    await conn.execute(INSERT, self._event())
                    await self._delay(0.01)
                    if self._random.random() < 0.5:
                        raise ZeroDivisionError
        await conn.execute(INSERT, self._event())

    async def _copy(self, conn: psycopg.AsyncConnection[Any]) -> None:
        async with (
            conn.cursor() as cursor,
            cursor.copy("COPY sse_pg.events (channel, event_type, payload, headers) FROM STDIN") as copy,
        ):
            for _ in range(self._random.choice((3, 30, 300))):
                await copy.write_row(self._event())

    async def _slow(self, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute(INSERT, self._event())
        await asyncio.sleep(self._random.uniform(0.5, 4))
        await conn.execute(INSERT, self._event())

    async def _prepared(self, conn: psycopg.AsyncConnection[Any]) -> None:
        name = f"torture-{self._number}-{self._transaction}"
        await conn.execute("SET LOCAL sse_pg.bell = 'off'")
        await conn.execute(INSERT, self._event())
        await conn.execute(f"PREPARE TRANSACTION '{name}'")
        await conn.rollback()
        await self._delay(0.2)
        await conn.set_autocommit(True)
        ending = "COMMIT" if self._random.random() < 0.7 else "ROLLBACK"
        await conn.execute(f"{ending} PREPARED '{name}'")
        await conn.set_autocommit(False)

    async def _dies(self, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute(INSERT, self._event())
        await self._delay(0.05)
        await conn.close()

    async def _http(self, session: aiohttp.ClientSession) -> None:
        events = [self._event() for _ in range(self._random.choice((1, 1, 1, 5)))]
        marks = {json.loads(payload)["m"] for _, _, payload, _ in events}
        body = [
            {"channel": c, "eventType": t, "payload": json.loads(p), "headers": json.loads(h or "null")}
            for c, t, p, h in events
        ]
        url = self._random.choice(self._urls)
        try:
            async with session.post(
                f"{url}/api/events/publish",
                json=body if len(body) > 1 else body[0],
                timeout=aiohttp.ClientTimeout(total=30),
            ) as response:
                answer = await response.json(content_type=None)
        except aiohttp.ClientConnectorError:
            self._answers.refused |= marks  # never left here
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            self._answers.unknown += len(marks)
        else:
            if response.status == 201:
                self._answers.accepted |= marks
            elif answer.get("type") == "urn:sse-pg:outcome-unknown":
                self._answers.unknown += len(marks)
            else:
                self._answers.refused |= marks
