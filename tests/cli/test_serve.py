"""``sse-pg serve`` and ``migrate`` as processes: settings, errors, signals at every moment, the embedded PostgreSQL."""

from __future__ import annotations

import json
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from support.cluster import directory
from support.process import left_behind, one_line, process, run
from support.waiting import PROCESS_TIMEOUT_S, wait_for

from sse_pg.embedded import EmbeddedPostgres, running

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture
def data() -> Iterator[Path]:
    """A data directory that the account of PostgreSQL can enter."""
    with directory() as made:
        yield made / "data"


def get(url: str) -> tuple[int, dict[str, object]]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, json.load(answer)


# ---- migrate


def test_migrate_applies_once(empty_database_url: str) -> None:
    first = run("migrate", "--database-url", empty_database_url)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("applied migration 0001_initial\n")
    assert run("migrate", DATABASE_URL=empty_database_url).stdout == "the schema is up to date\n"


def test_migrate_from_many_places_at_once(empty_database_url: str) -> None:
    with (
        process("migrate", DATABASE_URL=empty_database_url) as one,
        process("migrate", DATABASE_URL=empty_database_url) as two,
    ):
        assert (one.wait(), two.wait()) == (0, 0)
        assert sorted(one.out[-1:] + two.out[-1:])[-1] == "the schema is up to date"


def test_migrate_uses_the_embedded_postgresql_and_stops_it(data: Path) -> None:
    done = run("migrate", "--data-dir", str(data))
    assert done.returncode == 0, done.stderr
    assert "applied migration 0001_initial" in done.stdout
    assert left_behind(data) == []


# ---- where the database and the port come from


def test_serve_uses_the_libpq_variables(postgres: EmbeddedPostgres, database_url: str) -> None:
    there = conninfo_to_dict(database_url)
    variables = {
        "PGHOST": there["host"],
        "PGPORT": there["port"],
        "PGUSER": there["user"],
        "PGDATABASE": there["dbname"],
    }
    with process("serve", PORT="0", **{k: str(v) for k, v in variables.items()}) as server:
        server.url()
        assert not any("PostgreSQL" in line for line in server.out)
        assert server.end() == 0


def test_flags_override_variables(database_url: str) -> None:
    with process(
        "serve", "--port", "0", "--host", "127.0.0.2", "--database-url", database_url,
        HOST="127.0.0.1", PORT="1", DATABASE_URL="postgresql:///nowhere?host=/nowhere",
    ) as server:  # fmt: skip
        assert urlsplit(server.url()).hostname == "127.0.0.2"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PORT", "http", ()),
        ("PORT", "70000", ()),
        ("SSE_PG_POOL_SIZE", "0", ()),
        ("SSE_PG_BELL", "loud", ()),
        ("SSE_PG_HEARTBEAT_SECONDS", "nan", ()),
        ("SSE_PG_LOG_LEVEL", "all", ()),
        ("PORT", "-1", ("--port", "-1")),
    ],
)
def test_a_bad_setting_names_the_variable_the_value_and_what_is_allowed(
    variable: str, value: str, words: tuple[str, ...]
) -> None:
    done = run("serve", *words, **({} if words else {variable: value}))
    assert f"{variable}='{value}': allowed " in one_line(done)
    assert done.stdout == ""


def test_a_port_in_use_is_one_line(data: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("serve", "--data-dir", str(data), "--port", port, SSE_PG_LOG_LEVEL="error")
        assert f"127.0.0.1:{port}" in one_line(done)
    assert left_behind(data) == []


def test_an_unavailable_database_is_one_line() -> None:
    for words in (("serve",), ("migrate",)):
        line = one_line(run(*words, DATABASE_URL="postgresql://nobody@127.0.0.1:1/x", SSE_PG_LOG_LEVEL="error"))
        assert "cannot be reached" in line
        assert "127.0.0.1" in line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_json_logs_have_no_plain_lines(empty_database_url: str, workers: str) -> None:
    with process(
        "serve", "--port", "0", "--workers", workers, DATABASE_URL=empty_database_url, SSE_PG_LOG_FORMAT="json"
    ) as server:
        server.line("listens on http://", err=True)
        server.line("applied migration", err=True)
        assert server.end() == 0
        said = [json.loads(line)["message"] for line in server.err]
        assert server.out == []
        assert any(line.startswith("open: no tokens") for line in said), said


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_variable_that_is_no_setting_is_logged_once(database_url: str, workers: str) -> None:
    colour = {"SSE_PG_COLOUR": "red", "SSE_PG_SECRET": "x" * 40, "SSE_PG_OPEN": "true"}
    with process("serve", "--port", "0", "--workers", workers, DATABASE_URL=database_url, **colour) as server:
        server.url()
        assert server.end() == 0
        for name in ("SSE_PG_COLOUR", "SSE_PG_SECRET"):
            assert sum(f"{name} is not a setting" in line for line in server.err) == 1, server.err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_secret_under_a_wrong_name_starts_no_server(workers: str) -> None:
    done = run("serve", "--workers", workers, SSE_PG_SECRET="x" * 40, SSE_PG_LOG_LEVEL="error")
    assert "did you mean SSE_PG_TOKEN_SECRET?" in one_line(done)
    assert "x" * 40 not in done.stderr


@pytest.mark.parametrize("words", [("migrate",), ("publish", "a", "1"), ("history", "a"), ("purge",)])
def test_other_commands_report_a_variable_that_is_no_setting(database_url: str, words: tuple[str, ...]) -> None:
    done = run(*words, DATABASE_URL=database_url, SSE_PG_COLOUR="red", SSE_PG_SECRET="x" * 40)
    assert done.returncode == 0, done.stderr
    for name in ("SSE_PG_COLOUR", "SSE_PG_SECRET"):
        assert f"sse-pg: {name} is not a setting and has no effect; " in done.stderr


@pytest.mark.parametrize("wrong", [{"PORT": "http"}, {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}])
def test_json_logs_have_the_error_that_ends_the_start(wrong: dict[str, str]) -> None:
    done = run("serve", SSE_PG_LOG_FORMAT="json", **wrong)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, json.loads(line)["level"], done.stdout) == (1, "error", "")


def test_only_debug_shows_a_traceback() -> None:
    for words in (("--debug", "migrate"), ("migrate", "--debug")):
        done = run(*words, DATABASE_URL="postgresql://nobody@127.0.0.1:1/x")
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "MigrationError" in done.stderr


@pytest.mark.parametrize(
    "words", [("bogus",), ("publish",), ("serve", "--port", "http"), ("history", "a", "--limit", "0")]
)
def test_usage_errors_are_one_line_with_code_2(words: tuple[str, ...]) -> None:
    assert "--help" in one_line(run(*words), 2)


def test_help_and_version() -> None:
    assert "serve" in run("--help").stdout
    assert run("-h").returncode == 0
    assert run("--version").stdout.startswith("sse-pg, version ")


# ---- the embedded PostgreSQL


@pytest.mark.long
def test_serve_starts_and_stops_its_own_postgresql(data: Path) -> None:
    with process("serve", "--port", "0", SSE_PG_DATA_DIR=str(data)) as server:
        url = server.url()
        where = server.line(r"^PostgreSQL (\d+) .* with its data in (.*)$")
        assert where[2] == str(data)
        assert "psql" in server.line("^reach it with: (.*)$")[1]
        second = run("serve", "--port", "0", SSE_PG_DATA_DIR=str(data))
        assert f"{data} is in use by process {server.popen.pid}" in one_line(second)
        assert run("publish", "a", '"x"', SSE_PG_DATA_DIR=str(data)).stdout == "1\n"
        assert get(f"{url}/api/events/history?channel=a")[1]["events"][0]["payload"] == "x"  # type: ignore[index]
        assert server.end() == 0
    assert running(data) is None
    assert left_behind(data) == []
    with process("serve", "--port", "0", SSE_PG_DATA_DIR=str(data)) as server:
        server.url()
        assert "applied migration" not in "".join(server.out)
        assert run("history", "a", SSE_PG_DATA_DIR=str(data)).stdout.count("\n") == 1
        assert server.end(signal.SIGINT) == 0
    assert left_behind(data) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@BOTH
@pytest.mark.long
@pytest.mark.parametrize("moment", ["initdb", "postgres", "database", "migration", "server"])
def test_a_signal_during_the_start_leaves_nothing(data: Path, moment: str, number: signal.Signals) -> None:
    moments = {
        "initdb": lambda: any("initdb" in words for words in left_behind(data) if " serve " not in words),
        "postgres": lambda: list(data.glob("postgres-*/postmaster.pid")),
        "database": lambda: running(data),
        "migration": lambda: any("reach it" in line for line in server.out),
        "server": lambda: any("listens on" in line for line in server.out),
    }
    with process("serve", "--port", "0", "--data-dir", str(data), SSE_PG_LOG_LEVEL="error") as server:
        wait_for(moments[moment], moment)
        assert server.end(number) == 0
        # Without waiting: every process has ended by now.
        assert left_behind(data) == []
        assert server.err == []
    # What was created so far can be used.
    assert run("migrate", "--data-dir", str(data)).returncode == 0


@BOTH
@pytest.mark.long
def test_a_signal_twice_does_not_leave_the_database_running(data: Path, number: signal.Signals) -> None:
    with process("serve", "--port", "0", "--data-dir", str(data), SSE_PG_LOG_LEVEL="error") as server:
        server.url()
        for _ in range(5):
            server.popen.send_signal(number)
        assert server.wait() == 0
        assert left_behind(data) == []
        assert server.err == []


@BOTH
def test_a_signal_ends_a_migration_that_waits(empty_database_url: str, number: signal.Signals) -> None:
    """Another session holds the lock of the migrations; a signal ends the wait for it."""
    run("migrate", DATABASE_URL=empty_database_url)
    with psycopg.connect(empty_database_url) as other, psycopg.connect(empty_database_url, autocommit=True) as looker:
        other.execute("LOCK TABLE sse_pg.migrations")
        with (
            process("serve", "--port", "0", DATABASE_URL=empty_database_url, SSE_PG_LOG_LEVEL="error") as server,
            process("migrate", DATABASE_URL=empty_database_url) as migration,
        ):
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            wait_for(lambda: looker.execute(waiting).fetchone() == (2,), "the wait")
            assert server.end(number) == 0
            assert migration.end(number) == 128 + number
            assert server.err + migration.err == []


@BOTH
def test_a_signal_ends_open_streams(database_url: str, number: signal.Signals) -> None:
    with process("serve", "--port", "0", DATABASE_URL=database_url, SSE_PG_DRAIN_SECONDS="0") as server:
        url = server.url()
        with urllib.request.urlopen(f"{url}/api/events/stream?channels=a", timeout=20) as stream:
            assert b"sse-pg.hello" in stream.readline() + stream.readline() + stream.readline()
            assert server.end(number) == 0
            stream.read()
        assert not any("Traceback" in line for line in server.err)


#: What libpq would take from the environment in addition to the URL of the embedded server, or instead of it.
LIBPQ = {
    "PGHOSTADDR": "127.0.0.1",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGPASSWORD": "secret",
    "PGPASSFILE": "/nowhere",
    "PGSERVICEFILE": "/nowhere",
    "PGOPTIONS": "-c no_such_setting=1",
    "PGTZ": "Nowhere/Nowhere",
    "PGDATESTYLE": "nonsense",
    "PGCLIENTENCODING": "nonsense",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGCHANNELBINDING": "require",
    "PGGSSENCMODE": "require",
    "PGSSLMODE": "verify-full",
    "PGTARGETSESSIONATTRS": "standby",
    "PGDATA": "/nowhere",
}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_embedded_server_takes_nothing_from_libpq_s_environment(data: Path, workers: str) -> None:
    here = {**LIBPQ, "SSE_PG_DATA_DIR": str(data)}
    with process("serve", "--port", "0", "--workers", workers, **here) as server:
        url = server.url()
        assert run("publish", "a", "1", **here).stdout == "1\n"
        assert run("history", "a", **here).stdout.count("\n") == 1
        assert "error" not in run("doctor", **here).stdout
        assert get(f"{url}/api/events/history?channel=a")[1]["events"][0]["payload"] == 1  # type: ignore[index]
        assert server.end() == 0
    assert left_behind(data) == []


# ---- systemd


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_a_service_manager_hears_that_the_server_listens(
    database_url: str, tmp_path: Path, kind: str, workers: str
) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name if kind == "file" else f"\0{name}")
        manager.settimeout(PROCESS_TIMEOUT_S)
        variable = name if kind == "file" else f"@{name}"
        with process(
            "serve", "--port", "0", "--workers", workers, DATABASE_URL=database_url, NOTIFY_SOCKET=variable
        ) as server:
            state, url = manager.recv(1000).decode().split("\nSTATUS=listens on ")
            assert state == "READY=1"
            assert get(f"{url}/healthz")[0] == 200
            server.popen.send_signal(signal.SIGTERM)
            assert server.wait() == 0
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody else speaks for the server
            manager.recv(1000)
