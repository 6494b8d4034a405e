"""Why the database cannot be reached: the causes are told apart, and shown without address."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sse_pg.db.connect_failure import cause_of, without_address


def refusal(url: str) -> psycopg.OperationalError:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(url).close()
    return caught.value


def test_what_a_database_says(database_url: str, db: psycopg.Connection, tmp_path: Path) -> None:
    name = str(conninfo_to_dict(database_url)["dbname"])
    db.execute("DROP ROLE IF EXISTS few; CREATE ROLE few LOGIN CONNECTION LIMIT 1; DROP ROLE IF EXISTS nobody_at_all")
    db.execute("DROP ROLE IF EXISTS never; CREATE ROLE never NOLOGIN")
    try:
        with psycopg.connect(database_url, user="few"):
            limit = refusal(make_conninfo(database_url, user="few"))
        refusals = {
            "has no connection left": limit,
            "does not exist on that server": refusal(make_conninfo(database_url, dbname="elsewhere")),
            "role does not exist": refusal(make_conninfo(database_url, user="nobody_at_all")),
            "may not log in": refusal(make_conninfo(database_url, user="never")),
            "nothing listens": refusal(f"postgresql:///x?host={tmp_path}"),
            "has no address": refusal("postgresql://nowhere.invalid/x"),
        }
    finally:
        db.execute("DROP ROLE few; DROP ROLE never")
    for words, error in refusals.items():
        assert words in cause_of(error).reason, error
        assert words in without_address(error)
    assert not any(name in without_address(error) for error in refusals.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('FATAL:  password authentication failed for user "bus"', "role or its password"),
        ("fe_sendauth: no password supplied", "role or its password"),
        ("FATAL:  sorry, too many clients already", "no connection left"),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", "no connection"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "bus", database "shop", no encryption', "admit"),
        ("FATAL:  the database system is starting up", "starting"),
        ("session is read-only", "written to"),
        ("timeout expired", "in time"),
        ("something else in another language", "no connection"),
    ],
)
def test_texts_of_libpq(text: str, words: str) -> None:
    error = psycopg.OperationalError(f'connection failed: connection to server at "10.1.2.3", port 5432 failed: {text}')
    assert words in without_address(error)
    assert "10." not in without_address(error)
