"""Costs that can be counted: statements, writes, blocks made. Measuring time would not show that they have grown."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
from support import plans
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.db import queries

NAMES = {text: name for name, text in queries.statements().items()}
BULK = "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g) FROM generate_series(1, %s) g"


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each statement of sql/queries was executed by a server in this process."""
    made: Counter[str] = Counter()
    execute = psycopg.AsyncCursor.execute

    async def counted(self: Any, statement: Any, *args: Any, **kwargs: Any) -> Any:
        made[NAMES.get(statement, "other")] += 1
        return await execute(self, statement, *args, **kwargs)

    monkeypatch.setattr(psycopg.AsyncCursor, "execute", counted)
    return made


class Transport:
    """A stream's transport that keeps what is written."""

    def __init__(self, inner: asyncio.Transport) -> None:
        self._inner = inner
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self._inner.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_a_batch_is_one_statement(launch: Launcher, statements: Counter[str]) -> None:
    server = await launch()
    async with Client(server.url) as client:
        statements.clear()
        status, _ = await client.post("/api/events/publish", [{"channel": "a", "payload": n} for n in range(1000)])
        assert status == 201
        await eventually(lambda: server.bus.hub.position == Cursor(1000))
    assert statements["publish_many"] == 1


async def test_requests_that_wait_share_one_statement(
    launch: Launcher, db: psycopg.Connection, statements: Counter[str]
) -> None:
    server = await launch()
    async with Client(server.url) as client:
        statements.clear()
        db.execute("BEGIN")
        db.execute("LOCK TABLE sse_pg.events IN EXCLUSIVE MODE")
        first = asyncio.create_task(client.publish("a", 0))
        await eventually(lambda: statements["publish_many"] == 1)
        others = [asyncio.create_task(client.publish("a", n)) for n in range(1, 200)]
        await eventually(lambda: server.bus.publisher.waiting == 199)
        db.execute("ROLLBACK")
        assert sorted(await asyncio.gather(first, *others)) == list(range(1, 201))
    assert statements["publish_many"] == 2


@pytest.mark.parametrize("ring", [1000, 0], ids=["ring", "table"])
async def test_streams_that_resume_cost_few_statements(
    launch: Launcher, db: psycopg.Connection, statements: Counter[str], ring: int
) -> None:
    server = await launch(ring_events=ring)
    server.bus.hub.followed.add(frozenset("a"))
    db.execute(BULK, (40,))
    await eventually(lambda: server.bus.hub.position == Cursor(40))
    async with Client(server.url) as client, AsyncExitStack() as stack:
        statements.clear()
        streams = await asyncio.gather(
            *(stack.enter_async_context(client.stream("a", last_event_id="5")) for _ in range(100))
        )
        for stream in streams:
            assert len(await stream.events(35)) == 35
    assert statements["page"] == (0 if ring else 1)
    assert statements["last_id"] == 0


async def test_a_batch_is_one_write_for_each_stream_of_the_same_bytes(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Cursor] = []
    frame = wire.frame

    def counted(event: Any, cursor: Cursor, *, envelope: Any = None) -> bytes:
        made.append(cursor)
        return frame(event, cursor, envelope=envelope)

    monkeypatch.setattr(wire, "frame", counted)
    server = await launch()
    async with Client(server.url) as client, AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(client.stream("a")) for _ in range(20)]
        await eventually(lambda: all(stream.live for stream in server.bus.hub.streams))
        transports = []
        for stream in server.bus.hub.streams:
            transports.append(Transport(stream.transport))
            stream.transport = transports[-1]  # type: ignore[assignment]
        await client.post("/api/events/publish", [{"channel": "a", "payload": n} for n in range(100)])
        for reader in readers:
            assert [block.json() for block in await reader.events(100)] == list(range(100))
        assert [len(transport.written) for transport in transports] == [1] * 20
        assert len({id(transport.written[0]) for transport in transports}) == 1, "framed once for all"
        assert len(made) == 100, "each event's block is made once, however many streams there are"


@pytest.fixture
def many(db: psycopg.Connection) -> psycopg.Connection:
    """Many users with subscriptions, and many events of several channels and types."""
    db.execute(
        "INSERT INTO sse_pg.subscriptions (user_id, channel)"
        " SELECT 'u' || u, 'c' || c FROM generate_series(1, 2000) u, generate_series(1, 5) c"
    )
    db.execute(
        "INSERT INTO sse_pg.events (channel, event_type, payload)"
        " SELECT 'c' || g % 50, 't' || g % 3, '1' FROM generate_series(1, 20000) g"
    )
    db.execute("ANALYZE sse_pg.events")
    db.execute("ANALYZE sse_pg.subscriptions")
    return db


WANTED = {"first": [1], "last": [20000], "least": 1, "most": 20000, "limit": 51, "octets": 10**6}
HOT: dict[str, Any] = {
    "page": {"channels": ["c3", "c4"], "event_type": "t1", **WANTED},
    "page_desc": {"channels": ["c3"], "event_type": None, **WANTED},
    "tail_read": {
        "first": [7],
        "last": [9],
        "seen": 19900,
        "limit": 2000,
        "octets": 10**6,
        "asks": True,
        "followed": bytes(64),
    },
    "tail_read_above": {"seen": 19900, "limit": 2000, "octets": 10**6, "followed": bytes(64)},
    "subscriptions_of": ("u7",),
    "subscriptions_of_many": (["u7", "u8"],),
}


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("name", HOT)
def test_hot_statements_read_no_whole_table(many: psycopg.Connection, name: str, mode: str) -> None:
    many.execute(f"SET plan_cache_mode = {mode}")
    nodes = [
        node
        for node in plans.nodes(many, name, HOT[name])
        if plans.relation(node).startswith(("events", "subscriptions"))
    ]
    assert nodes
    assert [plans.relation(node) for node in nodes if node["Node Type"] == "Seq Scan"] == []
    if name.startswith("page"):
        # By the primary key, a channel with few events would cost a read of the whole log.
        assert all("channel_id" in node["Index Name"] for node in nodes)
