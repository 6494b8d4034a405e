"""Answers other than 2xx, whatever the endpoint."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import openapi
from support.client import Client

OPERATIONS = [(path, method.upper()) for path, item in openapi.document()["paths"].items() for method in item]


def is_problem(status: int, body: Any, response: Any) -> bool:
    assert response.content_type == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    return body["status"] == status and body["type"] == "about:blank" and body["title"] and body["detail"]


@pytest.mark.parametrize("path", ["/nowhere", "/api/events", "/api/events/publish/", "//healthz", "/%7Bx%7D%25/%FF"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_404(kit_client: Client, path: str, method: str) -> None:
    status, body, response = await kit_client.request(method, path)
    assert status == 404
    assert is_problem(404, body, response)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
async def test_405_names_what_is_allowed(kit_client: Client, path: str, method: str) -> None:
    there = {each for other, each in OPERATIONS if other == path}
    for other in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        if other not in there:
            status, body, response = await kit_client.request(other, path.replace("{name}", "dashboard.js"))
            assert status == 405
            assert is_problem(405, body, response)
            allowed = set(response.headers["Allow"].replace(" ", "").split(","))
            assert method in allowed
            assert other not in allowed
            assert method in body["detail"]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
async def test_head(kit_client: Client, path: str, method: str) -> None:
    """HEAD is answered as GET is, without the body; on the stream, which would not end, it is refused."""
    queries = {
        "/api/events/history": "?channel=a",
        "/api/events/channels": "?userId=u",
        "/api/events/rights": "?userId=u&channels=a",
    }
    asked = path.replace("{name}", "dashboard.js") + queries.get(path, "")
    async with kit_client.session.head(kit_client.url + asked) as response:
        status = response.status
        assert await response.read() == b""
    openapi.check("HEAD", path, status, response.content_type, None)
    if (path, "GET") in OPERATIONS and path != "/api/events/stream":
        assert status == 200
        async with kit_client.session.get(kit_client.url + asked) as get:  # not all of them are JSON
            assert (get.status, get.content_type) == (200, response.content_type)
    else:
        assert status == 405


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nBad Header: 1\r\n\r\n",
        b"GET /api/events/stream?channels=a HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1\x002\r\n\r\n",
        b"POST /api/events/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/events/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda head: ascii(head[:40]),
)
async def test_what_is_not_http_gets_4xx_and_costs_nobody_else(kit_client: Client, head: bytes) -> None:
    host, _, port = kit_client.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head)
    async with asyncio.timeout(20):
        line = await reader.readline()
    writer.close()
    assert line.split()[1] == (b"414" if len(head) > 65536 else b"400")
    status, _ = await kit_client.get("/healthz")
    assert status == 200


async def test_a_connection_serves_on_after_an_error(kit_client: Client) -> None:
    """Only what was not read to its end closes the connection."""
    host, _, port = kit_client.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"channel": "no space", "payload": 1}'
    head = b"POST /api/events/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    async with asyncio.timeout(20):
        for _ in range(3):
            writer.write(head % len(body) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 422 " in answer
            length = next(line for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(int(length.split()[1]))
    writer.close()
