"""``sse-pg tail`` as a process: from a cursor, across a restart of the server, to its end."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from support.process import SSE_PG, environment, one_line, process, run
from support.proxies import certificate
from support.waiting import wait_for


def publish(db: psycopg.Connection, *payloads: object, channel: str = "a") -> None:
    for payload in payloads:
        db.execute("SELECT sse_pg.publish(%s, 'T', %s)", [channel, json.dumps(payload)])


def payloads(lines: list[str]) -> list[object]:
    return [json.loads(line)["data"] for line in lines]


def test_tail_prints_a_json_line_for_each_event(database_url: str, db: psycopg.Connection) -> None:
    publish(db, 1, {"n": "ä\n"})
    publish(db, "not this", channel="c")
    with process("serve", "--port", "0", DATABASE_URL=database_url) as server:
        url = server.url()
        with process("tail", "a", "b", "--from", "0", "--url", url) as tail:
            assert [json.loads(line) for line in tail.lines(2)] == [
                {"id": "1", "event": "T", "data": 1, "channel": "a"},
                {"id": "2", "event": "T", "data": {"n": "ä\n"}, "channel": "a"},
            ]
            publish(db, "live", channel="b")
            live = {"id": "4", "event": "T", "data": "live", "channel": "b"}
            assert json.loads(tail.lines(3)[2]) == live
            assert (tail.end(signal.SIGINT), tail.err) == (0, [])
        with process("tail", "a,b,a", "b", "--from", "2", "--url", url) as tail:
            assert json.loads(tail.lines(1)[0]) == live
            assert tail.end() == 0
        with process("tail", "a", "--from", "1", PORT=str(urlsplit(url).port)) as tail:
            assert [json.loads(line) for line in tail.lines(1)] == [{"id": "2", "event": "T", "data": {"n": "ä\n"}}]
            assert (tail.end(signal.SIGTERM), tail.err) == (0, [])


def test_tail_begins_with_the_last_events(database_url: str, db: psycopg.Connection) -> None:
    publish(db, 1, 2, 3)
    with (
        process("serve", "--port", "0", DATABASE_URL=database_url) as server,
        process("tail", "a", "--latest", "2", "--url", server.url()) as tail,
    ):
        assert payloads(tail.lines(2)) == [2, 3]
        publish(db, 4)
        assert payloads(tail.lines(3))[2] == 4
        assert tail.end() == 0
    refused = run("tail", "a", "--latest", "2", "--from", "0")
    assert (refused.returncode, "--from and --latest" in refused.stderr) == (2, True)


def test_tail_misses_nothing_while_the_server_restarts(database_url: str, db: psycopg.Connection) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = {"DATABASE_URL": database_url, "PORT": port, "SSE_PG_RETRY_MS": "50", "SSE_PG_DRAIN_SECONDS": "0"}
    with process("tail", "a", "--from", "0", PORT=port) as tail:
        tail.line("next attempt", err=True)
        for restart in range(3):
            with process("serve", **settings) as server:
                server.url()
                publish(db, 10 * restart, 10 * restart + 1)
                tail.lines(4 * restart + 2)
                assert server.end(signal.SIGKILL if restart == 1 else signal.SIGTERM) in (0, -signal.SIGKILL)
            publish(db, 10 * restart + 2, 10 * restart + 3)
        with process("serve", **settings) as server:
            server.url()
            assert payloads(tail.lines(12)) == [10 * i + j for i in range(3) for j in range(4)]
            assert tail.end() == 0
            assert not any("lost" in line for line in tail.err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_server(number: signal.Signals) -> None:
    with process("tail", "a", "--url", "http://127.0.0.1:1") as tail:
        tail.line("next attempt", err=True)
        assert tail.end(number) == 0
        assert not any("Traceback" in line for line in tail.err)


def test_tail_says_what_the_server_refuses(database_url: str) -> None:
    with process("serve", "--port", "0", DATABASE_URL=database_url) as server:
        url = server.url()
        assert "422" in one_line(run("tail", "a b", "--url", url))
        assert "404" in one_line(run("tail", "a", "--url", f"{url}/nowhere"))
        assert "http://" in one_line(run("tail", "a", "--url", "localhost:8080"), 2)
        assert "--from" in one_line(run("tail", "a", "--from", "x", "--url", url))
        one_line(run("tail", "a", "--url", "http://"))
        assert "empty" in one_line(run("tail", "a,,b", "--url", url), 2)
        one_line(run("tail", "\udcff", "--url", url), 2)
        assert "SSE_PG_TOKEN" in one_line(run("tail", "a", "--url", url, SSE_PG_TOKEN="a\nb"))
        assert "not a valid URL" in one_line(run("tail", "a", "--url", "http://127.0.0.1:99999"))


def test_tail_says_that_no_server_responds() -> None:
    with process("tail", "a", "--url", "http://127.0.0.1:1") as tail:
        assert "no server responds at 127.0.0.1:1 (Connection refused)" in tail.line("next attempt", err=True).string
        assert tail.end() == 0


def test_tail_says_what_to_do_about_a_certificate(tmp_path: Path) -> None:
    certificate(tmp_path)
    trusted = {"SSL_CERT_FILE": str(tmp_path / "bus.crt")}
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "bus.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def answer() -> None:
            with contextlib.suppress(OSError):  # the end of the test
                while True:
                    taken, _ = listening.accept()
                    with contextlib.suppress(OSError), context.wrap_socket(taken, server_side=True) as stream:
                        stream.recv(4096)
                        stream.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        server = threading.Thread(target=answer)
        server.start()
        try:
            line = one_line(run("tail", "a", "--url", f"https://localhost:{port}"))
            assert f"the certificate of localhost:{port} is not accepted (self-signed certificate): " in line
            assert "SSL_CERT_FILE" in line
            assert "127.0.0.1" in one_line(run("tail", "a", "--url", f"https://127.0.0.1:{port}", **trusted))
            assert "404" in one_line(run("tail", "a", "--url", f"https://localhost:{port}", **trusted))
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            server.join()


def test_tail_sends_a_token_and_asks_for_one_if_it_is_missing(database_url: str, db: psycopg.Connection) -> None:
    publish(db, 1)
    secret = {"SSE_PG_TOKEN_SECRET": "a secret of more than thirty-two bytes"}
    token = run("token", "--user", "7", "--subscribe", "a", **secret).stdout.strip()
    with process("serve", "--port", "0", DATABASE_URL=database_url, **secret) as server:
        url = server.url()
        assert "SSE_PG_TOKEN" in one_line(run("tail", "a", "--url", url))
        with process("tail", "a", "--from", "0", "--url", url, SSE_PG_TOKEN=token) as tail:
            assert payloads(tail.lines(1)) == [1]
            assert tail.end() == 0


def test_an_unknown_cursor_is_reported(database_url: str) -> None:
    with process("serve", "--port", "0", DATABASE_URL=database_url) as server:
        url = server.url()
        with process("tail", "a", "--from", "99999", "--url", url) as tail:
            assert "99999" in tail.line("unknown", err=True).string


def test_a_reader_that_stops_reading_ends_the_tail(database_url: str, db: psycopg.Connection) -> None:
    publish(db, *range(100))
    with process("serve", "--port", "0", DATABASE_URL=database_url) as server:
        url = server.url()
        with subprocess.Popen(
            ["/bin/sh", "-c", '"$@" | head -1', "sh", *SSE_PG, "tail", "a", "--from", "0", "--url", url],
            env=environment(), cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as shell:  # fmt: skip
            assert shell.stdout
            assert json.loads(shell.stdout.readline())["data"] == 0
            wait_for(lambda: publish(db, "more") or shell.poll() is not None)
            assert shell.stderr
            assert shell.stderr.read() == b""
