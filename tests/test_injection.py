"""What clients send comes out as it went in, or is refused with a reason; it never becomes something else."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.client import Client
from support.event_source import browser
from support.server import Launcher

from sse_pg import logs
from sse_pg.config import Settings
from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import WHOLE, CloudEvent, Envelope
from sse_pg.core.event import Event
from sse_pg.errors import SettingError

PUBLISH = "/api/events/publish"
NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}

# ---- the encoder

ANYTHING = st.text(
    st.characters() | st.sampled_from("\r\n\0\u2028\u2029\x85\x0b\x0c\ufeff\ud800\udfff: "), max_size=30
) | st.sampled_from(["data: x\n\nid: 9", "\r\rdata: forged\r\r", "retry: 1", ":", "\ufeffid: 9", "id: 9\0"])


@given(ANYTHING, ANYTHING, st.sampled_from([None, WHOLE, CloudEvent("urn:x")]))
def test_a_frame_is_one_event_or_none(name: str, payload: str, envelope: Envelope | None) -> None:
    """Whatever stands in the fields: a reader sees this event, as it is, and the ones around it."""
    try:
        made = wire.frame(Event(7, "c", name, payload, 0), Cursor(7), envelope=envelope)
    except ValueError:
        assert set(name + payload) & set("\r\n\0") or any("\ud800" <= c <= "\udfff" for c in name + payload)
        return
    before, after = (wire.frame(Event(n, "c", "t", "{}", 0), Cursor(n)) for n in (6, 8))
    seen, retry = browser(before + made + after)
    assert retry is None
    assert [one.last_event_id for one in seen] == ["6", "7", "8"]
    assert (seen[0].type, seen[2].type) == ("t", "t")
    if envelope is None:
        assert seen[1].data == payload
        assert seen[1].type == (name or "message")


# ---- every entrance

#: JSON as it is sent, and whether it is taken.
PAYLOADS = [
    (r'"\r\n\r\ndata: forged\r\n\r\n"', True),
    ('"\u2028\u2029\x85\ufeff"', True),
    (r'"\u2028\ud83d\ude00"', True),
    ('{"a": 1, "a": 2}', True),
    ("1" * 300, True),
    ("-0.1e-300", True),
    ("[" * 200 + "]" * 200, True),
    (r'"\u0000"', False),
    (r'{"\u0000": 1}', False),
    (r'"\ud800"', False),
    (r'"\udc00\ud800"', False),
    ("1e200000", False),
    ("[" * 100_000 + "]" * 100_000, False),
]
IDS = [text[:20].encode("unicode_escape").decode() for text, _ in PAYLOADS]


@pytest.mark.parametrize(("text", "taken"), PAYLOADS, ids=IDS)
async def test_a_payload_through_every_entrance(client: Client, db: psycopg.Connection, text: str, taken: bool) -> None:
    async with client.stream("a") as stream:
        whole = b'{"channel": "a", "payload": ' + text.encode() + b"}"
        answers = [
            await client.request("POST", PUBLISH, data=whole, headers=JSON),
            await client.request("POST", PUBLISH, data=whole + b"\n", headers=NDJSON),
        ]
        for status, body, _ in answers:
            assert (status == 201) is taken, body
            assert taken or (status in (400, 422) and body["detail"])
        for publish in (_call, _copy):
            if taken:
                publish(db, text)
            else:
                with pytest.raises((psycopg.DataError, psycopg.OperationalError)) as refused:
                    publish(db, text)
                assert refused.value.sqlstate is not None
                assert refused.value.sqlstate.startswith("22") or refused.value.sqlstate == "54001"  # too deep
        db.execute("SELECT sse_pg.publish('a', 'last', '\"last\"')")
        expected = json.loads(text) if taken else None
        for _ in range(4 if taken else 0):
            assert (await stream.event()).json() == expected
        last = await stream.event()
        assert (last.event, last.json()) == ("last", "last")


def _call(db: psycopg.Connection, text: str) -> None:
    db.execute("SELECT sse_pg.publish('a', 't', %s::jsonb)", [text])


def _copy(db: psycopg.Connection, text: str) -> None:
    with db.cursor().copy("COPY sse_pg.events (channel, payload) FROM STDIN") as copy:
        copy.write_row(("a", text))


@pytest.mark.parametrize("breaks", ["\r", "\n", "\r\n\r\ndata: forged", "\0"])
async def test_an_event_type_cannot_break_out(client: Client, db: psycopg.Connection, breaks: str) -> None:
    name = f"a{breaks}b"
    for headers in (JSON, NDJSON):
        body = json.dumps({"channel": "a", "eventType": name, "payload": 1})
        status, answer, _ = await client.request("POST", PUBLISH, data=body, headers=headers)
        assert (status, answer["errors"][0]["field"][-9:]) == (422, "eventType")
    for insert in (
        "SELECT sse_pg.publish('a', %s, '1')",
        "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('a', %s, '1')",
    ):
        with pytest.raises(psycopg.DataError if "\0" in breaks else psycopg.errors.CheckViolation):
            db.execute(insert, [name])
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (0,)


@pytest.mark.parametrize("headers", [JSON, NDJSON], ids=["json", "ndjson"])
async def test_bytes_that_are_not_utf_8(kit_client: Client, headers: dict[str, str]) -> None:
    for bad in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"):
        body = b'{"channel": "a", "payload": "' + bad + b'"}'
        status, answer, _ = await kit_client.request("POST", PUBLISH, data=body, headers=headers)
        assert (status, "not JSON" in answer["detail"]) == (400, True)


# ---- lines

ONE = '{"channel": "a", "payload": 1}'


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (f"{ONE}{ONE}", 1),
        (f"{ONE}\n{ONE} {ONE}\n", 2),
        (f"{ONE}\n\n{ONE}\t{ONE}\r\n{ONE}", 3),
        (f"{ONE}\n{ONE}{ONE}\n" + ONE.replace(", ", ",\n") + "\n", 2),
    ],
)
async def test_two_events_on_a_line_are_refused(kit_client: Client, body: str, line: int) -> None:
    status, answer, _ = await kit_client.request("POST", PUBLISH, data=body, headers=NDJSON)
    assert (status, answer["detail"]) == (400, f"Line {line} contains more than one event: send one event per line.")
    assert (await kit_client.get("/api/events/history?channel=a"))[1]["events"] == []


async def test_an_event_on_two_lines_is_refused(kit_client: Client) -> None:
    body = ONE.replace(", ", ",\n")
    status, answer, _ = await kit_client.request("POST", PUBLISH, data=body, headers=NDJSON)
    assert (status, answer["detail"][:18]) == (400, "Line 1 is not JSON")


# ---- log lines


def record(message: str, *args: object, error: Exception | None = None) -> logging.LogRecord:
    exc_info = None
    if error is not None:
        try:
            raise error
        except Exception:
            exc_info = sys.exc_info()
    return logging.LogRecord("sse_pg", logging.INFO, "", 0, message, args, exc_info)


FORGED = "x\n12:00:00 error   all is lost\r\x1b[2J\u2028\udc80"


def test_text_lines_cannot_be_forged() -> None:
    line = logs.TextFormatter().format(record("user=%s", FORGED))
    assert line.isprintable()
    traced = logs.TextFormatter().format(record("failed", error=RuntimeError(FORGED)))
    assert all(rest.startswith("    ") and rest.isprintable() for rest in traced.split("\n")[1:])
    assert "Traceback" in traced


def test_json_lines_cannot_be_forged() -> None:
    for one in (record("user=%s", FORGED), record("failed", error=RuntimeError(FORGED))):
        line = logs.JsonFormatter().format(one)
        assert "\n" not in line
        assert "\r" not in line
        assert json.loads(line)["level"] == "info"
        line.encode()


async def test_what_clients_send_is_one_line(launch: Launcher, caplog: pytest.LogCaptureFixture) -> None:
    """Names, paths and headers of a stream, in either format."""
    caplog.set_level(logging.DEBUG, "sse_pg")
    server = await launch()
    user = "u\u2028\x85x"
    async with Client(server.url) as client:
        assert (await client.post("/api/events/channels/subscribe", {"userId": user, "channel": "a"}))[0] == 201
        async with client.stream(userId=user, last_event_id="nonsense \u00e9"):
            pass
        await client.request("GET", "/nothing%0A12:00:00%20error%20forged")
    host, _, port = server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"GET /api/events/stream?channels=a HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: \x80\xff\r\nBad\x01: 1\r\n\r\n"
    )
    await reader.read()
    writer.close()
    assert any("stream opened" in each.getMessage() for each in caplog.records)
    for each in caplog.records:
        assert logs.TextFormatter().format(each).partition("\n")[0].isprintable()
        assert "\n" not in logs.JsonFormatter().format(each)


# ---- secrets

PASSWORD = "hunter2-sesame"


@pytest.mark.parametrize(
    "url",
    [
        f"postgres:/u:{PASSWORD}@127.0.0.1/db",
        f"postgresql://u:{PASSWORD}%zz@127.0.0.1/db",
        f"postgresql://u:{PASSWORD} x@127.0.0.1/db",
        f"postgresql://u:a@{PASSWORD}:{PASSWORD}@127.0.0.1/db",
        f"postgresql://u:a:b/{PASSWORD}@127.0.0.1/db",
        f"host=127.0.0.1 password='{PASSWORD}",
    ],
)
def test_a_connection_string_that_cannot_be_read_is_not_shown(url: str) -> None:
    for name in ("DATABASE_URL", "SSE_PG_LISTEN_DATABASE_URL"):
        with pytest.raises(SettingError, match=f"^{name} cannot be parsed") as raised:
            Settings.from_env({name: url})
        assert PASSWORD not in str(raised.value)


async def test_nothing_that_is_served_or_logged_shows_the_password(
    launch: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    launch.database_url = f"postgresql://u:{PASSWORD}@127.0.0.1:1/db"
    server = await launch(ready=False, pool_timeout=0.2)
    async with Client(server.url) as client:
        told: list[Any] = [await client.get(path) for path in ("/readyz", "/healthz", "/api/events/history?channel=a")]
        told.append(await client.post(PUBLISH, {"channel": "a", "payload": 1}))
        async with client.session.get(client.url + "/metrics") as response:
            told.append(await response.text())
    assert [status for status, _ in told[:4]] == [503, 200, 503, 503]
    assert PASSWORD not in repr(told)
    assert PASSWORD not in caplog.text
    assert PASSWORD not in repr(server.bus.settings)
