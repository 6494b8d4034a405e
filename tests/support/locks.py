"""The advisory locks of a test's own database: servers of other databases in the cluster have theirs."""

from __future__ import annotations

import psycopg

_LOCKS = """
    SELECT count(*) FROM pg_locks
     WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


def advisory_locks(db: psycopg.Connection) -> int:
    """Return how many are held or waited for in the database of this connection."""
    ((count,),) = db.execute(_LOCKS).fetchall()
    return int(count)
