"""The doctor asks the access rule, as the server's role and in its time."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.doctor import one
from support.process import CHECKOUT

RULE = (
    "CREATE OR REPLACE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean "
    "LANGUAGE plpgsql AS $rule$ BEGIN {} END $rule$"
)


def rule(db: psycopg.Connection, body: str) -> None:
    db.execute(RULE.format(body))  # type: ignore[arg-type]


async def test_the_rule_as_shipped(database_url: str) -> None:
    finding = await one("rule", database_url)
    assert (finding.state, "as shipped" in finding.found) == ("ok", True)


async def test_a_rule_that_answers_is_asked_about_a_real_subscription(
    database_url: str, db: psycopg.Connection
) -> None:
    rule(db, "RETURN channel = 'a';")
    assert "answered 2 questions" in (await one("rule", database_url)).found
    db.execute("SELECT sse_pg.subscribe('42', 'a')")
    finding = await one("rule", database_url)
    assert (finding.state, "answered 4 questions" in finding.found) == ("ok", True)


@pytest.mark.parametrize(
    ("body", "state", "says"),
    [
        ("PERFORM pg_sleep(5); RETURN true;", "error", "within 0.2 s"),
        ("PERFORM pg_sleep(0.08); RETURN true;", "warning", "took"),
        ("RAISE EXCEPTION 'broken';", "error", "broken"),
        ("INSERT INTO sse_pg.subscriptions VALUES ('1', 'a'); RETURN true;", "unchecked", "writes"),
    ],
)
async def test_a_rule_that_does_not_work(
    database_url: str, db: psycopg.Connection, body: str, state: str, says: str
) -> None:
    rule(db, body)
    finding = await one("rule", database_url, authorize_timeout=0.2)
    assert (finding.state, says in finding.found) == (state, True), finding


async def test_a_table_that_the_role_may_not_read(database_url: str, db: psycopg.Connection) -> None:
    db.execute((CHECKOUT / "sql" / "roles.sql").read_text())  # type: ignore[arg-type]
    db.execute("DROP ROLE IF EXISTS asks; CREATE ROLE asks LOGIN IN ROLE sse_pg_server")
    try:
        db.execute("CREATE TABLE public.memberships (who text, channel text)")
        rule(db, "RETURN EXISTS (SELECT FROM public.memberships m WHERE m.who = user_id);")
        finding = await one("rule", make_conninfo(database_url, user="asks"))
        assert finding.state == "error"
        assert "permission denied for table memberships" in finding.found
        db.execute("GRANT SELECT ON public.memberships TO asks")
        assert (await one("rule", make_conninfo(database_url, user="asks"))).state == "ok"
        db.execute("DROP TABLE public.memberships")
    finally:
        db.execute("DROP OWNED BY asks; DROP ROLE asks")
