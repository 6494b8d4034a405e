"""The doctor with a real PgBouncer (apt-get install pgbouncer)."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from support.doctor import found, one, report
from support.pgbouncer import Pooler, needs_pgbouncer


@needs_pgbouncer
@pytest.mark.parametrize(
    "options",
    [{}, {"server_round_robin": "1", "min_pool_size": "3"}, {"default_pool_size": "1"}, {"default_pool_size": "2"}],
)
async def test_a_transaction_pooler(pooler: Pooler, database_url: str, options: dict[str, str]) -> None:
    pooled = pooler("transaction", **options)
    finding = await one("listen", pooled)
    assert finding.state == "error"
    assert "transaction pooler" in finding.found
    assert "SSE_PG_LISTEN_DATABASE_URL" in finding.fix
    # Fixed as the finding says.
    assert (await one("listen", pooled, listen_database_url=database_url)).state == "ok"
    finding = await one("requests", pooled, listen_database_url=database_url)
    assert (finding.state, "transaction pooler" in finding.found) == ("ok", True)
    assert "none" in (await one("listen", pooled)).fix


@needs_pgbouncer
async def test_a_server_that_polls_through_a_transaction_pooler(pooler: Pooler, database_url: str) -> None:
    pooled = pooler("transaction")
    finding = await one("listen", pooled, listen_database_url="none", poll=0.01)
    assert (finding.state, "every 10 to 200 ms" in finding.found) == ("ok", True)
    finding = await one("requests", pooled, listen_database_url="none")
    assert (finding.state, "transaction pooler" in finding.found) == ("ok", True)
    finding = await one("requests", database_url, listen_database_url="none")
    assert (finding.state, "LISTEN works" in finding.found) == ("ok", True)


@needs_pgbouncer
async def test_nothing_is_left_on_the_backends_of_a_pooler(pooler: Pooler, database_url: str) -> None:
    pooled = pooler("transaction")
    await report(pooled)
    with psycopg.connect(pooled, autocommit=True) as conn:
        for query in ("SELECT pg_listening_channels()", "SELECT name FROM pg_prepared_statements"):
            assert conn.execute(query).fetchall() == []  # type: ignore[arg-type]
        for setting, value in (("transaction_read_only", "off"), ("statement_timeout", "0"), ("lock_timeout", "0")):
            assert conn.execute("SELECT current_setting(%s)", [setting]).fetchone() == (value,)


@needs_pgbouncer
async def test_a_statement_pooler(pooler: Pooler) -> None:
    pooled = pooler("statement")
    assert "error" in {finding.state for finding in await report(pooled)}


@needs_pgbouncer
async def test_a_session_pooler(pooler: Pooler) -> None:
    pooled = pooler("session")
    assert (await one("listen", pooled)).state == "ok"
    assert (await one("requests", pooled, listen_database_url=pooled)).state == "ok"


async def test_two_connection_strings_for_different_databases(database_url: str, empty_database_url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:  # nothing comes, so nothing is lost by a short wait
        patch.setattr("sse_pg.doctor.listen.NOTIFICATION_TIMEOUT_S", 0.5)
        (finding,) = await found("listen", database_url, listen_database_url=empty_database_url)
    assert finding.state == "error"
    assert "does not arrive" in finding.found
    assert (await one("listen", database_url, listen_database_url=database_url)).state == "ok"


async def test_a_listen_connection_string_that_leads_nowhere(database_url: str, tmp_path: Path) -> None:
    finding = await one("listen", database_url, listen_database_url=f"postgresql:///x?host={tmp_path}")
    assert finding.state == "error"
    assert "SSE_PG_LISTEN_DATABASE_URL" in finding.found
