"""The number of an event is its id in the table, whatever cursor it arrives with."""

from __future__ import annotations

import json

import psycopg
import pytest
from support.server import Launcher

from sse_pg.client import subscribe


@pytest.mark.parametrize("envelope", [False, True])
async def test_events_that_commit_out_of_order(launch: Launcher, database_url: str, envelope: bool) -> None:
    server = await launch()
    statement = "INSERT INTO sse_pg.events (channel, payload) VALUES ('a', %s) RETURNING id"
    with psycopg.connect(database_url) as late, psycopg.connect(database_url, autocommit=True) as early:
        ids = []
        for conn, payload in ((late, '"late"'), (early, '"early"')):
            row = conn.execute(statement, [payload]).fetchone()
            assert row is not None
            ids.append(row[0])
        async with subscribe(server.url, ["a"], cursor=0, envelope=envelope) as events:
            live = [await anext(events)]
            late.commit()
            live.append(await anext(events))
    assert [event.number for event in live] == ids[::-1]
    assert live[1].id == str(max(ids)), "the cursor is above the event"
    async with subscribe(server.url, ["a"], cursor=0, envelope=envelope) as events:
        again = [await anext(events), await anext(events)]
    assert sorted(event.number for event in again) == ids
    if envelope:
        assert [json.loads(event.data)["id"] for event in live + again] == [event.number for event in live + again]
