"""A tail without LISTEN: it finds what is committed, in whatever order, and lets go of the database like others."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg import bus as bus_module
from sse_pg.delivery.polling_tail import PollingTail


@pytest.fixture
def polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let servers poll."""

    def make(*args: Any, safety_read: float, masked: bool, **values: Any) -> PollingTail:
        return PollingTail(*args, **values)

    monkeypatch.setattr(bus_module, "ListeningTail", make)


def publish(db: psycopg.Connection, payload: int) -> int:
    ((number,),) = db.execute("SELECT sse_pg.publish('a', 'message', to_jsonb(%s))", (payload,)).fetchall()
    return int(number)


@pytest.mark.usefixtures("polling")
async def test_events_arrive_without_a_bell(launch: Launcher, db: psycopg.Connection, database_url: str) -> None:
    server = await launch(order_wait=0.005)
    async with Client(server.url) as client, client.stream("a") as stream:
        with psycopg.connect(database_url) as other:
            late = publish(other, 1)  # commits after the next one, which does not wait for it
            first = publish(db, 2)
            event = await stream.event()
            assert (event.json(), event.id) == (2, f"{first}~1")
            other.commit()
        event = await stream.event()
        assert (event.json(), event.number) == (1, late)
        publish(db, 3)
        assert (await stream.event()).json() == 3
    listening = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = sse_pg.lock_class('tail')"
    assert db.execute(listening).fetchall() == [(0,)]
    # What is settled is noted, for position().
    await eventually(lambda: db.execute("SELECT settled_to FROM sse_pg.log").fetchall() == [(first + 1,)])


@pytest.mark.usefixtures("polling")
async def test_a_polling_tail_lets_go_of_the_database(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=0.2)
    await eventually(lambda: server.bus.demand.is_away)
    publish(db, 1)
    async with Client(server.url) as client, client.stream("a", last_event_id="0") as stream:
        assert (await stream.event()).json() == 1
        publish(db, 2)
        assert (await stream.event()).json() == 2
