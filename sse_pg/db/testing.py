"""The statements of the test kit (sse_pg.testing)."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Protocol

import psycopg

from sse_pg.db.queries import query


class Cursor(Protocol):
    """A DB-API cursor whose placeholder is ``%s``: psycopg's, Django's, or the one below an SQLAlchemy session."""

    def execute(self, query: str, params: list[str], /) -> object:
        """Run a statement."""

    def fetchall(self) -> Any:
        """Return its rows."""


class Published(NamedTuple):
    """An event that a test has published."""

    id: int
    channel: str
    event_type: str
    payload: Any
    headers: dict[str, Any] | None


def empty(conn: psycopg.Connection[Any]) -> bool:
    """Delete what is in the log and beside it. Return whether there were events."""
    ((count,),) = conn.execute(query("testing_empty")).fetchall()
    return bool(count)


def position(conn: psycopg.Connection[Any]) -> str:
    """Return the cursor from which a stream gets what is published from now on."""
    ((cursor,),) = conn.execute(query("testing_position")).fetchall()
    return str(cursor)


def publish(conn: psycopg.Connection[Any], channel: str, event_type: str, payload: object) -> int:
    """Publish an event; return its id."""
    ((number,),) = conn.execute(query("testing_publish"), (channel, event_type, json.dumps(payload))).fetchall()
    return int(number)


def published(cursor: Cursor, channel: str) -> list[Published]:
    """Return the events of a channel that the cursor's transaction sees, in the order of their ids."""
    cursor.execute(query("testing_published").decode(), [channel])
    return [
        Published(number, name, event_type, json.loads(payload), None if headers is None else json.loads(headers))
        for number, name, event_type, payload, headers in cursor.fetchall()
    ]
