"""``sse-pg finish`` as a process."""

from __future__ import annotations

import psycopg
from support.process import one_line, run


def test_it_finishes_a_channel(database_url: str, db: psycopg.Connection) -> None:
    done = run("finish", "a", DATABASE_URL=database_url)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert db.execute("SELECT channel, event_type FROM sse_pg.events").fetchall() == [("a", "sse-pg.end")]
    refused = run("finish", "a b", DATABASE_URL=database_url)
    assert "a channel has no white space" in one_line(refused)
