"""What the table refuses, against what the HTTP interface refuses: character by character, all of Unicode."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from support.server import Launcher

from sse_pg.core import names
from sse_pg.db.draft import Draft
from sse_pg.errors import EventRefused
from sse_pg.http.long_numbers import has_long_number

CHECK = psycopg.errors.CheckViolation
POINTS = [number for number in range(1, 0x110000) if not 0xD800 <= number <= 0xDFFF]


def insert(db: psycopg.Connection, channel: str = "a", event_type: str = "t", payload: str = "1") -> None:
    db.execute(
        "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES (%s, %s, %s)", [channel, event_type, payload]
    )


def condition(db: psycopg.Connection, table: str, column: str) -> str:
    """Return the CHECK on one column, as the table holds it."""
    found = db.execute(
        "SELECT pg_get_expr(c.conbin, c.conrelid) FROM pg_constraint c"
        "  JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)"
        " WHERE c.conrelid = %s::regclass AND c.contype = 'c' AND a.attname = %s",
        [table, column],
    ).fetchall()
    assert len(found) == 1
    return str(found[0][0])


@pytest.mark.parametrize(
    ("table", "column", "fault", "refused"),
    [
        ("sse_pg.events", "channel", names.channel_fault, 80),
        ("sse_pg.subscriptions", "channel", names.channel_fault, 80),
        ("sse_pg.events", "event_type", names.event_type_fault, 2),
        ("sse_pg.subscriptions", "user_id", names.user_fault, 32),
        ("sse_pg.idempotency_keys", "key", names.key_fault, 0),
    ],
)
def test_each_character(
    db: psycopg.Connection, table: str, column: str, fault: Callable[[str], str | None], refused: int
) -> None:
    db.execute(
        "CREATE FUNCTION pg_temp.passes(channel text DEFAULT 'x', event_type text DEFAULT 'x',"
        "    user_id text DEFAULT 'x', key text DEFAULT 'x') RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN"
        f" RETURN {condition(db, table, column)}; EXCEPTION WHEN check_violation THEN RETURN false; END $$"
    )
    rows = db.execute(
        "SELECT n FROM generate_series(1, 1114111) n"
        f" WHERE n NOT BETWEEN 55296 AND 57343 AND NOT pg_temp.passes({column} => 'a' || chr(n) || 'b') ORDER BY n"
    ).fetchall()
    by_table = [number for (number,) in rows]
    by_python = [number for number in POINTS if fault(f"a{chr(number)}b") is not None]
    assert by_table == by_python
    assert abs(len(by_table) - refused) <= 15


@pytest.mark.parametrize("bad", ["", "a b", " a", "a ", "a,b", "*", "a*", "a\tb", "a\nb", "a\x01", "\u3000", "x" * 256])
def test_bad_channels(db: psycopg.Connection, bad: str) -> None:
    for statement in (
        "INSERT INTO sse_pg.events (channel, payload) VALUES (%s, '1')",
        "SELECT sse_pg.subscribe('u', %s)",
        "SELECT sse_pg.publish(%s, 't', '1')",
        "SELECT sse_pg.read('0', ARRAY[%s])",
    ):
        with pytest.raises(CHECK) as caught:
            db.execute(statement, [bad])  # type: ignore[arg-type]
        assert caught.value.diag.message_primary == names.channel_fault(bad)


@pytest.mark.parametrize("bad", ["", "a\nb", "a\rb", "\n", "\r", "sse-pg.hello", "sse-pg.", "sse-pg.end", "x" * 256])
def test_bad_event_types(db: psycopg.Connection, bad: str) -> None:
    with pytest.raises(CHECK) as caught:
        insert(db, event_type=bad)
    assert caught.value.diag.message_primary == names.event_type_fault(bad)


@pytest.mark.parametrize("good", ["a", "x" * 255, "\U0001f600" * 255, "a.b:c/d-e_f#g?h", "ä", "\u200b", "日本"])
def test_good_names(db: psycopg.Connection, good: str) -> None:
    assert names.channel_fault(good) is names.event_type_fault(good) is names.user_fault(good) is None
    insert(db, channel=good, event_type=good)
    assert db.execute("SELECT sse_pg.subscribe(%s, %s)", [good, good]).fetchone() == (True,)


@pytest.mark.parametrize("good", ["sse-pg", "SSE-PG.x", "x sse-pg.", " a ", "a b\tc,*"])
def test_event_types_are_freer(db: psycopg.Connection, good: str) -> None:
    assert names.event_type_fault(good) is None
    insert(db, event_type=good)


@pytest.mark.parametrize("bad", ["", "a\nb", "\x7f", "x" * 256])
def test_bad_users(db: psycopg.Connection, bad: str) -> None:
    assert names.user_fault(bad)
    with pytest.raises(CHECK, match=r"a user id has (1 to 255 characters|no control characters)"):
        db.execute("SELECT sse_pg.subscribe(%s, 'a')", [bad])


@pytest.mark.parametrize("bad", ["", "x" * 256])
def test_bad_keys(db: psycopg.Connection, bad: str) -> None:
    assert names.key_fault(bad)
    with pytest.raises(CHECK, match="idempotency_keys"):
        db.execute("SELECT sse_pg.publish('a', 't', '1', %s)", [bad])


def test_the_largest_payload(db: psycopg.Connection) -> None:
    """Counted in bytes of the text that goes out, quotes included."""
    insert(db, payload='"' + "x" * (1048576 - 2) + '"')
    insert(db, payload='"' + "ä" * (1048576 // 2 - 1) + '"')
    with pytest.raises(CHECK, match="has at most 1048576 bytes"):
        insert(db, payload='"' + "x" * (1048576 - 1) + '"')
    with pytest.raises(CHECK, match="has at most 1048576 bytes"):
        insert(db, payload='"' + "ä" * (1048576 // 2) + '"')


LONG = ["1e400", "-1e400", "1e-400", "0e-400", "123e398", "1e131071", "1e-16000", "1" + "0" * 400]
PUBLISH = {
    "insert": "INSERT INTO sse_pg.events (channel, payload) VALUES ('a', %s::jsonb)",
    "publish": "SELECT sse_pg.publish('a', 't', %s::jsonb)",
    "with a key": "SELECT sse_pg.publish('a', 't', %s::jsonb, 'key')",
    "publish_many": "SELECT sse_pg.publish_many('{a,a}', '{t,t}', ARRAY['1', %s])",
}


@pytest.mark.parametrize("how", PUBLISH.values(), ids=PUBLISH)
@pytest.mark.parametrize("number", LONG)
@pytest.mark.parametrize("around", ["{}", '[1, {{"a": ["{}", {}, 1e3]}}]'])
def test_a_number_that_is_long_when_it_is_written_out(
    db: psycopg.Connection, how: str, number: str, around: str
) -> None:
    """A request of 40 kB would take half a gigabyte to print, in the database and for each reader."""
    with pytest.raises(CHECK, match="more than 400 digits"):
        db.execute(how, [around.format(number, number)])  # type: ignore[arg-type]
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (0,)
    assert has_long_number(around.format(number, number)), "HTTP says the same"


@pytest.mark.parametrize(
    "payload",
    [
        "1e399",
        "-1e-399",
        "1.7976931348623157e308",
        "5e-324",
        '"' + "0" * 1000 + '"',
        '{"a": "' + "0" * 1000 + '", "b": 1, "c": 1e399}',
        '["1e131071", 1]',
    ],
)
def test_a_number_that_is_not_too_long(db: psycopg.Connection, payload: str) -> None:
    insert(db, payload=payload)
    assert not has_long_number(payload)


async def test_a_long_number_is_no_large_payload(launch: Launcher, db: psycopg.Connection) -> None:
    """The publisher reports the table's own message, although it is the same constraint that limits the size."""
    server = await launch()
    with pytest.raises(EventRefused, match="a number in the event has more than 400 digits"):
        await server.bus.publisher.publish([Draft("a", "message", "[1e-400]")])


@pytest.mark.parametrize("column", ["channel", "event_type", "payload"])
def test_nothing_is_null(db: psycopg.Connection, column: str) -> None:
    values = {"channel": "a", "event_type": "t", "payload": "1", column: None}
    with pytest.raises(psycopg.errors.NotNullViolation):
        db.execute(
            "INSERT INTO sse_pg.events (channel, event_type, payload)"
            " VALUES (%(channel)s, %(event_type)s, %(payload)s)",
            values,
        )


def test_json_null_is_a_payload(db: psycopg.Connection) -> None:
    insert(db, payload="null")
    assert db.execute("SELECT payload::text FROM sse_pg.events").fetchone() == ("null",)


def test_the_event_type_defaults_to_message(db: psycopg.Connection) -> None:
    db.execute("INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1')")
    db.execute("SELECT sse_pg.publish('a', NULL, '1')")
    assert db.execute("SELECT DISTINCT event_type FROM sse_pg.events").fetchall() == [("message",)]


@pytest.mark.parametrize("number", ["1e131071", "-1e401", "1e-401", "-1e-16383"])
@pytest.mark.parametrize("key", [None, "k"])
def test_many_long_numbers_are_refused_before_they_are_written_out(
    db: psycopg.Connection, number: str, key: str | None
) -> None:
    """Written out, the largest of these payloads would take more than PostgreSQL allows a text to be."""
    payload = f'{{"a": ["x", null, [{", ".join([number] * 9000)}]]}}'
    with pytest.raises(CHECK, match="more than 400 digits"):
        db.execute("SELECT sse_pg.publish('a', 'm', %s::jsonb, %s)", (payload, key))
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (0,)


@pytest.mark.parametrize("number", ["0", "-1.5", "1e399", "1e-399", "123456789"])
def test_many_short_numbers_are_taken(db: psycopg.Connection, number: str) -> None:
    db.execute("SELECT sse_pg.publish('a', 'm', %s::jsonb)", (f"[{', '.join([number] * 2500)}]",))
