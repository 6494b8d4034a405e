"""``sse-pg doctor`` as a process."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
from pathlib import Path

import psycopg
from support.process import SSE_PG, environment, one_line, process, run
from support.server import Launcher


def test_warnings_alone_are_no_failure(database_url: str) -> None:
    done = run("doctor", DATABASE_URL=database_url, SSE_PG_HEARTBEAT_SECONDS="90")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("warning   settings: SSE_PG_HEARTBEAT_SECONDS=90:")
    assert lines[1].startswith("          fix: ")
    assert lines[-1].endswith("ok")
    assert "error" not in lines[-1]


def test_an_error_is_exit_code_1_until_it_is_fixed(database_url: str, db: psycopg.Connection) -> None:
    db.execute("ALTER SEQUENCE sse_pg.events_id_seq CACHE 10")
    done = run("doctor", DATABASE_URL=database_url)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    (place,) = [n for n, line in enumerate(lines) if line.startswith("error     sequence: ")]
    assert lines[-1].startswith("1 error, ")
    statement = lines[place + 2].removeprefix("          sql: ")
    db.execute(statement.encode())
    assert run("doctor", DATABASE_URL=database_url).returncode == 0


def test_json_for_programs(database_url: str, db: psycopg.Connection) -> None:
    db.execute("ALTER TABLE sse_pg.events DISABLE TRIGGER announce")
    done = run("doctor", "--json", DATABASE_URL=database_url)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["counts"]["error"] == 1
    (finding,) = [finding for finding in report["findings"] if finding["state"] == "error"]
    assert set(finding) == {"name", "state", "found", "fix", "sql"}
    assert finding["name"] == "triggers"
    for statement in finding["sql"]:
        db.execute(statement)
    assert json.loads(run("doctor", "--json", DATABASE_URL=database_url).stdout)["counts"].get("error") is None


def test_the_age_of_old_transactions_can_be_set(database_url: str) -> None:
    with psycopg.connect(database_url) as publisher:
        publisher.execute("SELECT sse_pg.publish('a', 't', '1')")
        assert "publishers: pid" in run("doctor", "--old", "0", DATABASE_URL=database_url).stdout
        assert "publishers: 1 open" in run("doctor", DATABASE_URL=database_url).stdout


def test_colours_on_a_terminal(database_url: str) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*SSE_PG, "doctor"],
        stdout=theirs,
        env=environment(DATABASE_URL=database_url, TERM="xterm", COLUMNS="80", SSE_PG_HEARTBEAT_SECONDS="90"),
        cwd="/",
    ) as shown:
        os.close(theirs)
        text = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:
                break
            if not more:
                break
            text += more
    os.close(ours)
    assert shown.returncode == 0
    assert b"\x1b[" in text
    assert b"warning" in text


def test_the_embedded_server_is_found(tmp_path: Path) -> None:
    data = tmp_path / "data"
    os.chmod(tmp_path, 0o755)
    line = one_line(run("doctor", SSE_PG_DATA_DIR=str(data)))
    assert "sse-pg serve" in line


def test_usage(database_url: str) -> None:
    assert "NAME:VALUE" in one_line(run("doctor", "--header", "x", DATABASE_URL=database_url), 2)
    one_line(run("doctor", "--header", "A:b\nc", DATABASE_URL=database_url), 2)
    one_line(run("doctor", "--wait", "-1", DATABASE_URL=database_url), 2)


def test_a_server_behind_its_address(database_url: str) -> None:
    with process("serve", "--port", "0", DATABASE_URL=database_url, SSE_PG_HEARTBEAT_SECONDS="0.2") as server:
        url = server.url()
        done = run("doctor", "--url", url, "--wait", "1", "--header", "X-Any: 1", DATABASE_URL=database_url)
        assert done.returncode == 0, done.stdout
        for line in ("ok        servers: 1 up", "ok        buffering: ", "ok        resume: ", "ok        quiet: "):
            assert line in done.stdout


async def test_a_url_alone_needs_no_database(launch: Launcher, tmp_path: Path) -> None:
    server = await launch(heartbeat=0.1)
    command = [*SSE_PG, "doctor", "--url", server.url, "--wait", "1"]
    shown = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, env=environment(SSE_PG_DATA_DIR=str(tmp_path / "none")), cwd="/"
    )
    out, _ = await shown.communicate()
    assert shown.returncode == 0
    assert out.decode().splitlines()[-1] == "6 ok"
