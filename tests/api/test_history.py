"""GET /api/events/history."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import psycopg
import pytest
from support.client import Client
from support.server import Launcher

HISTORY = "/api/events/history"


async def page(client: Client, **params: Any) -> dict[str, Any]:
    status, body = await client.get(HISTORY, params=params)
    assert status == 200, body
    return body


async def walk(client: Client, **params: Any) -> tuple[list[dict[str, Any]], str]:
    """Follow the Link header to the end; return the events and the last nextCursor."""
    path = HISTORY + "?" + "&".join(f"{name}={value}" for name, value in params.items())
    events: list[dict[str, Any]] = []
    while True:
        status, body, response = await client.request("GET", path)
        assert status == 200, body
        assert len(body["events"]) <= int(params.get("limit", 50))
        events += body["events"]
        link = response.links.get("next")
        assert (link is not None) == body["hasMore"]
        if link is None:
            return events, body["nextCursor"]
        path = str(link["url"]).removeprefix(client.url)


def fill(db: psycopg.Connection, count: int = 50) -> None:
    """Ids 1 to ``count``, on the channels a, b and c in turn; every fifth is of the type T."""
    db.execute(
        "INSERT INTO sse_pg.events (channel, event_type, payload)"
        " SELECT substr('abc', mod(g, 3) + 1, 1), CASE mod(g, 5) WHEN 0 THEN 'T' ELSE 'message' END, to_jsonb(g)"
        " FROM generate_series(1, %s) g",
        (count,),
    )


def ids(events: list[dict[str, Any]]) -> list[int]:
    return [event["id"] for event in events]


def of(channels: str, count: int = 50) -> list[int]:
    return [n for n in range(1, count + 1) if "abc"[n % 3] in channels]


async def test_an_event_of_the_history(client: Client) -> None:
    _, told = await client.post(
        "/api/events/publish", {"channel": "a", "eventType": "T", "payload": {"x": [1, None, "é"]}}
    )
    body = await page(client, channel="a")
    assert body == {
        "events": [{**told, "payload": {"x": [1, None, "é"]}}],
        "nextCursor": str(told["id"]),
        "hasMore": False,
    }


async def test_the_headers_of_an_event(client: Client, db: psycopg.Connection) -> None:
    """In the history, in a catch-up and live: an event without headers has no field for them."""
    db.execute("SELECT sse_pg.publish('a', 't', '1', headers => '{\"n\": [1, null]}'), sse_pg.publish('a', 't', '2')")
    for order in ("desc", "asc"):
        events = (await page(client, channel="a", order=order))["events"]
        assert {event["id"]: event.get("headers", "none") for event in events} == {1: {"n": [1, None]}, 2: "none"}
    async with client.stream("a", envelope="true", lastEventId="0") as stream:
        assert [json.loads((await stream.event()).data) for _ in events] == events
        db.execute("SELECT sse_pg.publish('a', 't', '3', headers => '{}')")
        assert json.loads((await stream.event()).data)["headers"] == {}


async def test_an_empty_log(client: Client) -> None:
    assert await page(client, channel="a") == {"events": [], "nextCursor": "0", "hasMore": False}
    assert await page(client, channel="a", order="desc") == {"events": [], "nextCursor": None, "hasMore": False}


async def test_a_channel_without_events_ends_at_the_end_of_the_log(client: Client, db: psycopg.Connection) -> None:
    fill(db)
    assert await page(client, channel="other") == {"events": [], "nextCursor": "50", "hasMore": False}


async def test_the_default_limit_is_50(client: Client, db: psycopg.Connection) -> None:
    db.execute("INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g) FROM generate_series(1, 51) g")
    body = await page(client, channel="a")
    assert (ids(body["events"]), body["hasMore"]) == (list(range(1, 51)), True)


@pytest.mark.parametrize("limit", [1, 2, 7, 17, 49, 50, 51, 1000])
@pytest.mark.parametrize("channels", ["a", "a,c", "a,b,c", "a,nothing"])
async def test_walks_in_both_directions_see_each_event_once(
    client: Client, db: psycopg.Connection, channels: str, limit: int
) -> None:
    fill(db)
    events, cursor = await walk(client, channel=channels, limit=limit)
    assert ids(events) == of(channels)
    assert cursor == "50"
    events, last = await walk(client, channel=channels, limit=limit, order="desc")
    assert ids(events) == of(channels)[::-1]
    assert last is None


async def test_a_page_that_is_just_full_has_no_more(client: Client, db: psycopg.Connection) -> None:
    fill(db, 5)
    for order in ("asc", "desc"):
        body = await page(client, channel="a,b,c", limit=5, order=order)
        assert (len(body["events"]), body["hasMore"]) == (5, False)


async def test_channels_in_several_parameters(client: Client, db: psycopg.Connection) -> None:
    fill(db)
    status, body, response = await client.request("GET", f"{HISTORY}?channel=a&channel=b,a&limit=10")
    assert status == 200
    assert ids(body["events"]) == of("ab")[:10]
    link = response.links["next"]["url"]
    assert link.query.getall("channel") == ["a", "b,a"]
    assert link.query["limit"] == "10"
    assert link.query["after"] == body["nextCursor"]


async def test_the_link_keeps_a_channel_s_characters(client: Client) -> None:
    name = 'a/b?c=d&e;f"g<h>%20+é🐘'
    for n in range(6):
        await client.publish(name, n)
    status, _, response = await client.request("GET", HISTORY, params={"channel": name, "limit": "1"})
    link = response.links["next"]["url"]
    assert (status, link.query["channel"]) == (200, name)
    async with client.session.get(link) as following:
        assert [event["payload"] for event in (await following.json())["events"]] == [1]


async def test_the_type_filter(client: Client, db: psycopg.Connection) -> None:
    fill(db)
    expected = [n for n in of("ab") if n % 5 == 0]
    for limit in (1, 3, 50):
        events, cursor = await walk(client, channel="a,b", eventType="T", limit=limit)
        assert ids(events) == expected
        assert cursor == "50"
        events, _ = await walk(client, channel="a,b", eventType="T", limit=limit, order="desc")
        assert ids(events) == expected[::-1]
    assert (await page(client, channel="a", eventType="none"))["events"] == []


@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [
        (None, None, range(1, 51)),
        ("0", None, range(1, 51)),
        ("10", None, range(11, 51)),
        ("10", "20", range(11, 20)),
        (None, "20", range(1, 20)),
        (None, "1", ()),
        (None, "0", ()),
        ("20", "20", ()),
        ("20", "10", ()),
        ("19", "21", (20,)),
        ("50", None, ()),
        ("49", "9000", (50,)),
        ("30~5,4-3", None, [18, 19, 20, 25, *range(31, 51)]),
        ("30~5,4-3", "30", (18, 19, 20, 25)),
    ],
)
async def test_after_and_before(
    client: Client, db: psycopg.Connection, after: str | None, before: str | None, expected: Any
) -> None:
    fill(db)
    bounds = {name: value for name, value in (("after", after), ("before", before)) if value is not None}
    for limit in (2, 1000):
        events, _ = await walk(client, channel="a,b,c", limit=limit, **bounds)
        assert ids(events) == list(expected)
        events, _ = await walk(client, channel="a,b,c", limit=limit, order="desc", **bounds)
        assert ids(events) == list(expected)[::-1]


async def test_after_the_end_stays_a_cursor_a_stream_judges(client: Client, db: psycopg.Connection) -> None:
    fill(db)
    body = await page(client, channel="a", after="900")
    assert (body["events"], body["hasMore"]) == ([], False)
    async with client.stream("a", lastEventId=body["nextCursor"]) as stream:
        assert (await stream.event()).event == "sse-pg.gap"
        await client.publish("a", "live")
        assert (await stream.event()).json() == "live"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "channel"),
        ("channel=", "channel"),
        ("channel=a,", "channel"),
        ("channel=a%20b", "channel"),
        ("channel=*", "channel"),
        ("channel=a%00", "channel"),
        ("channel=a,b,c,d", "channel"),
        *((f"channel=a&limit={limit}", "limit") for limit in ("0", "1001", "-1", "1.5", "x", "", "%D9%A3", "9" * 30)),
        *((f"channel=a&after={cursor}", "after") for cursor in ("x", "-1", "1~", "1~9", "1" * 20, "1" * 200, "%FF")),
        *((f"channel=a&before={cursor}", "before") for cursor in ("x", "-1", "1~", "1" * 20)),
        ("channel=a&order=up", "order"),
        ("channel=a&order=ASC", "order"),
        ("channel=a&eventType=", "eventType"),
        ("channel=a&eventType=a%0Ab", "eventType"),
        ("channel=a&eventType=%00", "eventType"),
        ("channel=a&eventType=" + "x" * 256, "eventType"),
    ],
)
async def test_a_wrong_parameter_is_named(launch: Launcher, query: str, field: str) -> None:
    server = await launch(max_channels=3)
    async with Client(server.url) as client:
        status, body = await client.get(f"{HISTORY}?{query}")
    assert status == 422, body
    assert [error["field"] for error in body["errors"]] == [field]


async def test_the_limit_s_ends(client: Client, db: psycopg.Connection) -> None:
    db.execute("INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g) FROM generate_series(1, 1001) g")
    assert len((await page(client, channel="a", limit=1))["events"]) == 1
    assert len((await page(client, channel="a", limit=1000))["events"]) == 1000


async def test_what_was_purged_is_said(client: Client, db: psycopg.Connection) -> None:
    fill(db)
    db.execute("DELETE FROM sse_pg.events WHERE id <= 20")
    db.execute("UPDATE sse_pg.log SET purged_to = 20")
    body = await page(client, channel="a,b,c", after="5")
    assert body["gap"] == {"reason": "expired", "after": "5", "before": "20"}
    assert ids(body["events"]) == list(range(21, 51))
    for after in ("20", "30"):
        assert "gap" not in await page(client, channel="a,b,c", after=after)


async def test_without_a_database_503(launch: Launcher) -> None:
    server = await launch(ready=False, database_url="postgresql://127.0.0.1:1/none", pool_timeout=0.2)
    async with Client(server.url) as client:
        for order in ("asc", "desc"):
            status, _, response = await client.request("GET", f"{HISTORY}?channel=a&order={order}")
            assert status == 503
            assert int(response.headers["Retry-After"]) > 0


# ------------------------------------------------------------ into a stream


async def test_the_last_cursor_opens_a_stream_with_nothing_between(client: Client, db: psycopg.Connection) -> None:
    fill(db)
    _, cursor = await walk(client, channel="a", limit=7)
    await client.publish("a", "between")
    async with client.stream("a", last_event_id=cursor) as stream:
        await client.publish("a", "live")
        assert [e.json() for e in await stream.events(2)] == ["between", "live"]


@pytest.mark.parametrize("limit", [1, 3, 50])
async def test_a_transaction_open_during_the_walk_is_in_the_stream(
    client: Client, database_url: str, db: psycopg.Connection, limit: int
) -> None:
    fill(db, 10)
    with psycopg.connect(database_url) as slow:
        slow.execute("SELECT sse_pg.publish('a', 'm', '\"slow\"')")
        await client.publish("a", "fast")
        events, cursor = await walk(client, channel="a", limit=limit)
        assert ids(events) == [*of("a", 10), 12]
        async with client.stream("a", last_event_id=cursor) as stream:
            await client.publish("a", "live")
            assert (await stream.event()).json() == "live"
            slow.commit()
            assert (await stream.event()).json() == "slow"
    async with client.stream("a", last_event_id=cursor) as stream:
        assert {e.json() for e in await stream.events(2)} == {"slow", "live"}
    events, _ = await walk(client, channel="a", after=cursor, limit=limit)
    assert [event["payload"] for event in events] == ["slow", "live"]


async def test_the_last_id_drawn_is_still_in_flight(client: Client, database_url: str) -> None:
    await client.publish("a", "seen")
    with psycopg.connect(database_url) as slow:
        slow.execute("SELECT sse_pg.publish('a', 'm', '\"slow\"')")
        events, cursor = await walk(client, channel="a")
        assert [event["payload"] for event in events] == ["seen"]
        slow.commit()
    async with client.stream("a", last_event_id=cursor) as stream:
        event = await stream.event()
        assert (event.event, event.json()) == ("m", "slow")
    events, _ = await walk(client, channel="a", after=cursor)
    assert [event["payload"] for event in events] == ["slow"]


async def test_a_commit_between_two_pages_is_not_lost(client: Client, database_url: str) -> None:
    with psycopg.connect(database_url) as slow:
        slow.execute("SELECT sse_pg.publish('a', 'm', '\"slow\"')")
        for n in range(6):
            await client.publish("a", n)
        first = await page(client, channel="a", limit=3)
        assert [event["payload"] for event in first["events"]] == [0, 1, 2]
        slow.commit()
    events, cursor = await walk(client, channel="a", after=first["nextCursor"], limit=3)
    assert sorted(str(event["payload"]) for event in events) == ["3", "4", "5", "slow"]
    async with client.stream("a", last_event_id=cursor) as stream:
        await client.publish("a", "live")
        assert (await stream.event()).json() == "live"


@pytest.mark.parametrize("seed", range(6))
async def test_walk_and_stream_together_see_each_event_once(client: Client, database_url: str, seed: int) -> None:
    """While eight writers commit out of order, and some roll back."""
    chance = random.Random(seed)
    committed: list[int] = []

    async def write(chooser: random.Random) -> None:
        async with await psycopg.AsyncConnection.connect(database_url) as conn:
            for _ in range(30):
                values = [chooser.randrange(10**9) for _ in range(chooser.randrange(1, 4))]
                for value in values:
                    await conn.execute("SELECT sse_pg.publish('a', 'm', to_jsonb(%s::int))", (value,))
                    await asyncio.sleep(chooser.random() * 0.004)
                if chooser.random() < 0.2:
                    await conn.rollback()
                else:
                    await conn.commit()
                    committed.extend(values)

    writers = asyncio.gather(*(write(random.Random(chance.random())) for _ in range(8)))
    while len(committed) < 60:
        await asyncio.sleep(0.001)
    events, cursor = await walk(client, channel="a", limit=10)
    seen = [event["payload"] for event in events]
    async with client.stream("a", last_event_id=cursor) as stream:
        await writers
        await client.publish("a", "end")
        while (event := await stream.event()).json() != "end":
            assert event.event == "m", f"{cursor}: {event}"
            seen.append(event.json())
    assert len(seen) == len(set(seen))
    assert set(seen) == set(committed)


async def test_the_link_is_relative_to_the_request(client: Client, db: psycopg.Connection) -> None:
    """A proxy may have stripped a prefix of the path."""
    fill(db)
    _, body, response = await client.request("GET", f"{HISTORY}?channel=a,b&limit=2&eventType=message")
    assert (
        response.headers["Link"] == f'<?channel=a,b&limit=2&eventType=message&after={body["nextCursor"]}>; rel="next"'
    )


async def test_a_link_that_would_be_too_long_is_left_out(client: Client, db: psycopg.Connection) -> None:
    fill(db)
    channels = ",".join(["a", *(f"{n:060}" for n in range(100))])
    _, body, response = await client.request("GET", f"{HISTORY}?channel={channels}&limit=2")
    assert body["hasMore"]
    assert "Link" not in response.headers
    _, body = await client.get(f"{HISTORY}?channel={channels}&limit=2&after={body['nextCursor']}")
    assert ids(body["events"]) == of("a")[2:4]
