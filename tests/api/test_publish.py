"""POST /api/events/publish."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg.core import names
from sse_pg.db.draft import Draft
from sse_pg.errors import KeyHeld
from sse_pg.http import publish_body
from sse_pg.http.problem import Problem

PUBLISH = "/api/events/publish"
JSON = "application/json"
NDJSON = "application/x-ndjson"


async def send(client: Client, body: bytes | str, content_type: str = JSON, **headers: str) -> tuple[int, Any]:
    status, answer, _ = await client.request(
        "POST",
        PUBLISH,
        data=io.BytesIO(body.encode() if isinstance(body, str) else body),
        headers={"Content-Type": content_type, **headers},
    )
    return status, answer


def stored(db: psycopg.Connection) -> list[tuple[Any, ...]]:
    return db.execute("SELECT channel, event_type, payload FROM sse_pg.events ORDER BY id").fetchall()


def named(problem: dict[str, Any]) -> list[str]:
    return [error["field"] for error in problem["errors"]]


# ------------------------------------------------------------ one event


async def test_one_event(client: Client, db: psycopg.Connection) -> None:
    status, body, response = await client.request(
        "POST", PUBLISH, json={"channel": "orders.7", "eventType": "PLACED", "payload": {"n": 1}}
    )
    assert status == 201
    assert response.content_type == JSON
    row = db.execute(
        "SELECT id, channel, event_type, payload,"
        " to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM sse_pg.events"
    ).fetchall()
    assert row == [(body["id"], "orders.7", "PLACED", {"n": 1}, body["createdAt"])]
    assert body == {"id": row[0][0], "channel": "orders.7", "eventType": "PLACED", "createdAt": row[0][4]}


async def test_the_event_type_is_message_unless_said(client: Client, db: psycopg.Connection) -> None:
    status, body = await client.post(PUBLISH, {"channel": "a", "payload": None})
    assert (status, body["eventType"]) == (201, "message")
    assert stored(db) == [("a", "message", None)]


PAYLOADS = [
    "null",
    "true",
    "2.50",
    "-0.000",
    "1e2",
    "12345678901234567890123456789012345678901234567890",
    "0.1234567890123456789012345678901234567890",
    '""',
    '"\u2028\u2029\u0085 ünïcödé 🐘 \\" \\\\ \\/ \\b\\f\\n\\r\\t"',
    '"\\ud83d\\ude00"',
    "[]",
    "{}",
    '{"": {"a b": [1, [2, [3, {"deep": null}]]]}}',
    '{"events": [{"channel": "x"}], "channel": 5}',
    "[" * 500 + "]" * 500,
    " \t\r\n [ 1 ,\r\n 2 ] \n",
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda p: ascii(p[:20]))
async def test_a_payload_arrives_as_postgresql_has_it(client: Client, db: psycopg.Connection, payload: str) -> None:
    async with client.stream("a") as stream, client.stream("a", envelope="true") as enveloped:
        status, body = await send(client, f'{{"channel": "a", "payload": {payload}}}')
        assert status == 201, body
        (text,) = db.execute("SELECT %s::jsonb::text", (payload,)).fetchone() or ()
        live = await stream.event()
        whole = await enveloped.event()
    assert live.data == text
    assert whole.event == "message"
    assert f'"payload":{text},"createdAt"' in whole.data
    _, _, response = await client.request("GET", "/api/events/history?channel=a")
    assert f'"payload":{text},"createdAt"' in await response.text()
    async with client.stream("a", lastEventId="0") as stream:
        assert (await stream.event()).data == text


async def test_numbers_keep_their_digits(kit_client: Client) -> None:
    async with kit_client.stream("a") as stream:
        await send(kit_client, '{"channel": "a", "payload": {"price": 2.50, "big": 123456789012345678901234567890}}')
        assert (await stream.event()).data == '{"big": 123456789012345678901234567890, "price": 2.50}'


async def test_of_duplicate_fields_the_last_stays(client: Client, db: psycopg.Connection) -> None:
    status, body = await send(client, '{"channel": "x", "channel": "a", "payload": 1, "payload": {"k": 1, "k": 2}}')
    assert (status, body["channel"]) == (201, "a")
    assert stored(db) == [("a", "message", {"k": 2})]


# ------------------------------------------------------------ many events

THREE = [
    {"channel": "a", "payload": 1},
    {"channel": "b", "eventType": "T", "payload": 2},
    {"channel": "a", "payload": 3},
]


def _as_lines(events: list[Any]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


FORMS = {
    "array": (json.dumps, JSON),
    "events": (lambda events: json.dumps({"events": events}), JSON),
    "ndjson": (_as_lines, NDJSON),
}
forms = pytest.mark.parametrize("form", FORMS)


async def send_many(client: Client, form: str, events: list[Any]) -> tuple[int, Any]:
    write, content_type = FORMS[form]
    return await send(client, write(events), content_type)


@forms
async def test_a_batch_is_published_in_order(client: Client, db: psycopg.Connection, form: str) -> None:
    async with client.stream("a,b") as stream:
        status, body = await send_many(client, form, THREE)
        assert status == 201, body
        events = await stream.events(3)
    told = body["events"]
    assert [(e["channel"], e["eventType"]) for e in told] == [("a", "message"), ("b", "T"), ("a", "message")]
    assert [str(e["id"]) for e in told] == [e.id for e in events]
    assert [e.json() for e in events] == [1, 2, 3]
    assert [row[2] for row in stored(db)] == [1, 2, 3]
    assert len({e["xmin"] for e in _rows(db)}) == 1


def _rows(db: psycopg.Connection) -> list[dict[str, Any]]:
    return [{"xmin": x} for (x,) in db.execute("SELECT xmin::text FROM sse_pg.events").fetchall()]


@forms
async def test_a_batch_of_one_is_a_batch(kit_client: Client, form: str) -> None:
    status, body = await send_many(kit_client, form, THREE[:1])
    assert status == 201
    assert len(body["events"]) == 1


@forms
async def test_an_empty_batch_is_refused(kit_client: Client, form: str) -> None:
    status, body = await send_many(kit_client, form, [])
    assert (status, named(body)) == (422, ["events"])


async def test_ndjson_with_blank_lines_crlf_and_no_last_line_end(client: Client, db: psycopg.Connection) -> None:
    body = '\n{"channel": "a", "payload": 1}\r\n  \r\n{"channel": "a", "payload": 2}\n\n{"channel": "a", "payload": 3}'
    status, answer = await send(client, body, NDJSON)
    assert status == 201, answer
    assert [row[2] for row in stored(db)] == [1, 2, 3]


BAD_ITEMS: list[tuple[Any, list[str]]] = [
    ({"channel": "no space", "payload": 1}, ["channel"]),
    ({"channel": "a", "eventType": "a\nb", "payload": 1}, ["eventType"]),
    ({"channel": "a"}, ["payload"]),
    ({"payload": 1}, ["channel"]),
    ({"channel": 5, "eventType": 6, "payload": 1}, ["channel", "eventType"]),
    ({"channel": "a", "payload": 1, "chanel": "b"}, ["chanel"]),
    ({"channel": "a", "payload": {"x": "\0"}}, ["payload"]),
    ({"channel": "a", "payload": 1, "idempotencyKey": ""}, ["idempotencyKey"]),
]


@forms
@pytest.mark.parametrize(("bad", "fields"), BAD_ITEMS)
async def test_one_bad_item_refuses_all_and_is_named(
    client: Client, db: psycopg.Connection, form: str, bad: Any, fields: list[str]
) -> None:
    status, body = await send_many(client, form, [THREE[0], THREE[1], bad, THREE[2]])
    assert status == 422, body
    assert named(body) == [f"events[2].{field}" for field in fields]
    assert stored(db) == []


@forms
async def test_an_item_that_is_no_object_is_named(client: Client, db: psycopg.Connection, form: str) -> None:
    status, body = await send_many(client, form, [THREE[0], 7, THREE[1]])
    assert (status, named(body)) == (422, ["events[1]"])
    assert stored(db) == []


@forms
async def test_the_database_s_refusal_names_the_item_too(client: Client, db: psycopg.Connection, form: str) -> None:
    events = [{"channel": "a", "payload": n} for n in range(100)]
    for place in (0, 37, 99):
        bad = [*events]
        bad[place] = {"channel": "a", "payload": "\0"}
        status, body = await send_many(client, form, bad)
        assert (status, named(body)) == (422, [f"events[{place}].payload"])
    assert stored(db) == []


async def test_a_line_that_is_not_json_is_named(client: Client, db: psycopg.Connection) -> None:
    status, body = await send(client, '{"channel": "a", "payload": 1}\n\n{"channel": "a",\n', NDJSON)
    assert status == 400
    assert "Line 3" in body["detail"]
    assert stored(db) == []


async def test_a_batch_may_be_larger_than_a_shared_commit(client: Client, db: psycopg.Connection) -> None:
    status, body = await send_many(client, "array", [{"channel": "a", "payload": n} for n in range(2500)])
    assert status == 201
    ids = [event["id"] for event in body["events"]]
    assert ids == sorted(ids)
    assert [row[2] for row in stored(db)] == list(range(2500))


@pytest.mark.parametrize("content_type", [JSON, NDJSON])
async def test_a_byte_order_mark_is_skipped(client: Client, db: psycopg.Connection, content_type: str) -> None:
    for body in ('{"channel": "a", "payload": 1}', '[{"channel": "a", "payload": 2}]'):
        if content_type == JSON or body.startswith("{"):
            assert (await send(client, b"\xef\xbb\xbf" + body.encode(), content_type))[0] == 201
    assert (await send(client, b"\xef\xbb\xbf\xef\xbb\xbf" + b"1"))[0] == 400
    user = b'\xef\xbb\xbf{"userId": 1, "channel": "a"}'
    async with client.session.post(
        client.url + "/api/events/channels/subscribe", data=user, headers={"Content-Type": JSON}
    ) as response:
        assert response.status == 201
    assert [row[2] for row in stored(db)] == ([1, 2] if content_type == JSON else [1])


ODD_ELEMENTS = {
    "braces": '{"channel": "a", "payload": [' + "{}, " * 3000 + "{}]}",
    "braces in a string": '{"channel": "a", "payload": "' + "},{" * 3000 + '"}',
    "escapes": '{"channel": "a", "payload": "' + r"\\\"},{" * 1000 + '"}',
    "small": '{"channel":"a","payload":1}',
    "white space": ' \n {"channel": "a",\t"payload": 1 } \r\n ',
    "long": '{"channel": "a", "payload": "' + "x" * 200_000 + '"}',
}


@pytest.mark.parametrize("form", ["array", "events"])
async def test_a_large_body_is_decoded_in_pieces(form: str) -> None:
    """Whatever is where a piece might end."""
    rand = random.Random(form)
    elements = rand.choices(list(ODD_ELEMENTS.values()), k=300)
    body = f"[{','.join(elements)}]"
    if form == "events":
        body = f'{{"events": {body}}}'
    reader = publish_body.Drafts(body.encode(), ndjson=False, max_body=1 << 24, max_payload=1 << 20, max_batch=1000)
    pieces = list(reader)
    assert reader.batch
    assert len(pieces) > 20
    assert [draft.payload for piece in pieces for draft in piece] == [
        bytes(msgspec.json.decode(each, type=dict[str, msgspec.Raw])["payload"]).decode() for each in elements
    ]


@pytest.mark.parametrize("place", [0, 1, 299])
async def test_a_wrong_event_in_a_large_body_is_named(place: int) -> None:
    elements = random.Random(place).choices(list(ODD_ELEMENTS.values()), k=300)
    for wrong, status, field in (
        ('{"channel": "a", "payload": 1, "x": 1}', 422, f"events[{place}].x"),
        ('{"channel": "a b", "payload": 1}', 422, f"events[{place}].channel"),
        ("7", 422, f"events[{place}]"),
        ('{"channel": "a", "payload": 1} {}', 400, None),
        ('{"channel": "a", "payload": 1},', 400, None),
        ('{"channel": "a", "payload": tru}', 400, None),
        ("]", 400, None),
        ("", 400, None),
    ):
        body = ",".join([*elements[:place], wrong, *elements[place + 1 :]])
        with pytest.raises(Problem) as refused:
            for _ in publish_body.Drafts(
                f"[{body}]".encode(), ndjson=False, max_body=1 << 24, max_payload=1 << 20, max_batch=1000
            ):
                pass
        assert refused.value.status == status
        assert field is None or refused.value.errors[0].field == field


@pytest.mark.parametrize(
    ("number", "fits"),
    [
        ("1e309", True),
        ("1e399", True),
        ("1e400", False),
        ("-1.5E+399", True),
        ("1e131071", False),
        ("1e-399", True),
        ("1e-400", False),
        ("1e99999999999", False),
        ("9" * 400, True),
        ("9" * 401, False),
        ("1." + "0" * 399, True),
        ("1." + "0" * 400, False),
        ("0." + "1" * 300 + "e300", True),
        ('"1e131071"', True),
        ('"\\" 1e131071"', True),
        ('{"1e999": "0e0000"}', True),
        ('["\\\\", 1e131071]', False),
    ],
)
async def test_a_number_has_at_most_400_digits(kit_client: Client, number: str, fits: bool) -> None:
    for form in ("%s", "[%s]"):
        event = '{"channel": "a", "payload": ' + number + "}"
        status, body = await send(kit_client, form.replace("%s", event))
        if fits:
            assert status == 201, body
        else:
            field = "payload" if form == "%s" else "events[0].payload"
            assert (status, named(body)) == (422, [field])


@pytest.mark.parametrize("form", ["%s", "[%s]"])
@pytest.mark.parametrize("number", ["1e399", "-1e-99"])
async def test_a_payload_is_as_large_as_with_its_numbers_written_out(
    kit_client: Client, number: str, form: str
) -> None:
    payload = f"[{','.join([number] * (1048576 // 100))}]"
    status, body = await send(kit_client, form.replace("%s", f'{{"channel": "a", "payload": {payload}}}'))
    assert (status, "numbers written out" in body["detail"]) == (413, True), body


async def test_the_events_of_a_request_have_a_limit_with_their_numbers_written_out(kit_client: Client) -> None:
    """Fifty events of 15 kB would be 50 MiB to store, and to send to each reader."""
    event = f'{{"channel": "a", "payload": [{",".join(["1e399"] * 2600)}]}}'
    status, body = await send(kit_client, f"[{','.join([event] * 50)}]")
    assert (status, "written out" in body["detail"]) == (413, True), body
    status, _ = await send(kit_client, f"[{','.join([event] * 10)}]")
    assert status == 201


async def test_an_element_with_a_hex_string_is_no_long_number(kit_client: Client) -> None:
    for text in ("0e1234567", "d" * 10 + "1e9999", "1" * 500):
        await kit_client.publish("a", text)


# ------------------------------------------------------------ what is refused

DEEP = "[" * 100_000 + "]" * 100_000

NOT_JSON = {
    "nothing": b"",
    "white space": b" \n",
    "a word": b"hello",
    "cut off": b'{"channel": "a", "payload": ',
    "more behind it": b'{"channel": "a", "payload": 1} 2',
    "single quotes": b"{'channel': 'a', 'payload': 1}",
    "NaN": b'{"channel": "a", "payload": NaN}',
    "leading zero": b'{"channel": "a", "payload": 01}',
    "raw line end in a string": b'{"channel": "a", "payload": "x\ny"}',
    "raw NUL": b'{"channel": "a", "payload": "x\0y"}',
    "invalid UTF-8": b'{"channel": "a", "payload": "\xff"}',
    "an encoded surrogate": b'{"channel": "a", "payload": "\xed\xa0\x80"}',
    "UTF-16": '{"channel": "a", "payload": 1}'.encode("utf-16"),
    "brackets": DEEP.encode(),
    "open brackets": b"[" * 100_000,
    "braces": b'{"a":' * 100_000,
    "deep payload": f'{{"channel": "a", "payload": {DEEP}}}'.encode(),
    "deep unknown field": f'{{"channel": "a", "x": {DEEP}}}'.encode(),
    "deep after a wrong field": f'{{"channel": 5, "payload": {DEEP}}}'.encode(),
    "deep in an array": f'[{{"channel": "a", "payload": {DEEP}}}]'.encode(),
    "deep in events": f'{{"events": [{{"channel": "a", "payload": {DEEP}}}]}}'.encode(),
    "cut off after a wrong field": b'{"channel": 5, "payload":',
    "array cut off after a wrong item": b'[{"channel": 5},',
    "more behind a wrong field": b'{"channel": 5, "payload": 1}x',
    "bad escape after a wrong field": b'{"channel": 5, "eventType": "\\ud800", "payload": 1}',
    "bad name after a wrong field": b'{"channel": 5, "payload": 1, "\\ud800": 1}',
}


@pytest.mark.parametrize("name", NOT_JSON)
async def test_what_is_not_json_gets_400_with_a_reason(client: Client, db: psycopg.Connection, name: str) -> None:
    status, body = await send(client, NOT_JSON[name])
    assert status == 400, body
    assert len(body["detail"]) > len("The body is not JSON: ")
    assert stored(db) == []


@pytest.mark.parametrize("line", [b"nope", b"\xff", f'{{"channel": "a", "payload": {DEEP}}}'.encode(), b"{" * 100_000])
async def test_bad_lines_get_400(client: Client, db: psycopg.Connection, line: bytes) -> None:
    status, body = await send(client, b'{"channel": "a", "payload": 1}\n' + line, NDJSON)
    assert status == 400, body
    assert stored(db) == []


async def test_nesting_that_is_taken_or_refused_but_never_fails(kit_client: Client) -> None:
    """Where the bound lies is Python's and PostgreSQL's affair."""
    for depth in (100, 400, 700, 900, 1000, 1100, 2000, 5000, 20_000):
        status, body = await send(kit_client, f'{{"channel": "a", "payload": {"[" * depth + "]" * depth}}}')
        assert status in (201, 400, 422), (depth, body)
        assert status == 201 or depth > 500


@pytest.mark.parametrize(
    "body",
    ["null", "5", '"text"', "true", '{"events": {}}', '{"events": null}', '{"events": 5}'],
)
async def test_what_is_not_an_event(kit_client: Client, body: str) -> None:
    status, answer = await send(kit_client, body)
    assert status == 422
    assert not answer["detail"].startswith(":")


async def test_a_field_beside_events_is_named(client: Client, db: psycopg.Connection) -> None:
    status, body = await send(client, '{"events": [{"channel": "a", "payload": 1}], "when": 1}')
    assert (status, named(body)) == (422, ["when"])
    assert stored(db) == []


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["channel", "payload"]),
    ({"channel": "a"}, ["payload"]),
    ({"channel": None, "payload": 1}, ["channel"]),
    ({"channel": ["a"], "payload": 1}, ["channel"]),
    ({"channel": "a", "eventType": None, "payload": 1}, ["eventType"]),
    ({"channel": "a", "idempotencyKey": 5, "payload": 1}, ["idempotencyKey"]),
    ({"channel": "a", "idempotencyKey": 10**2000, "eventType": 1, "payload": 1}, ["idempotencyKey", "eventType"]),
    ({"channel": "a", "payload": 1, "event_type": "x"}, ["event_type"]),
    ({"channel": "a", "payload": 1, "id": 5}, ["id"]),
    ({"channel": "", "payload": 1}, ["channel"]),
    ({"channel": "x" * 256, "payload": 1}, ["channel"]),
    ({"channel": "a", "eventType": "", "payload": 1}, ["eventType"]),
    ({"channel": "a", "eventType": "x" * 256, "payload": 1}, ["eventType"]),
    ({"channel": "a", "eventType": "sse-pg.gap", "payload": 1}, ["eventType"]),
    ({"channel": "a", "idempotencyKey": "", "payload": 1}, ["idempotencyKey"]),
    ({"channel": "a", "idempotencyKey": "x" * 256, "payload": 1}, ["idempotencyKey"]),
    ({"channel": "a", "idempotencyKey": "x\0", "payload": 1}, ["idempotencyKey"]),
    (
        {"channel": "a,b", "eventType": "\r", "idempotencyKey": "\0", "payload": 1},
        ["channel", "eventType", "idempotencyKey"],
    ),
    *(
        ({"channel": f"a{c}b", "payload": 1}, ["channel"])
        for c in "\0\1\t\n\r \x7f\x85\xa0\u1680\u2003\u2028\u2029\u3000,*"
    ),
    *(({"channel": "a", "eventType": f"a{c}b", "payload": 1}, ["eventType"]) for c in "\0\r\n"),
    *(({"channel": "a", "payload": p}, ["payload"]) for p in ("\0", {"\0": 1}, [{"k": ["x\0"]}])),
]


@pytest.mark.parametrize(("event", "fields"), WRONG)
async def test_a_wrong_field_is_named(
    client: Client, db: psycopg.Connection, event: dict[str, Any], fields: list[str]
) -> None:
    status, body = await client.post(PUBLISH, event)
    assert status == 422, body
    assert sorted(named(body)) == sorted(fields)
    assert all(error["detail"] for error in body["errors"])
    assert stored(db) == []


@pytest.mark.parametrize("field", ["channel", "eventType", "idempotencyKey", "payload"])
@pytest.mark.parametrize("escape", ["\\ud800", "\\udc00", "\\udc00\\ud800", "\\ud800x", "\\u00zz"])
async def test_lone_surrogates_are_refused(client: Client, db: psycopg.Connection, field: str, escape: str) -> None:
    values = {"channel": '"a"', "payload": "1", field: f'"{escape}"'}
    body = "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"
    status, answer = await send(client, body)
    assert status in (400, 422), answer
    assert answer["detail"]
    assert stored(db) == []


@pytest.mark.parametrize("payload", ["1e200000", "[1e999999999]", "1e-200000", '{"n": -1e131072}'])
async def test_numbers_that_postgresql_does_not_hold(client: Client, db: psycopg.Connection, payload: str) -> None:
    status, body = await send(client, f'{{"channel": "a", "payload": {payload}}}')
    if status == 201:  # rounded to nothing
        assert [float(row[2]) for row in stored(db)] == [0.0]
    else:
        assert (status, named(body)) == (422, ["payload"])
        assert stored(db) == []


async def test_names_at_their_longest(client: Client, db: psycopg.Connection) -> None:
    event = {"channel": "é" * 255, "eventType": "🐘" * 255, "payload": 1, "idempotencyKey": "k " * 127 + "k"}
    status, body = await client.post(PUBLISH, event)
    assert status == 201, body
    assert stored(db) == [("é" * 255, "🐘" * 255, 1)]


async def test_names_come_through_as_they_are(kit_client: Client) -> None:
    name = "a/b?c=d&e;f\"g'h\\i<j>:{k}%l+m#n@é\u200b🐘"
    async with kit_client.stream(name) as stream:
        status, _ = await kit_client.post(PUBLISH, {"channel": name, "eventType": f" {name}\t: \u2028 x", "payload": 1})
        assert status == 201
        event = await stream.event()
    assert event.event == f" {name}\t: \u2028 x"


@pytest.mark.parametrize(
    ("constraint", "column", "fault"),
    [
        ("events_names", "channel", names.channel_fault),
        ("subscriptions_channel", "channel", names.channel_fault),
        ("events_names", "event_type", names.event_type_fault),
        ("subscriptions_user", "user_id", names.user_fault),
    ],
)
def test_the_table_has_the_same_rule(db: psycopg.Connection, constraint: str, column: str, fault: Any) -> None:
    """For every character of the basic plane and some beyond, and at the ends of the lengths."""
    row = db.execute(
        "SELECT pg_get_expr(conbin, conrelid) FROM pg_constraint WHERE conname = %s", (constraint,)
    ).fetchone()
    assert row is not None
    points = [n for n in range(1, 0x10000) if not 0xD800 <= n < 0xE000] + [0x10000, 0x1F418, 0x10FFFF]
    texts = [f"a{chr(n)}b" for n in points]
    texts += ["", "x" * 255, "x" * 256, "🐘" * 255, "🐘" * 256, "sse-pg.", "sse-pg", "SSE-PG.x", "asse-pg.x"]
    db.execute(
        "CREATE FUNCTION pg_temp.passes("
        "    channel text DEFAULT 'x', event_type text DEFAULT 'x', user_id text DEFAULT 'x')"
        f" RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN {row[0]};"
        " EXCEPTION WHEN check_violation THEN RETURN false; END $$"
    )
    taken = db.execute(
        f"SELECT pg_temp.passes({column} => t.name)"
        "  FROM unnest(%s::text[]) WITH ORDINALITY AS t(name, place) ORDER BY place",
        (texts,),
    ).fetchall()
    differ = [text for text, (allowed,) in zip(texts, taken, strict=True) if allowed is not (fault(text) is None)]
    assert differ == []


@pytest.mark.parametrize(
    ("statement", "text", "fault"),
    [
        ("SELECT sse_pg.subscribe(%s, 'a')", "", names.user_fault),
        ("SELECT sse_pg.subscribe(%s, 'a')", "x" * 256, names.user_fault),
        ("SELECT sse_pg.subscribe(%s, 'a')", "x\n", names.user_fault),
        ("SELECT sse_pg.publish('a', 'T', '1', %s)", "", names.key_fault),
        ("SELECT sse_pg.publish('a', 'T', '1', %s)", "x" * 256, names.key_fault),
    ],
)
def test_an_error_in_sql_says_the_rule(db: psycopg.Connection, statement: str, text: str, fault: Any) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        db.execute(statement, (text,))
    assert caught.value.diag.message_primary == fault(text)
    assert text[:300] in (caught.value.diag.message_detail or "").replace("\\n", "\n")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ";;;"]
)
async def test_another_content_type(client: Client, db: psycopg.Connection, content_type: str) -> None:
    status, body = await send(client, '{"channel": "a", "payload": 1}', content_type)
    assert status == 415
    assert JSON in body["detail"]
    assert stored(db) == []


async def test_no_content_type(kit_client: Client) -> None:
    status, _, _ = await kit_client.request(
        "POST", PUBLISH, data=b'{"channel": "a", "payload": 1}', skip_auto_headers=["Content-Type"]
    )
    assert status == 415


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_parameters_and_case_of_the_content_type(kit_client: Client, content_type: str) -> None:
    status, _ = await send(kit_client, '{"channel": "a", "payload": 1}', content_type)
    assert status == 201


async def test_a_compressed_body(client: Client, db: psycopg.Connection) -> None:
    body = gzip.compress(b'{"channel": "a", "payload": 1}')
    status, answer = await send(client, body, **{"Content-Encoding": "gzip"})
    assert status == 201, answer
    assert stored(db) == [("a", "message", 1)]


async def test_a_body_that_only_says_it_is_compressed(client: Client, db: psycopg.Connection) -> None:
    status, body = await send(client, b'{"channel": "a", "payload": 1}', **{"Content-Encoding": "gzip"})
    assert status == 400
    assert body["detail"]
    assert stored(db) == []


# ------------------------------------------------------------ sizes


async def test_a_payload_of_exactly_the_limit(client: Client, db: psycopg.Connection) -> None:
    status, body = await send(client, json.dumps({"channel": "a", "payload": "x" * (2**20 - 2)}))
    assert status == 201, body
    status, body = await send(client, json.dumps({"channel": "a", "payload": "x" * (2**20 - 1)}))
    assert (status, named(body)) == (413, ["payload"])
    assert len(stored(db)) == 1


async def test_a_payload_that_grows_beyond_the_limit_in_the_table(client: Client, db: psycopg.Connection) -> None:
    payload = "[" + ",".join(["1"] * 400_000) + "]"  # PostgreSQL prints a space after each comma
    status, body = await send(client, f'{{"channel": "a", "payload": {payload}}}')
    assert (status, named(body)) == (413, ["payload"])
    event = f'{{"channel": "a", "payload": {payload}}}'
    status, body = await send(client, f'[{{"channel": "a", "payload": 1}}, {event}]')
    assert (status, named(body)) == (413, ["events[1].payload"])
    assert stored(db) == []


async def test_settings_bound_payload_body_and_batch(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(max_payload=10, max_body=2000, max_batch=3)
    async with Client(server.url) as client:
        status, body = await send_many(client, "array", [THREE[0], {"channel": "a", "payload": "x" * 9}])
        assert (status, named(body)) == (413, ["events[1].payload"])
        for form in FORMS:
            status, body = await send_many(client, form, [THREE[0]] * 4)
            assert status == 413
            assert "3" in body["detail"]
        status, body, response = await client.request("POST", PUBLISH, json={"channel": "a", "payload": "x" * 2000})
        assert status == 413
        assert "2000" in body["detail"]
        assert response.headers["Connection"] == "close"
        assert stored(db) == []
        status, _ = await client.post(PUBLISH, {"channel": "a", "payload": "x" * 8})
        assert status == 201


async def test_a_body_far_beyond_the_limit(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(max_body=4096)
    async with Client(server.url) as client:
        status, _ = await send(client, b'{"channel": "a", "payload": "' + b"x" * 5_000_000 + b'"}')
        assert status == 413
        status, _ = await send(
            client,
            gzip.compress(b'{"channel": "a", "payload": "' + b"x" * 5_000_000 + b'"}'),
            **{"Content-Encoding": "gzip"},
        )
        assert status == 413
        await client.publish("a", 1)
    assert stored(db) == [("a", "message", 1)]


# ------------------------------------------------------------ idempotency


async def test_a_repeat_gets_the_same_id(client: Client, db: psycopg.Connection) -> None:
    event = {"channel": "a", "eventType": "T", "payload": {"x": 1, "y": 2}, "idempotencyKey": "k"}
    first = await client.post(PUBLISH, event)
    # The same event, written differently.
    text = '{"idempotencyKey": "k", "payload": {"y":2,  "x": 1}, "eventType": "T", "channel": "a"}'
    assert await send(client, text) == first
    assert first[0] == 201
    assert len(stored(db)) == 1


async def test_a_key_is_one_for_http_and_sql(client: Client, db: psycopg.Connection) -> None:
    _, body = await client.post(PUBLISH, {"channel": "a", "payload": 2.5, "idempotencyKey": "k"})
    again = db.execute("SELECT sse_pg.publish('a', 'message', '2.5', 'k')").fetchone()
    assert again == (body["id"],)


@pytest.mark.parametrize("change", [{"channel": "b"}, {"eventType": "U"}, {"payload": 2}])
async def test_a_key_reused_for_another_event(client: Client, db: psycopg.Connection, change: dict[str, Any]) -> None:
    event = {"channel": "a", "eventType": "T", "payload": 1, "idempotencyKey": "k"}
    await client.post(PUBLISH, event)
    status, body = await client.post(PUBLISH, {**event, **change})
    assert (status, named(body)) == (409, ["idempotencyKey"])
    assert stored(db) == [("a", "T", 1)]


async def test_a_key_of_null_is_none(client: Client, db: psycopg.Connection) -> None:
    for _ in range(2):
        status, _ = await client.post(PUBLISH, {"channel": "a", "payload": 1, "idempotencyKey": None})
        assert status == 201
    assert len(stored(db)) == 2


async def test_a_refused_publish_leaves_its_key_free(client: Client, db: psycopg.Connection) -> None:
    status, _ = await client.post(PUBLISH, {"channel": "a", "payload": "\0", "idempotencyKey": "k"})
    assert status == 422
    status, _ = await client.post(PUBLISH, {"channel": "a", "payload": 1, "idempotencyKey": "k"})
    assert status == 201


@forms
async def test_keys_in_a_batch(client: Client, db: psycopg.Connection, form: str) -> None:
    keyed = [{**event, "idempotencyKey": f"k{place}"} for place, event in enumerate(THREE)]
    mixed = [keyed[0], {"channel": "free", "payload": 0}, keyed[1]]
    status, first = await send_many(client, form, mixed)
    assert status == 201
    status, second = await send_many(client, form, [*keyed, keyed[2]])
    assert status == 201
    ids = [event["id"] for event in second["events"]]
    assert ids[:2] == [first["events"][0]["id"], first["events"][2]["id"]]
    assert ids[2] == ids[3]
    assert len(stored(db)) == 4


@forms
async def test_a_reused_key_refuses_the_batch(client: Client, db: psycopg.Connection, form: str) -> None:
    await client.post(PUBLISH, {"channel": "a", "payload": 1, "idempotencyKey": "k"})
    bad = {"channel": "a", "payload": "other", "idempotencyKey": "k"}
    status, body = await send_many(client, form, [THREE[0], THREE[1], bad])
    assert status == 409
    assert "'k'" in body["detail"]
    assert named(body)[0].endswith("idempotencyKey")
    assert len(stored(db)) == 1


async def test_concurrent_repeats_publish_once(launch: Launcher, db: psycopg.Connection) -> None:
    servers = [await launch(), await launch()]
    async with Client(servers[0].url) as one, Client(servers[1].url) as two:
        event = {"channel": "a", "payload": 1, "idempotencyKey": "k"}
        answers = await asyncio.gather(*(client.post(PUBLISH, event) for client in (one, two) for _ in range(20)))
    assert {status for status, _ in answers} == {201}
    assert len({body["id"] for _, body in answers}) == 1
    assert len(stored(db)) == 1


async def test_a_repeat_waits_for_a_commit_under_way(client: Client, database_url: str) -> None:
    event = {"channel": "a", "payload": 1, "idempotencyKey": "k"}
    with psycopg.connect(database_url) as other:
        row = other.execute("SELECT sse_pg.publish('a', 'message', '1', 'k')").fetchone()
        repeat = asyncio.create_task(client.post(PUBLISH, event))
        await _blocked(other)
        assert not repeat.done()
        other.commit()
        status, body = await repeat
    assert (status, body["id"]) == (201, row[0] if row else None)


async def _blocked(conn: psycopg.Connection, seen: int = 1) -> None:
    """Wait until other sessions wait for a lock."""
    await eventually(
        lambda: conn.execute("SELECT count(*) >= %s FROM pg_locks WHERE NOT granted", (seen,)).fetchone() == (True,)
    )


# ------------------------------------------------------------ together in one commit


@contextmanager
def held_back(database_url: str) -> Iterator[psycopg.Connection]:
    """Let no INSERT into the events through."""
    with psycopg.connect(database_url) as conn:
        conn.execute("LOCK TABLE sse_pg.events IN SHARE MODE")
        yield conn
        conn.rollback()


async def test_concurrent_publishes_each_get_their_own_id(client: Client, db: psycopg.Connection) -> None:
    async with client.stream("a") as stream:
        ids = await asyncio.gather(*(client.publish("a", n) for n in range(200)))
        events = await stream.events(200)
    assert {event.id: event.json() for event in events} == {str(number): n for n, number in enumerate(ids)}
    assert dict(db.execute("SELECT payload::int, id FROM sse_pg.events").fetchall()) == dict(enumerate(ids))


async def test_publishes_that_wait_share_a_commit_and_not_their_errors(
    launch: Launcher, database_url: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_pg.db.publisher.SHARED_LOCK_TIMEOUT", "60s")  # the table is locked for longer below
    server = await launch()
    async with Client(server.url) as client:
        await client.post(PUBLISH, {"channel": "a", "payload": "first", "idempotencyKey": "used"})
        kinds: list[tuple[Any, int]] = [
            ({"channel": "a", "payload": 1}, 201),
            ({"channel": "a", "payload": "\0"}, 422),
            ([{"channel": "b", "payload": 1}, {"channel": "b", "payload": 2}], 201),
            ([{"channel": "b", "payload": 1}, {"channel": "b", "payload": "\0"}], 422),
            ({"channel": "a", "payload": 1, "idempotencyKey": "used"}, 409),
            ({"channel": "a", "payload": "first", "idempotencyKey": "used"}, 201),
            ({"channel": "a", "payload": 1, "idempotencyKey": "new"}, 201),
        ]
        requests = kinds * 10
        random.Random(1).shuffle(requests)
        with held_back(database_url) as lock:
            blocked = asyncio.create_task(client.publish("a", "blocked"))
            await _blocked(lock)
            tasks = [asyncio.create_task(client.post(PUBLISH, event)) for event, _ in requests]
            await eventually(lambda: len(server.bus.publisher._plain.waiting) == 40)
        await blocked
        answers = await asyncio.gather(*tasks)
    for (event, expected), (status, body) in zip(requests, answers, strict=True):
        assert status == expected, (event, body)
        if status == 422:
            assert named(body) == ["events[1].payload" if isinstance(event, list) else "payload"]
    # first and blocked, ten of one, ten of two, one with the new key
    assert len(stored(db)) == 2 + 10 + 20 + 1


async def test_good_publishes_that_wait_need_one_commit(
    launch: Launcher, database_url: str, db: psycopg.Connection
) -> None:
    server = await launch()
    async with Client(server.url) as client:
        with held_back(database_url) as lock:
            blocked = asyncio.create_task(client.publish("a", "blocked"))
            await _blocked(lock)
            tasks = [asyncio.create_task(client.publish("a", n)) for n in range(50)]
            await eventually(lambda: server.bus.publisher.waiting == 50)
        ids = [await blocked, *await asyncio.gather(*tasks)]
    assert len(set(ids)) == 51
    assert db.execute("SELECT count(DISTINCT xmin::text) FROM sse_pg.events").fetchone() == (2,)


async def test_a_shared_commit_is_bounded_in_bytes(launch: Launcher, database_url: str, db: psycopg.Connection) -> None:
    server = await launch()
    async with Client(server.url) as client:
        with held_back(database_url) as lock:
            blocked = asyncio.create_task(client.publish("a", "blocked"))
            await _blocked(lock)
            tasks = [asyncio.create_task(client.publish("a", "x" * 1_000_000)) for _ in range(10)]
            await eventually(lambda: server.bus.publisher.waiting == 10)
        await asyncio.gather(blocked, *tasks)
    assert db.execute("SELECT count(DISTINCT xmin::text) FROM sse_pg.events").fetchone() == (1 + 3,)


async def test_a_payload_counts_as_wide_as_it_is_in_memory(launch: Launcher, database_url: str) -> None:
    server = await launch()
    async with Client(server.url) as client:
        with held_back(database_url) as lock:
            body = json.dumps({"channel": "a", "payload": "x" * 9_999 + "\U0001f600"}, ensure_ascii=False).encode()
            headers = {"Content-Type": "application/json"}
            blocked = asyncio.create_task(client.request("POST", PUBLISH, data=body, headers=headers))
            await _blocked(lock)
            await eventually(lambda: server.bus.limits.bodies.held > 40_000)
        assert (await blocked)[0] == 201


async def test_a_request_whose_client_leaves_before_it_is_sent_is_not_published(
    launch: Launcher, database_url: str, db: psycopg.Connection
) -> None:
    server = await launch()
    async with Client(server.url) as client, Client(server.url) as other:
        with held_back(database_url) as lock:
            blocked = asyncio.create_task(other.publish("a", "sent"))
            await _blocked(lock)
            gone = [asyncio.create_task(client.publish("a", f"gone {n}")) for n in range(20)]
            stays = asyncio.create_task(other.publish("a", "stays"))
            await eventually(lambda: server.bus.publisher.waiting == 21)
            for task in gone:
                task.cancel()
            await eventually(lambda: server.bus.publisher.waiting == 1)
            assert server.bus.limits.bodies.held < 200
        ids = await asyncio.gather(blocked, stays)
    assert stored(db) == [("a", "message", "sent"), ("a", "message", "stays")]
    assert [number for (number,) in db.execute("SELECT id FROM sse_pg.events ORDER BY id")] == ids


async def test_a_caller_that_goes_after_it_is_sent_does_not_harm_the_others(
    launch: Launcher, database_url: str, db: psycopg.Connection
) -> None:
    server = await launch()
    publish = server.bus.publisher.publish
    drafts = [Draft("a", "message", str(n)) for n in range(3)]
    with held_back(database_url) as lock:
        tasks = [asyncio.create_task(publish([draft])) for draft in drafts]
        await _blocked(lock)
        assert server.bus.publisher.waiting == 0
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
    ids = [(await task)[0][0] for task in (tasks[0], tasks[2])]
    rows = dict(db.execute("SELECT payload::int, id FROM sse_pg.events").fetchall())
    assert [rows[0], rows[2]] == ids
    assert set(rows) == {0, 1, 2}


# ------------------------------------------------------------ the database is away


async def test_without_a_database_503(launch: Launcher) -> None:
    server = await launch(ready=False, database_url="postgresql://127.0.0.1:1/none", pool_timeout=0.2)
    async with Client(server.url) as client:
        status, body, response = await client.request("POST", PUBLISH, json={"channel": "a", "payload": 1})
    assert status == 503
    assert int(response.headers["Retry-After"]) > 0
    assert "nothing was published" in body["detail"]
    assert body["type"] == "about:blank"


async def test_a_connection_lost_during_the_commit_says_that_the_outcome_is_unknown(
    client: Client, database_url: str, db: psycopg.Connection
) -> None:
    with held_back(database_url) as lock:
        asked = asyncio.create_task(client.request("POST", PUBLISH, json={"channel": "a", "payload": 1}))
        await _blocked(lock)
        lock.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        status, body, response = await asked
    assert (status, body["type"]) == (503, "urn:sse-pg:outcome-unknown")
    assert "idempotencyKey" in body["detail"]
    assert int(response.headers["Retry-After"]) > 0
    await client.publish("a", "next")
    assert stored(db) == [("a", "message", "next")]


def _with_key(key: str, payload: Any = 1) -> dict[str, Any]:
    return {"channel": "a", "payload": payload, "idempotencyKey": key}


async def test_a_key_that_is_held_is_refused_at_once_and_keeps_nobody_else_waiting(
    launch: Launcher, database_url: str, db: psycopg.Connection
) -> None:
    """Another transaction has published with a key and stays open; requests with it share a commit with others."""
    server = await launch()
    publish = server.bus.publisher.publish
    async with Client(server.url) as client:
        with psycopg.connect(database_url) as other:
            (number,) = other.execute("SELECT sse_pg.publish('a', 'message', '1', 'held')").fetchone() or (0,)
            held = Draft("a", "message", "1", "held")
            drafts = [Draft("a", "message", str(n), f"k{n}") for n in range(21)]
            # In one turn of the loop, so that they are taken together; the first keeps the worker busy until then.
            requests = [[held], *([draft] for draft in drafts[:20]), [drafts[20], held], [held]]
            outcomes = await asyncio.gather(*map(publish, requests), return_exceptions=True)
            refused = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, KeyHeld)]
            assert refused == [0, 21, 22]
            ids = {outcome[0][0] for outcome in outcomes if not isinstance(outcome, BaseException)}
            assert len(ids) == 20
            status, body, response = await client.request("POST", PUBLISH, json=_with_key("held"))
            assert (status, body["type"]) == (503, "about:blank")
            assert "idempotency key" in body["detail"]
            assert "nothing was published" in body["detail"]
            assert int(response.headers["Retry-After"]) > 0
            other.commit()
        again = await publish([drafts[20], held])
        assert again[0][0] > max(ids)
        assert again[1][0] == number
    assert len(stored(db)) == 1 + 21


async def test_a_key_is_free_again_when_its_transaction_rolls_back(
    client: Client, database_url: str, db: psycopg.Connection
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("SELECT sse_pg.publish('a', 'message', '1', 'held')")
        assert (await client.post(PUBLISH, _with_key("held")))[0] == 503
        other.rollback()
    assert stored(db) == []
    assert (await client.post(PUBLISH, _with_key("held")))[0] == 201
    assert len(stored(db)) == 1


async def test_a_deadlock_over_keys_is_not_a_500(launch: Launcher, database_url: str, db: psycopg.Connection) -> None:
    """Two batches take the same keys in opposite orders; this server's is the one that PostgreSQL ends."""
    with psycopg.connect(database_url) as other:
        (name,) = other.execute("SELECT current_database()").fetchone() or ("",)
        db.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '2s'")
        other.execute("SET deadlock_timeout = '30s'")
        server = await launch()
        async with Client(server.url) as client:
            other.execute("SELECT sse_pg.publish('a', 'message', '1', 'k1')")
            keys = [{"channel": "a", "payload": n, "idempotencyKey": f"k{n}"} for n in (2, 1)]
            batch = asyncio.create_task(client.request("POST", PUBLISH, json=keys))
            await _blocked(other)
            await asyncio.to_thread(other.execute, "SELECT sse_pg.publish('a', 'message', '2', 'k2')")
            other.commit()
            status, body, response = await batch
    assert status == 201 or (status == 503 and int(response.headers["Retry-After"]) > 0), body
    assert len(stored(db)) == 2


async def test_a_database_that_only_reads_is_away(launch: Launcher, db: psycopg.Connection) -> None:
    """As a server does that was demoted behind the same address."""
    (name,) = db.execute("SELECT current_database()").fetchone() or ("",)
    db.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    server = await launch(ready=False)
    async with Client(server.url) as client:
        status, _, response = await client.request("POST", PUBLISH, json={"channel": "a", "payload": 1})
        assert (status, int(response.headers["Retry-After"]) > 0) == (503, True)
        status, _ = await client.get("/readyz")
        assert status == 503
        status, body = await client.get("/api/events/history?channel=a")
        assert (status, body["events"]) == (200, [])


async def test_an_error_of_a_trigger_of_the_user_is_not_a_500(client: Client, db: psycopg.Connection) -> None:
    db.execute(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.channel = 'closed' THEN RAISE EXCEPTION 'closed today' USING ERRCODE = 'check_violation'; END IF;"
        " RETURN NEW; END $$"
    )
    db.execute("CREATE TRIGGER refuse BEFORE INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION public.refuse()")
    status, body = await client.post(PUBLISH, {"channel": "closed", "payload": 1})
    assert status == 422
    assert "closed today" in body["detail"]
    await client.publish("open", 1)


# ---- what large bodies cost that are refused


@pytest.mark.parametrize(
    ("body", "content_type", "field"),
    [
        (b"[" + b"1," * 1_000_000 + b"1]", JSON, "events[0]"),
        (b'{"channel":1,"payload":"' + b"x" * 2_000_000 + b'"}', JSON, "channel"),
        (b'{"events":[{"channel":"a","payload":0},' + b"{}," * 700_000 + b"{}]}", JSON, "events[1].channel"),
        (b"{}\n" * 700_000, NDJSON, "events[0].channel"),
        (b"\n" * 2_000_000, NDJSON, "events"),
    ],
)
def test_a_large_body_that_is_refused_takes_little_memory(body: bytes, content_type: str, field: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Problem) as refused:
            for _ in publish_body.Drafts(
                body, ndjson=content_type == NDJSON, max_body=16 << 20, max_payload=1 << 20, max_batch=1000
            ):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(body)
    assert (refused.value.status, refused.value.errors[0].field) == (422, field)


async def test_a_problem_names_a_hundred_fields_at_most(kit_client: Client) -> None:
    status, problem = await send(kit_client, json.dumps({str(number): 0 for number in range(1000)}))
    assert (status, len(problem["errors"])) == (422, 100)
    assert len(named(problem)) == 100
    wrong = {"userId": "u", "channel": "c", **{str(number): 0 for number in range(1000)}}
    status, problem = await kit_client.post("/api/events/channels/subscribe", wrong)
    assert (status, len(problem["errors"])) == (422, 100)
