"""``sse-pg publish`` as a process: one event, lines, slow pipes, refusals, the bar on a terminal, signals."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import IO

import psycopg
import pytest
from support.process import SSE_PG, environment, one_line, process, run
from support.waiting import wait_for


def stored(db: psycopg.Connection) -> list[object]:
    return [row[0] for row in db.execute("SELECT payload FROM sse_pg.events ORDER BY id")]


# ---- one event


def test_one_event_prints_its_id(database_url: str, db: psycopg.Connection) -> None:
    done = run("publish", "orders", '{"n": 1}', "--type", "PLACED", DATABASE_URL=database_url)
    assert (done.returncode, done.stderr) == (0, "")
    rows = db.execute("SELECT id::text, channel, event_type, payload FROM sse_pg.events").fetchall()
    assert rows == [(done.stdout.strip(), "orders", "PLACED", {"n": 1})]


def test_a_key_publishes_once(database_url: str, db: psycopg.Connection) -> None:
    first = run("publish", "a", "1", "--key", "k", DATABASE_URL=database_url)
    again = run("publish", "a", "1", "--key", "k", DATABASE_URL=database_url)
    assert first.stdout == again.stdout != ""
    assert stored(db) == [1]
    assert "key" in one_line(run("publish", "a", "2", "--key", "k", DATABASE_URL=database_url))
    assert "--key" in one_line(run("publish", "a", "--key", "k", DATABASE_URL=database_url), 2)


def test_headers(database_url: str, db: psycopg.Connection) -> None:
    words = ("--header", "tenant=north", "--header", "query=a=b", "--header", "empty=")
    assert run("publish", "a", "1", *words, DATABASE_URL=database_url).returncode == 0
    assert run("publish", "a", *words, DATABASE_URL=database_url, stdin="2\n3\n").returncode == 0
    headers = {"tenant": "north", "query": "a=b", "empty": ""}
    assert db.execute("SELECT headers FROM sse_pg.events").fetchall() == [(headers,)] * 3
    for bad in ("tenant", "=north", "a=\udcff"):
        assert "--header" in one_line(run("publish", "a", "1", "--header", bad, DATABASE_URL=database_url), 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("a", "hello"), "--text"),
        (("a", "{"), "not JSON"),
        (("a b", "1"), "channel"),
        (("\udcff", "1"), "channel"),
        (("a", "1", "--type", "\udcff"), "event"),
        (("a", "1", "--key", "\udcff"), "key"),
        (("a", '"\udcff"'), "UTF-8"),
        (("", "1"), "channel"),
        (("a", "1", "--type", ""), "event"),
        (("a", '"' + "x" * 2000 + '"'), "at most 1000"),
        (("a", r'"\u0000"'), "u0000"),
    ],
)
def test_what_cannot_be_published_is_one_line(
    database_url: str, db: psycopg.Connection, words: tuple[str, ...], says: str
) -> None:
    done = run("publish", *words, DATABASE_URL=database_url, SSE_PG_MAX_PAYLOAD_BYTES="1000")
    assert says in one_line(done)
    assert stored(db) == []


def test_text_makes_a_string_of_what_is_not_json(database_url: str, db: psycopg.Connection) -> None:
    for word in ("hello", "[1]", ""):
        assert run("publish", "a", word, "--text", DATABASE_URL=database_url).returncode == 0
    assert stored(db) == ["hello", [1], ""]


def test_an_unavailable_database_is_one_line() -> None:
    away = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x", "SSE_PG_POOL_TIMEOUT_SECONDS": "1"}
    one_line(run("publish", "a", "1", **away))
    one_line(run("publish", "a", stdin="1\n", **away))


def test_no_server_says_how_to_start_one(tmp_path: Path) -> None:
    assert "sse-pg serve" in one_line(run("publish", "a", "1", SSE_PG_DATA_DIR=str(tmp_path)))


# ---- lines


def test_lines_are_events_in_order(database_url: str, db: psycopg.Connection) -> None:
    done = run("publish", "a", "-", stdin="1\n\n \t\n2\r\n[3]", DATABASE_URL=database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert stored(db) == [1, 2, [3]]
    assert done.stdout.split() == [str(row[0]) for row in db.execute("SELECT id FROM sse_pg.events ORDER BY id")]


def test_many_lines_from_a_file(database_url: str, db: psycopg.Connection, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("".join(f'{{"n": {n}, "pad": "{"x" * 100}"}}\n' for n in range(12345)))
    with file.open("rb") as source, process("publish", "a", stdin=source, DATABASE_URL=database_url) as command:
        assert command.wait() == 0, command.err
        assert len(set(command.out)) == 12345
    assert db.execute("SELECT count(*), max((payload->>'n')::int) FROM sse_pg.events").fetchone() == (12345, 12344)


@pytest.mark.parametrize("text", [[], ["--text"]])
def test_a_byte_order_mark_is_no_part_of_the_first_line(
    database_url: str, db: psycopg.Connection, text: list[str]
) -> None:
    """Some programs write one at the beginning of a file."""
    done = run("publish", "a", *text, stdin=b"\xef\xbb\xbf[1]\n2\n", DATABASE_URL=database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert run("publish", "a", '\ufeff{"n": 3}', *text, DATABASE_URL=database_url).returncode == 0
    assert run("publish", "a", *text, stdin=b"\xef\xbb\xbf\n4\n", DATABASE_URL=database_url).returncode == 0
    assert stored(db) == [[1], 2, {"n": 3}, 4]


def test_numbers_are_what_the_table_takes(database_url: str, db: psycopg.Connection) -> None:
    """As over HTTP: a double cannot hold 1e309, but PostgreSQL can; very long numbers are refused."""
    assert run("publish", "a", "1e309", DATABASE_URL=database_url).returncode == 0
    assert db.execute("SELECT payload = '1e309' FROM sse_pg.events").fetchall() == [(True,)]
    for bad in ("1e500", '{"n": [1e131071]}', "1" * 401):
        assert "more than 400 digits" in one_line(run("publish", "a", bad, DATABASE_URL=database_url))
        assert "line 1: " in one_line(run("publish", "a", stdin=bad + "\n", DATABASE_URL=database_url))
    assert run("publish", "a", '"1e500"', DATABASE_URL=database_url).returncode == 0


def test_empty_stdin_publishes_nothing(database_url: str) -> None:
    done = run("publish", "a", DATABASE_URL=database_url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_text_lines(database_url: str, db: psycopg.Connection) -> None:
    done = run("publish", "log", "--text", stdin=b"a \xff\x00 line\n{}\n", DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    assert stored(db) == ["a \ufffd\u2400 line", {}]


def unread(pipe: IO[bytes]) -> int:
    """Return how many bytes are in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_each_line_of_a_slow_pipe_is_published_when_it_arrives(database_url: str, db: psycopg.Connection) -> None:
    with process("publish", "a", stdin=subprocess.PIPE, DATABASE_URL=database_url) as command:
        pipe = command.popen.stdin
        assert pipe
        for n in (1, 2, 3):
            pipe.write(b"%d\n" % n)
            pipe.flush()
            assert len(command.lines(n)) == n
            assert stored(db)[-1] == n
        pipe.write(b'"not finis')
        pipe.flush()
        # Publishing it before its end would be an error, because half of a line is not JSON.
        wait_for(lambda: unread(pipe) == 0, "the command's read")
        pipe.write(b'hed"')
        pipe.close()
        assert command.wait() == 0
    assert stored(db) == [1, 2, 3, "not finished"]


@pytest.mark.parametrize("bad", ["{", r'"\u0000"', '"' + "x" * 2000 + '"', "x" * 5000])
def test_a_bad_line_is_named_and_those_before_it_are_published(
    database_url: str, db: psycopg.Connection, bad: str
) -> None:
    lines = f"1\n\n2\n{bad}\n3\n"
    done = run("publish", "a", stdin=lines, DATABASE_URL=database_url, SSE_PG_MAX_PAYLOAD_BYTES="1000")
    line = one_line(done)
    assert "line 4" in line
    assert "events published before it: 2" in line
    assert stored(db) == [1, 2]
    assert len(done.stdout.split()) == 2


def test_no_line_is_blamed_if_the_table_refuses_only_several_together(
    database_url: str, db: psycopg.Connection
) -> None:
    db.execute(
        "CREATE FUNCTION at_most_two() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF (SELECT count(*) FROM added) > 2 THEN RAISE 'at most two'; END IF; RETURN NULL; END $$"
    )
    db.execute(
        "CREATE TRIGGER at_most_two AFTER INSERT ON sse_pg.events REFERENCING NEW TABLE AS added"
        " FOR EACH STATEMENT EXECUTE FUNCTION at_most_two()"
    )
    line = one_line(run("publish", "a", stdin="1\n\n2\n3\n", DATABASE_URL=database_url))
    assert "one of the lines 1 to 4" in line
    assert "at most two" in line
    assert "events published before it: 0" in line
    assert stored(db) == []


def test_a_line_without_an_end_does_not_fill_the_memory(database_url: str, db: psycopg.Connection) -> None:
    done = run("publish", "a", stdin="1\n" + "x" * 3_000_000, DATABASE_URL=database_url)
    assert "line 2 " in one_line(done)
    assert stored(db) == [1]


def test_a_closed_stdin_is_one_line(database_url: str) -> None:
    shell = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&-', "sh", *SSE_PG, "publish", "a"],
        env=environment(DATABASE_URL=database_url), cwd="/", capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    one_line(shell, 2)


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_line(database_url: str, db: psycopg.Connection, number: signal.Signals) -> None:
    with process("publish", "a", stdin=subprocess.PIPE, DATABASE_URL=database_url) as command:
        assert command.popen.stdin
        command.popen.stdin.write(b'1\n"half')
        command.popen.stdin.flush()
        command.lines(1)
        assert command.end(number) == 128 + number
        assert command.err == []
    assert stored(db) == [1]


# ---- the terminal


def on_a_terminal(database_url: str, lines: int, *, stdout: int | None) -> tuple[str, bytes]:
    """Publish lines with standard error, and maybe standard output, on a terminal; return what both got."""
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [*SSE_PG, "publish", "a"],
        stdin=subprocess.PIPE, stdout=theirs if stdout is None else stdout, stderr=theirs,
        env=environment(DATABASE_URL=database_url, TERM="xterm"), cwd="/",
    ) as command:  # fmt: skip
        os.close(theirs)
        assert command.stdin
        command.stdin.write(b"".join(b"%d\n" % n for n in range(lines)))
        command.stdin.close()
        with contextlib.suppress(OSError):  # the other end of a terminal that is closed
            while select.select([ours], [], [], 30)[0]:
                data = os.read(ours, 65536)
                if not data:
                    break
                shown += data
        printed = command.stdout.read() if command.stdout else b""
        assert command.wait(30) == 0
    os.close(ours)
    return shown.decode(), printed


def test_a_terminal_gets_a_bar_and_a_file_the_ids(database_url: str, db: psycopg.Connection) -> None:
    shown, printed = on_a_terminal(database_url, 2500, stdout=subprocess.PIPE)
    assert "2,500 events" in shown
    assert "/s" in shown
    assert len(printed.split()) == 2500
    assert len(stored(db)) == 2500


def test_on_one_terminal_the_ids_stand_above_the_bar(database_url: str, db: psycopg.Connection) -> None:
    shown, _ = on_a_terminal(database_url, 20, stdout=None)
    assert "20 events" in shown
    for (number,) in db.execute("SELECT id FROM sse_pg.events"):
        assert str(number) in shown


def test_typed_input_gets_a_hint_and_no_bar(database_url: str, db: psycopg.Connection) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*SSE_PG, "publish", "a"],
        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs,
        env=environment(DATABASE_URL=database_url, TERM="xterm"), cwd="/",
    ) as command:  # fmt: skip
        os.close(theirs)
        shown = b""
        while b"Ctrl-D ends" not in shown:
            assert select.select([ours], [], [], 30)[0]
            shown += os.read(ours, 65536)
        os.write(ours, b'{"a": 1}\n\x04')
        assert command.wait(30) == 0
        assert command.stdout
        assert command.stdout.read().split() == [b"1"]
        while select.select([ours], [], [], 0)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other end of a terminal that is closed
                break
    os.close(ours)
    assert "event," not in shown.decode()
    assert "events" not in shown.decode()
    assert stored(db) == [{"a": 1}]


def test_without_a_terminal_there_is_no_bar(database_url: str) -> None:
    assert run("publish", "a", stdin="1\n" * 10, DATABASE_URL=database_url).stderr == ""


def test_a_reader_that_stops_reading_is_no_error(database_url: str) -> None:
    shell = subprocess.run(
        ["/bin/sh", "-c", 'yes 1 | head -50000 | "$@" | head -1', "sh", *SSE_PG, "publish", "a"],
        env=environment(DATABASE_URL=database_url), cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert shell.stderr == ""
    assert shell.stdout.strip().isdecimal()


def test_an_outage_between_two_lines_names_the_line(database_url: str, postgres: object) -> None:
    with process(
        "publish", "a", stdin=subprocess.PIPE, DATABASE_URL=database_url, SSE_PG_POOL_TIMEOUT_SECONDS="1"
    ) as command:
        pipe = command.popen.stdin
        assert pipe
        pipe.write(b"1\n")
        pipe.flush()
        command.lines(1)
        with psycopg.connect(database_url, autocommit=True, dbname="postgres") as admin:
            name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')  # type: ignore[arg-type]
            try:
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
                pipe.write(b"2\n3\n")
                pipe.close()
                assert command.wait() == 1
            finally:
                admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')  # type: ignore[arg-type]
        wait_for(lambda: command.err)
        assert [line.startswith("sse-pg: at line 2, after 1 events: ") for line in command.err] == [True]
