"""``sse-pg history`` as a process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psycopg
from support.process import SSE_PG, environment, one_line, run


def fill(db: psycopg.Connection, count: int) -> None:
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(n) FROM generate_series(1, %s) n", [count]
    )


def test_history_pages_through_everything(database_url: str, db: psycopg.Connection) -> None:
    fill(db, 1234)
    db.execute("INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('b', 'T', '{\"ä\": null}')")
    done = run("history", "a", DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["payload"] for line in done.stdout.splitlines()] == list(range(1, 1235))
    other = json.loads(run("history", "b", DATABASE_URL=database_url).stdout)
    assert set(other) == {"id", "channel", "eventType", "payload", "createdAt"}
    assert (other["eventType"], other["payload"]) == ("T", {"ä": None})


def test_history_goes_on_from_its_cursor(database_url: str, db: psycopg.Connection) -> None:
    fill(db, 10)
    seen, cursor = [], "0"
    for _ in range(4):
        done = run("history", "a", "--after", cursor, "--limit", "4", DATABASE_URL=database_url)
        assert done.stderr.startswith("next cursor: ")
        cursor = done.stderr.split()[-1]
        seen += [json.loads(line)["payload"] for line in done.stdout.splitlines()]
    assert seen == list(range(1, 11))
    fill(db, 1)
    assert run("history", "a", "--after", cursor, DATABASE_URL=database_url).stdout.count("\n") == 1


def test_history_with_the_newest_first(database_url: str, db: psycopg.Connection) -> None:
    fill(db, 1234)

    def newest(*words: str) -> list[int]:
        done = run("history", "a", "--newest", *words, DATABASE_URL=database_url)
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line)["payload"] for line in done.stdout.splitlines()]

    assert newest() == list(range(1234, 0, -1))
    assert newest("--limit", "3") == [1234, 1233, 1232]
    assert newest("--limit", "700", "--after", "600") == list(range(1234, 600, -1))
    assert newest("--limit", "501") == list(range(1234, 733, -1))


def test_history_refuses_in_one_line(database_url: str, tmp_path: Path) -> None:
    assert "--after" in one_line(run("history", "a", "--after", "soon", DATABASE_URL=database_url))
    assert "channel" in one_line(run("history", "a b", DATABASE_URL=database_url))
    assert "sse-pg serve" in one_line(run("history", "a", SSE_PG_DATA_DIR=str(tmp_path)))
    away = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x", "SSE_PG_POOL_TIMEOUT_SECONDS": "1"}
    one_line(run("history", "a", **away))


def test_history_of_a_database_without_the_schema_is_one_line(empty_database_url: str) -> None:
    one_line(run("history", "a", DATABASE_URL=empty_database_url))


def test_a_broken_pipe_is_quiet(database_url: str, db: psycopg.Connection) -> None:
    fill(db, 5000)
    shell = subprocess.run(
        ["/bin/sh", "-c", '"$@" | head -1', "sh", *SSE_PG, "history", "a"],
        env=environment(DATABASE_URL=database_url), cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert json.loads(shell.stdout)["payload"] == 1
    assert shell.stderr == ""
