"""The headers of an event over HTTP: those of the body, the trace of the request, and who publishes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from cloudevents.core.formats.json import JSONFormat
from support.client import Client
from support.server import Launcher
from support.tokens import SECRET, bearer, token

PUBLISH = "/api/events/publish"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE = f"00-{TRACE_ID}-b7ad6b7169203331-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-00"


@pytest.fixture
async def tokens(launch: Launcher) -> AsyncIterator[Client]:
    """A client with the token of user ``ann`` of a server that requires tokens."""
    server = await launch(token_secret=SECRET)
    async with Client(server.url, bearer(token("ann", publish=["*"], subscribe=["*"]))) as client:
        yield client


def stored(db: psycopg.Connection) -> list[Any]:
    return [row[0] for row in db.execute("SELECT headers FROM sse_pg.events ORDER BY id").fetchall()]


def event(headers: Any = None, **others: Any) -> dict[str, Any]:
    return {"channel": "a", "payload": 1, **({} if headers is None else {"headers": headers}), **others}


async def accepted(client: Client, body: Any, headers: dict[str, str] | None = None) -> None:
    status, answer = await client.post(PUBLISH, body, headers=headers)
    assert status == 201, answer


async def refused(client: Client, body: Any, status: int = 422) -> list[str]:
    found, answer = await client.post(PUBLISH, body)
    assert found == status, answer
    return [error["field"] for error in answer["errors"]]


async def test_the_headers_of_a_body_arrive(client: Client, db: psycopg.Connection) -> None:
    """One event, a list, ``events`` and NDJSON; live, from the ring and in the history."""
    given: list[Any] = [{"n": 1, "s": "ä\n"}, {}, None, {"deep": [{"a": None}], "1.50": 1.5}]
    async with client.stream("a", envelope="true") as stream:
        await accepted(client, event(given[0]))
        await accepted(client, [event(given[1]), event(given[2])])
        await accepted(client, {"events": [event(given[3])]})
        lines = "".join(json.dumps(event(one)) + "\n" for one in given)
        status, answer, _ = await client.request(
            "POST", PUBLISH, data=lines, headers={"Content-Type": "application/x-ndjson"}
        )
        assert status == 201, answer
        live = [block.json() for block in await stream.events(8)]
    assert [one.get("headers") for one in live] == stored(db) == given * 2
    _, page = await client.get("/api/events/history?channel=a")
    assert page["events"] == live
    async with client.stream("a", envelope="true", lastEventId="0") as stream:
        assert [block.json() for block in await stream.events(8)] == live


async def test_null_means_none(client: Client, db: psycopg.Connection) -> None:
    await accepted(client, {**event(), "headers": None})
    assert stored(db) == [None]


@pytest.mark.parametrize("bad", [[], "a", 1, True])
async def test_headers_are_an_object(client: Client, db: psycopg.Connection, bad: Any) -> None:
    assert await refused(client, event(bad)) == ["headers"]
    assert await refused(client, [event(), event(bad)]) == ["events[1].headers"]
    assert stored(db) == []


@pytest.mark.parametrize("bad", [{"a": "\0"}, {"a\0": 1}])
async def test_text_that_postgresql_cannot_store(client: Client, db: psycopg.Connection, bad: Any) -> None:
    await refused(client, event(bad))
    assert stored(db) == []


async def test_payload_and_headers_count_together(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(max_payload=100)
    async with Client(server.url) as client:
        headers = {"h": "x" * 40}
        left = 100 - len('{"h":""}') - 40
        await accepted(client, event(headers, payload="p" * (left - 2)))
        assert await refused(client, event(headers, payload="p" * (left - 1)), 413) == ["payload"]
        assert await refused(client, [event(), event({"h": "x" * 100})], 413) == ["events[1].payload"]
        status, answer, _ = await client.request(
            "POST",
            PUBLISH,
            data='{"channel": "a", "payload": 1, "headers": {"n": 1e99}}',
            headers={"Content-Type": "application/json"},
        )
        assert (status, answer["errors"][0]["field"]) == (413, "headers")


async def test_a_number_that_is_too_long(client: Client) -> None:
    body = '{"channel": "a", "payload": 1, "headers": {"n": 1e400}}'
    status, answer, _ = await client.request("POST", PUBLISH, data=body, headers={"Content-Type": "application/json"})
    assert (status, answer["errors"][0]["field"]) == (422, "headers")


# ------------------------------------------------------------------ the trace of the request


async def test_the_trace_of_a_request_is_kept(client: Client, db: psycopg.Connection) -> None:
    trace = {"traceparent": TRACE, "tracestate": "vendor=1,other=2"}
    await accepted(client, event(), trace)
    await accepted(client, [event({"n": 1}), event()], trace)
    await accepted(client, event(), {"Traceparent": TRACE})
    assert stored(db) == [trace, {"n": 1, **trace}, trace, {"traceparent": TRACE}]


async def test_an_event_with_a_trace_of_its_own_belongs_to_it(client: Client, db: psycopg.Connection) -> None:
    own = {"traceparent": OTHER}
    await accepted(client, [event(own), event()], {"traceparent": TRACE, "tracestate": "vendor=1"})
    assert stored(db) == [own, {"traceparent": TRACE, "tracestate": "vendor=1"}]


@pytest.mark.parametrize("later", ["cc" + TRACE[2:], "01" + TRACE[2:] + "-more"])
async def test_a_later_version_of_the_standard(client: Client, db: psycopg.Connection, later: str) -> None:
    await accepted(client, event(), {"traceparent": later})
    assert stored(db) == [{"traceparent": later}]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        TRACE.upper(),
        TRACE[:-1],
        TRACE + "-more",
        TRACE + "\xe9",
        "ff" + TRACE[2:],
        "01" + TRACE[2:] + "more",
        "01" + TRACE[2:] + "-" + "x" * 201,
        TRACE.replace(TRACE_ID, "0" * 32),
        TRACE.replace("b7ad6b7169203331", "0" * 16),
    ],
)
async def test_a_trace_that_is_none_is_ignored(client: Client, db: psycopg.Connection, bad: str) -> None:
    """As the standard asks for; and with it the tracestate."""
    await accepted(client, event(), {"traceparent": bad, "tracestate": "vendor=1"})
    assert stored(db) == [None]


@pytest.mark.parametrize("bad", ["", "x" * 513, "vendor=\xe9"])
async def test_a_state_that_is_none_is_ignored(client: Client, db: psycopg.Connection, bad: str) -> None:
    await accepted(client, event(), {"traceparent": TRACE, "tracestate": bad})
    assert stored(db) == [{"traceparent": TRACE}]


async def test_a_repeated_publish_may_be_of_another_trace(client: Client, db: psycopg.Connection) -> None:
    body = event({"n": 1}, idempotencyKey="k")
    await accepted(client, body, {"traceparent": TRACE})
    await accepted(client, body, {"traceparent": OTHER})
    await accepted(client, event({"n": 2}, idempotencyKey="k"))
    assert stored(db) == [{"n": 1, "traceparent": TRACE}]


# ------------------------------------------------------------------ who publishes


async def test_the_subject_of_the_token_is_the_publisher(tokens: Client, db: psycopg.Connection) -> None:
    await accepted(tokens, event())
    await accepted(tokens, [event({"n": 1}), event({}, idempotencyKey="k")], {"traceparent": TRACE})
    trace = {"publisher": "ann", "traceparent": TRACE}
    assert stored(db) == [{"publisher": "ann"}, {"n": 1, **trace}, trace]


@pytest.mark.parametrize("text", ['"publisher"', r'"pub\u006cisher"', '"publisher": "ann", "publisher"'])
@pytest.mark.parametrize("value", ['"bob"', '"ann"', "null", '{"a": 1}'])
async def test_nobody_forges_the_publisher(
    tokens: Client, client: Client, db: psycopg.Connection, text: str, value: str
) -> None:
    """With tokens and without: over HTTP, only the server writes this header."""
    for one in (tokens, client):
        for body, field in (("{}", "headers.publisher"), ("[{}]", "events[0].headers.publisher")):
            sent = body.format(f'{{"channel": "a", "payload": 1, "headers": {{{text}: {value}}}}}')
            status, answer, _ = await one.request(
                "POST", PUBLISH, data=sent, headers={"Content-Type": "application/json", "publisher": "bob"}
            )
            assert (status, [error["field"] for error in answer["errors"]]) == (422, [field])
    assert stored(db) == []


async def test_without_tokens_there_is_no_publisher(client: Client, db: psycopg.Connection) -> None:
    await accepted(client, event({"Publisher": "is another name"}))
    assert stored(db) == [{"Publisher": "is another name"}]


# ------------------------------------------------------------------ CloudEvents


async def test_a_stream_of_cloudevents(tokens: Client, db: psycopg.Connection) -> None:
    async with tokens.stream("a", envelope="cloudevents") as stream, tokens.stream("a", envelope="true") as other:
        await accepted(tokens, event({"tenant": "x"}, eventType="PLACED"), {"traceparent": TRACE})
        db.execute("SELECT sse_pg.publish('a', 'T', '[1]')")
        blocks, known = await stream.events(2), [block.json() for block in await other.events(2)]
    async with tokens.stream("a", envelope="cloudevents", lastEventId="0") as stream:
        assert await stream.events(2) == blocks
    read = [JSONFormat().read(None, block.data) for block in blocks]
    assert [block.event for block in blocks] == ["message", "message"]
    for block, found, whole in zip(blocks, read, known, strict=True):
        assert (found.get_id(), found.get_type(), found.get_subject()) == (block.id, whole["eventType"], "a")
        assert (found.get_data(), block.json()["time"]) == (whole["payload"], whole["createdAt"])
    extensions = [{"tenant", "traceparent", "publisher"} & set(found.get_attributes()) for found in read]
    assert extensions == [{"tenant", "traceparent", "publisher"}, set()]
    assert (read[0].get_extension("publisher"), read[0].get_extension("traceparent")) == ("ann", TRACE)
    (cluster,) = db.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone() or ()
    assert read[0].get_source() == read[1].get_source() != ""
    assert cluster not in read[0].get_source(), "it is nobody's business which cluster it is"
