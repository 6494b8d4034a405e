"""The headers of an event in the table: what is refused, what counts, and how publish() writes them."""

from __future__ import annotations

import psycopg
import pytest

pytestmark = pytest.mark.oldest

CHECK = psycopg.errors.CheckViolation
INSERT = "INSERT INTO sse_pg.events (channel, payload, headers) VALUES ('a', %s, %s)"


def headers(db: psycopg.Connection) -> list[object]:
    return [row[0] for row in db.execute("SELECT headers FROM sse_pg.events ORDER BY id").fetchall()]


def test_an_event_has_headers_or_none(db: psycopg.Connection) -> None:
    db.execute(INSERT, ["1", '{"tenant": "ä", "attempt": 2}'])
    db.execute(INSERT, ["1", "{}"])
    db.execute(INSERT, ["1", None])
    db.execute("INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1')")
    assert headers(db) == [{"tenant": "ä", "attempt": 2}, {}, None, None]


@pytest.mark.parametrize("bad", ["[]", '[{"a": 1}]', '"a"', "1", "true", "null"])
def test_headers_are_an_object(db: psycopg.Connection, bad: str) -> None:
    with pytest.raises(CHECK, match="the headers of an event must be a JSON object") as caught:
        db.execute(INSERT, ["1", bad])
    assert (caught.value.diag.constraint_name, caught.value.diag.table_name) == ("events_headers", "events")
    with pytest.raises(CHECK, match="must be a JSON object"):
        db.execute("SELECT sse_pg.publish('a', 't', '1', NULL, %s::jsonb)", [bad])
    assert headers(db) == []


def test_payload_and_headers_count_together(db: psycopg.Connection) -> None:
    size = 1048576
    for printed in ('{"h": "x"}', '{"h": "ä"}', "{}"):
        left = size - len(printed.encode())
        db.execute(INSERT, ['"' + "p" * (left - 2) + '"', printed])
        with pytest.raises(CHECK, match="the payload of an event has at most"):
            db.execute(INSERT, ['"' + "p" * (left - 1) + '"', printed])
    db.execute(INSERT, ["1", '{"h": "' + "x" * (size - 10) + '"}'])
    with pytest.raises(CHECK, match="the payload of an event has at most"):
        db.execute(INSERT, ["1", '{"h": "' + "x" * (size - 9) + '"}'])


@pytest.mark.parametrize("number", ["1e400", "1e-400", "1e131071", "1" + "0" * 400])
def test_a_number_that_is_long_when_it_is_written_out(db: psycopg.Connection, number: str) -> None:
    with pytest.raises(CHECK, match="a number in the event has more than 400 digits"):
        db.execute(INSERT, ["1", f'{{"n": {number}}}'])
    with pytest.raises(CHECK):
        db.execute(INSERT, ["1", f'{{"n": [{",".join([number] * 5000)}]}}'])
    assert headers(db) == []


def test_nul_is_refused(db: psycopg.Connection) -> None:
    for text in (r'{"a\u0000": 1}', r'{"a": "\u0000"}'):
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            db.execute(INSERT, ["1", text])


def test_publish(db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.publish('a', 't', '1', headers => '{\"n\": 1}')")
    db.execute("SELECT sse_pg.publish('a', 't', '1', 'key', '{\"n\": 2}')")
    db.execute("SELECT sse_pg.publish('a', 't', '1')")
    assert headers(db) == [{"n": 1}, {"n": 2}, None]


def test_a_repeated_publish_may_have_other_headers(db: psycopg.Connection) -> None:
    """A request that is repeated has a ``traceparent`` of its own. The event keeps the headers of the first one."""
    statement = "SELECT sse_pg.publish('a', 't', '1', 'key', %s)"
    assert [db.execute(statement, [text]).fetchone() for text in ('{"n": 1}', '{"n": 2}', None)] == [(1,)] * 3
    assert headers(db) == [{"n": 1}]


@pytest.mark.parametrize("keys", [None, [None, "k", None]])
def test_publish_many(db: psycopg.Connection, keys: list[str | None] | None) -> None:
    statement = "SELECT id FROM sse_pg.publish_many('{a,a,a}', '{t,t,t}', '{1,2,3}', %s::text[], %s::text[])"
    assert db.execute(statement, [keys, ['{"n": 1}', None, "{}"]]).fetchall() == [(1,), (2,), (3,)]
    assert db.execute(statement, [keys and [None, "l", None], None]).fetchall() == [(4,), (5,), (6,)]
    assert headers(db) == [{"n": 1}, None, {}, None, None, None]
