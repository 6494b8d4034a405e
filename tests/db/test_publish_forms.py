"""The forms of publish(): with and without a type, with jsonb and with json, and with arguments of other types."""

from __future__ import annotations

import psycopg
import pytest

CALLS = [
    ("publish('a', '{\"n\": 1}')", "message"),
    ("publish('a', jsonb '{\"n\": 1}')", "message"),
    ("publish('a', json '{\"n\": 1}')", "message"),
    ("publish('a', row_to_json(r))", "message"),
    ("publish('a', to_jsonb(r))", "message"),
    ("publish('a', 'T', '{\"n\": 1}')", "T"),
    ("publish('a', 'T', row_to_json(r))", "T"),
    ("publish('a', 'T', to_jsonb(r))", "T"),
    ("publish('a', 'T', to_json(r), 'key')", "T"),
    ("publish('a', 'T', to_json(r), NULL, '{\"h\": 1}')", "T"),
    ("publish('a', 'T', '{\"n\": 1}', 'key', '{\"h\": 1}')", "T"),
    ("publish('a'::text, 'T'::text, '{\"n\": 1}')", "T"),
    ("publish('a'::varchar, 'T'::varchar, '{\"n\": 1}')", "T"),
    ("publish('a'::varchar, 'T'::varchar, row_to_json(r))", "T"),
    ("publish('a'::name, 'T'::name, row_to_json(r))", "T"),
    ("publish('a'::name, 'T'::name, to_jsonb(r))", "T"),
    ("publish('a'::varchar, '{\"n\": 1}')", "message"),
    ("publish('a'::name, row_to_json(r))", "message"),
    ("publish(channel => 'a', payload => '{\"n\": 1}')", "message"),
    ("publish(channel => 'a', event_type => 'T', payload => '{\"n\": 1}')", "T"),
    ("publish(channel => 'a', event_type => 'T', payload => row_to_json(r), headers => '{}')", "T"),
    ("publish('a', NULL, '{\"n\": 1}')", "message"),
]


@pytest.mark.parametrize(("call", "event_type"), CALLS)
def test_a_call(db: psycopg.Connection, call: str, event_type: str) -> None:
    assert db.execute(f"SELECT sse_pg.{call} FROM (SELECT 1 AS n) r").fetchone() == (1,)  # type: ignore[arg-type]
    assert db.execute("SELECT channel, event_type, payload FROM sse_pg.events").fetchall() == [
        ("a", event_type, {"n": 1})
    ]


@pytest.mark.parametrize("prepare", [True, False])
def test_parameters_of_a_driver(db: psycopg.Connection, prepare: bool) -> None:
    """They have no type, as a literal has none."""
    for statement, parameters in (
        ("SELECT sse_pg.publish(%s, %s)", ["a", "1"]),
        ("SELECT sse_pg.publish(%s, %s, %s)", ["a", "T", "1"]),
        ("SELECT sse_pg.publish(%s, %s, %s, %s)", ["a", "T", "1", "key"]),
    ):
        db.execute(statement, parameters, prepare=prepare)  # type: ignore[arg-type]
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (3,)
