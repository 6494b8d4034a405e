"""Why the database cannot be reached: for people who may not see where it is, and for those who operate it."""

from __future__ import annotations

import re
from typing import NamedTuple

import psycopg
import psycopg_pool

from sse_pg.db.connection import NoResponse, summary


class Cause(NamedTuple):
    """The cause of a failed attempt to connect."""

    reason: str
    """Without host, port, database and role, so that everybody may see it."""
    fix: str


#: A connection that is refused has no SQLSTATE in libpq, only a text. It may be in another language, and then the cause
#: stays unknown. The first pattern that fits is the cause: a client that may try with and without TLS gets two texts.
_CAUSES = (
    (
        r"password authentication failed|no password supplied|authentication failed|SASL",
        Cause(
            "the database refuses the role or its password",
            "correct the role and the password (DATABASE_URL, PGPASSWORD, PGPASSFILE, ~/.pgpass); PostgreSQL's log "
            "says which of them is wrong",
        ),
    ),
    (
        r"too many clients|too many connections|remaining connection slots|no more connections|connection limit",
        Cause(
            "the database has no connection left",
            "close connections, raise max_connections or the CONNECTION LIMIT of the role or the database, or lower "
            "SSE_PG_POOL_SIZE or the number of servers",
        ),
    ),
    (
        r"database .* does not exist|no such database",
        Cause(
            "the database does not exist on that server",
            "correct the name of the database in DATABASE_URL, or create the database",
        ),
    ),
    (
        r"role .* does not exist|no such user",
        Cause("the role does not exist", "correct the role in DATABASE_URL, or create it with LOGIN"),
    ),
    (
        r"is not permitted to log in",
        Cause("the role may not log in", "use another role, or give this one LOGIN"),
    ),
    (
        r"permission denied for database",
        Cause("the role may not connect to the database", "grant CONNECT on the database to the role"),
    ),
    (
        r"not currently accepting connections",
        Cause("the database accepts no connections", "turn ALLOW_CONNECTIONS of the database on again"),
    ),
    (
        r"pg_hba\.conf",
        Cause(
            "the database does not admit this role from this machine",
            "add a line for the role, the database and this address to pg_hba.conf, or connect with TLS (sslmode) if "
            "its lines want that",
        ),
    ),
    (
        r"starting up|shutting down|recovery|not yet accepting",
        Cause("the database is starting or stopping", "wait; PostgreSQL's log says what it does"),
    ),
    (
        r"read-only|not in hot standby|not writable|session is not",
        Cause(
            "none of the hosts can be written to",
            "name the primary in DATABASE_URL, or see why there is none",
        ),
    ),
    (
        r"refused|No such file or directory",
        Cause(
            "nothing listens at the address of the database",
            "start PostgreSQL, or correct host and port in DATABASE_URL (PGHOST, PGPORT)",
        ),
    ),
    (
        r"resolve|translate host name|Name or service not known",
        Cause(
            "the host of the database has no address",
            "correct the host in DATABASE_URL, or see whether this machine can resolve names",
        ),
    ),
    (
        r"time-?out|timed out|TimeoutError",
        Cause(
            "the database does not respond in time",
            "see whether a firewall drops packets to it, and whether it is overloaded",
        ),
    ),
    (
        r"SSL|TLS|certificate",
        Cause("no TLS connection to the database can be made", "correct sslmode and the certificates (sslrootcert)"),
    ),
    (
        r"closed|terminat",
        Cause("the connection to the database was closed", "see PostgreSQL's log"),
    ),
)
_UNKNOWN = Cause("no connection to the database can be made", "check that it is up and that DATABASE_URL is correct")


def cause_of(error: BaseException) -> Cause:
    """Return why an attempt to connect has failed, as far as the text of the error shows it."""
    text = str(error) or type(error).__name__
    return next((cause for pattern, cause in _CAUSES if re.search(pattern, text, re.IGNORECASE)), _UNKNOWN)


def without_address(error: BaseException) -> str:
    """Return an error as one line that everybody may see. Errors of libpq and of the system name host and port."""
    own = isinstance(error, NoResponse | psycopg_pool.PoolTimeout | psycopg_pool.TooManyRequests)
    if not own and (isinstance(error, OSError) or (isinstance(error, psycopg.Error) and error.sqlstate is None)):
        return cause_of(error).reason
    return summary(error)
