"""How a server begins while transactions are open: at the end of the log, and without reading what is visible."""

from __future__ import annotations

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg.core.cursor import Cursor
from sse_pg.core.ranges import Ranges
from sse_pg.delivery import tail as tail_module

pytestmark = pytest.mark.oldest

PUBLISH = "SELECT sse_pg.publish('a', 'm', to_jsonb(%s::int))"


@pytest.mark.parametrize("look_ids", [tail_module.LOOK_IDS, 7])
@pytest.mark.parametrize("count", [3, 20])
async def test_a_server_begins_at_the_end_of_the_log(
    launch: Launcher,
    db: psycopg.Connection,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    look_ids: int,
) -> None:
    """The ids that may still come are gaps, and nothing that was visible is read.

    After ten statements the last window of a transaction stays open: whatever is missing above may be its own.
    """
    monkeypatch.setattr(tail_module, "LOOK_IDS", look_ids)
    with psycopg.connect(database_url) as other:
        for number in range(1, 2 * count, 2):
            other.execute(PUBLISH, (number,))  # an odd id
            db.execute(PUBLISH, (number + 1,))
        last = 2 * count + 50
        db.execute(
            "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g) FROM generate_series(%s::int, %s) g",
            (2 * count + 1, last),
        )
        server = await launch()
        open_ids = Ranges((number, number) for number in range(1, 2 * count, 2))
        assert server.bus.hub.position == Cursor(last, open_ids)
        assert server.bus.tail.open == open_ids
        assert server.bus.tail._frontier is not None
        assert len(server.bus.tail._frontier.recent) == 0
        late = list(range(1, 2 * count, 2))
        async with (
            Client(server.url) as client,
            client.stream("a") as new,
            client.stream("a", last_event_id="0") as old,
        ):
            assert [event.json() for event in await old.events(last - count)] == [
                number for number in range(1, last + 1) if number not in late
            ]
            await eventually(lambda: all(stream.live for stream in server.bus.hub.streams))
            other.commit()
            db.execute(PUBLISH, (last + 1,))
            for stream in (new, old):
                assert [event.json() for event in await stream.events(count + 1)] == [*late, last + 1]
        await eventually(lambda: server.bus.hub.position == Cursor(last + 1))
