"""A page of the history goes out at the speed of its client, and counts until the client has it."""

from __future__ import annotations

import asyncio
import socket

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

INSERT = """
    INSERT INTO sse_pg.events (channel, payload)
    SELECT 'a', to_jsonb(repeat(chr((65 + n % 26)::int), 1000000)) FROM generate_series(1, 20) n
"""
PATH = "/api/events/history?channel=a&limit=1000"


async def _ask(url: str, head: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel would take a whole page
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
    writer.write(f"{head} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    return reader, writer


async def test_a_page_counts_until_it_is_read(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute(INSERT)
    server = await launch(max_bodies=14_000_000)
    bodies = server.bus.limits.bodies
    slow = [await _ask(server.url, f"GET {PATH}") for _ in range(2)]
    await eventually(lambda: bodies.held > 9_000_000)
    async with Client(server.url) as client:
        status, problem = await client.get(PATH)
        assert (status, problem["detail"]) == (503, "Body memory limit reached; retry later.")
        for reader, _ in slow:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            assert body.count(b'"eventType"') == 5
            assert body.endswith(b'"hasMore":true}\n')
        await eventually(lambda: bodies.held == 0)
        status, body = await client.get(PATH)
        assert (status, len(body["events"])) == (200, 5)
    for _, writer in slow:
        writer.close()


async def test_a_client_that_does_not_read_its_page_is_cut_off(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_pg.http.large_response.STALL_TIMEOUT_S", 0.2)
    db.execute(INSERT)
    server = await launch()
    reader, writer = await _ask(server.url, f"GET {PATH}")
    await eventually(lambda: server.bus.limits.bodies.held > 0)
    await eventually(lambda: server.bus.limits.bodies.held == 0)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await reader.readexactly(4_000_000 * 2)
    writer.close()


async def test_head(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute(INSERT)
    server = await launch()
    reader, writer = await _ask(server.url, f"HEAD {PATH}")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"Content-Length: 5000" in head
    writer.write(
        f"GET /healthz HTTP/1.1\r\nHost: {server.url.removeprefix('http://')}\r\nConnection: close\r\n\r\n".encode()
    )
    assert (await reader.read(2**16)).startswith(b"HTTP/1.1 200 ")
    writer.close()
