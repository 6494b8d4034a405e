"""Clients that leave at any moment, and bodies that are broken: no error of the server, and nothing in its log."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import struct
import zlib
from typing import Any

import pytest
from support.client import Client
from support.server import Launcher, Server
from support.waiting import TIMEOUT_S, eventually

EVENT = b'{"channel": "a", "payload": "%s"}' % (b"x" * 50_000)
PUBLISH = b"POST /api/events/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
STREAM = b"GET /api/events/stream?channels=a HTTP/1.1\r\nHost: localhost\r\n"


def port(url: str) -> tuple[str, int]:
    host, _, number = url.removeprefix("http://").partition(":")
    return host, int(number)


def cut(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset, as the kernel does for a process that was killed."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def silent(caplog: pytest.LogCaptureFixture) -> bool:
    """Nothing above info was logged; asyncio's handler of lost exceptions logs, too."""
    return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


LEAVING = {
    "head": b"GET /api/ev",
    "body": PUBLISH + b"Content-Length: 1000\r\n\r\n{",
    "chunk": PUBLISH + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"cha\r\n',
    "inside a chunk": PUBLISH + b'Transfer-Encoding: chunked\r\n\r\nff\r\n{"cha',
    "gzip": PUBLISH + b"Content-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n" + gzip.compress(b"{}")[:12],
    "publish": PUBLISH + b"Content-Length: 30\r\n\r\n" + b'{"channel":"a","payload":null}',
    "stream": STREAM + b"\r\n",
    "stream of a user": STREAM.replace(b"channels=a", b"userId=u") + b"\r\n",
    "stream from the start": STREAM.replace(b"channels=a", b"channels=a&lastEventId=0") + b"\r\n",
    "wait": b"GET /api/events/stats HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("how", ["reset", "end"])
@pytest.mark.parametrize("sent", LEAVING.values(), ids=LEAVING)
async def test_a_client_that_leaves_is_no_error(
    launch: Launcher, caplog: pytest.LogCaptureFixture, sent: bytes, how: str
) -> None:
    server = await launch()
    async with Client(server.url) as client:
        for number in range(20):
            await client.publish("a", "x" * 1000)
            _, writer = await asyncio.open_connection(*port(server.url))
            writer.write(sent)
            for _ in range(number):  # it leaves at another moment each time
                await asyncio.sleep(0)
            if how == "reset":
                cut(writer)
            else:
                writer.close()
        await eventually(lambda: not server.bus.hub.streams)
        await eventually(lambda: server.bus.limits.bodies.held == 0)
        await client.publish("a", 1)
    await server.stop()
    assert silent(caplog)


# ---- bodies that are broken


def deflated(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return made.compress(data) + made.flush()


async def publish(server: Server, encoding: str, body: bytes, kind: str = "json") -> tuple[int, dict[str, str], Any]:
    """Send a body as it is, and return (status, headers, body)."""
    async with Client(server.url) as client:
        headers = {"Content-Encoding": encoding, "Content-Type": f"application/{kind}"}
        status, answer, response = await client.request("POST", "/api/events/publish", data=body, headers=headers)
        return status, dict(response.headers), answer


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
        ("deflate", zlib.compress),
        ("deflate", deflated),
        ("identity", bytes),
    ],
)
async def test_encoded_bodies(launch: Launcher, encoding: str, encode: Any) -> None:
    server = await launch()
    for size in (1, 70_000, 1_000_000):
        body = b'{"channel": "a", "payload": "%s"}' % (b"x" * size)
        assert (await publish(server, encoding, encode(body)))[0] == 201
    async with Client(server.url) as client:
        page = (await client.get("/api/events/history?channel=a"))[1]
        assert [len(event["payload"]) for event in page["events"]] == [1, 70_000, 1_000_000]


LINES = b'{"channel": "a", "payload": 1}\n' * 1000
BROKEN = {
    "truncated gzip": ("gzip", gzip.compress(LINES)[:-12]),
    "gzip without its checksum": ("gzip", gzip.compress(LINES)[:-8]),
    "wrong checksum": ("gzip", gzip.compress(LINES)[:-8] + bytes(8)),
    "not gzip": ("gzip", LINES),
    "garbage after gzip": ("gzip", gzip.compress(LINES) + b"x"),
    "empty": ("gzip", b""),
    "truncated deflate": ("deflate", zlib.compress(LINES)[:-5]),
    "truncated raw deflate": ("deflate", deflated(LINES)[:-3]),
    "not deflate": ("deflate", LINES),
    "garbage after deflate": ("deflate", zlib.compress(LINES) + b"x"),
}


@pytest.mark.parametrize(("encoding", "body"), BROKEN.values(), ids=BROKEN)
async def test_a_broken_body_publishes_nothing(
    launch: Launcher, caplog: pytest.LogCaptureFixture, encoding: str, body: bytes
) -> None:
    server = await launch()
    status, _, answer = await publish(server, encoding, body, "x-ndjson")
    assert (status, answer["detail"]) == (400, f"The body is not valid {encoding} data.")
    async with Client(server.url) as client:
        assert (await client.get("/api/events/history?channel=a"))[1]["events"] == []
    assert silent(caplog)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "nonsense"])
async def test_an_unknown_encoding_is_415(launch: Launcher, caplog: pytest.LogCaptureFixture, encoding: str) -> None:
    status, headers, answer = await publish(await launch(), encoding, LINES)
    assert (status, headers["Accept-Encoding"]) == (415, "gzip, deflate")
    assert "Content-Encoding" in answer["detail"]
    assert silent(caplog)


@pytest.mark.parametrize("chunks", [b"zz\r\n{}\r\n0\r\n\r\n", b"5\r\n{}\r\n0\r\n\r\n", b"2\r\n{}xx\r\n0\r\n\r\n"])
async def test_broken_chunks_are_400(launch: Launcher, caplog: pytest.LogCaptureFixture, chunks: bytes) -> None:
    server = await launch()
    reader, writer = await asyncio.open_connection(*port(server.url))
    writer.write(PUBLISH + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    async with asyncio.timeout(TIMEOUT_S):
        assert b" 400 " in await reader.readline()
        await reader.read()
    writer.close()
    assert silent(caplog)


async def test_a_small_body_that_becomes_a_large_one(launch: Launcher) -> None:
    server = await launch(max_body=1_000_000)
    assert (await publish(server, "gzip", gzip.compress(bytes(100_000_000))))[0] == 413
    await eventually(lambda: server.bus.limits.bodies.held == 0)


# ---- heads


WRONG = b"\xff\xfe\x80"


@pytest.mark.parametrize(
    "name",
    [b"Origin", b"Host", b"Authorization", b"Cookie", b"Accept", b"Last-Event-ID", b"Content-Type", b"X-Forwarded-For",
     b"Content-Encoding", b"Sec-Fetch-Site", b"X-Forwarded-Proto", b"Access-Control-Request-Method", b"If-None-Match",
     b"Expect", b"Upgrade", b"Range", b"traceparent"],
)  # fmt: skip
@pytest.mark.parametrize("keys", [{}, {"token_secret": "s" * 32}, {"cors_origins": "https://app.example"}], ids=str)
async def test_a_header_that_is_not_utf_8(
    launch: Launcher, caplog: pytest.LogCaptureFixture, name: bytes, keys: dict[str, str]
) -> None:
    server = await launch(**keys, trusted_proxies="127.0.0.1")
    for line in (
        b"GET /api/events/stats",
        b"GET /api/events/history?channel=a",
        b"GET /nowhere",
        b"GET /docs",
        b"OPTIONS /api/events/publish",
        b"POST /api/events/publish",
        b"DELETE /api/events/session",
    ):
        reader, writer = await asyncio.open_connection(*port(server.url))
        head = line + b" HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n" + name + b": "
        writer.write(head + WRONG + (b"" if name == b"Host" else b"\r\nHost: localhost") + b"\r\n\r\n")
        async with asyncio.timeout(TIMEOUT_S):
            answer = await reader.read()
        writer.close()
        status = int(answer.split()[1])
        assert status < 500, answer
        assert status < 400 or b"Content-Type: application/problem+json" in answer
    assert silent(caplog)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /api/events/publish HTTP/1.1\r\nHost: localhost\r\nExpect: 200-ok\r\nContent-Length: 2\r\n\r\n{}", 417),
        (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\n\r\n", 417),
        (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"PATCH /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"GET\r\n\r\n", 400),
        (b"G@T / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/7.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1 x\r\n\r\n", 400),
        (b"GET \xff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400),
        (b"GET /%zz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400),
        (b"GET //:x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", 400),
    ],
)
async def test_every_error_is_a_problem_document(
    launch: Launcher, caplog: pytest.LogCaptureFixture, sent: bytes, status: int
) -> None:
    server = await launch()
    reader, writer = await asyncio.open_connection(*port(server.url))
    writer.write(sent)
    async with asyncio.timeout(TIMEOUT_S):
        answer = await reader.read()
    writer.close()
    assert int(answer.split()[1]) == status
    assert b"Content-Type: application/problem+json" in answer
    assert silent(caplog)


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        (b"/api/events/history?channel=m\xc3\xbcnchen", "The URL contains characters that have to be percent-encoded."),
        (b"/m\xc3\xbcnchen", "The URL contains characters that have to be percent-encoded."),
        (b"/api/events/history?channel=\xff", "The URL contains characters that have to be percent-encoded."),
        (b"/api/events/history?channel=%FF", "channel: not valid UTF-8"),
        (b"/api/events/history?channel=a&eventType=%FF", "eventType: not valid UTF-8"),
        (b"/api/events/stream?channels=a,b%FF", "channels: not valid UTF-8"),
        (b"/api/events/channels?userId=a%C3", "userId: not valid UTF-8"),
    ],
)
async def test_a_url_that_is_not_encoded(launch: Launcher, path: bytes, detail: str) -> None:
    server = await launch()
    reader, writer = await asyncio.open_connection(*port(server.url))
    writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(TIMEOUT_S):
        answer = await reader.read()
    writer.close()
    assert int(answer.split()[1]) == (422 if b"%" in path else 400)
    assert detail.encode() in answer
