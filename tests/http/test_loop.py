"""The event loop of a server: streams are served last, a few at a time."""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Iterator

import pytest

from sse_pg.http import loop as server_loop
from sse_pg.http.loop import MAX_STREAM_EVENTS, ServerLoop, ServerSelector

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [socket.socketpair() for _ in range(MAX_STREAM_EVENTS + 10)]
    yield made
    for pair in made:
        for each in pair:
            each.close()


@pytest.fixture
def selector() -> Iterator[ServerSelector]:
    made = ServerSelector()
    yield made
    made.close()


def test_streams_come_last_and_a_few_at_a_time(selector: ServerSelector, pairs: list[Pair]) -> None:
    (request, client), *streams = pairs
    for ours, theirs in streams:
        selector.register(ours.fileno(), selectors.EVENT_READ, "stream")
        selector.serve_last(ours.fileno())
        theirs.send(b"x")
    assert selector.get_key(streams[0][0].fileno()).data == "stream"
    selector.register(request.fileno(), selectors.EVENT_READ, "request")
    client.send(b"x")
    seen = set()
    while len(seen) < len(streams):
        found = selector.select(0)
        assert [key.data for key, _ in found] == ["request", *["stream"] * min(len(found) - 1, MAX_STREAM_EVENTS)]
        assert all(events == selectors.EVENT_READ for _, events in found)
        for key, _ in found[1:]:
            seen.add(key.fd)
            selector.unregister(key.fd)
    assert [key.data for key, _ in selector.select(0)] == ["request"]
    with pytest.raises(KeyError):
        selector.get_key(streams[0][0].fileno())
    with pytest.raises(KeyError):
        selector.unregister(streams[0][0].fileno())


def test_what_a_stream_waits_for_can_change(selector: ServerSelector, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    selector.serve_last(ours.fileno())  # nothing is waited for
    selector.register(ours, selectors.EVENT_READ, 1)
    selector.serve_last(ours.fileno())
    assert selector.select(0) == []
    selector.modify(ours, selectors.EVENT_READ | selectors.EVENT_WRITE, 2)
    ((key, events),) = selector.select(0)
    assert (key.data, events) == (2, selectors.EVENT_WRITE)
    theirs.close()
    ((_, events),) = selector.select(0)
    assert events == selectors.EVENT_READ | selectors.EVENT_WRITE, "the end is one for both"
    selector.modify(ours, selectors.EVENT_READ, 3)
    ((key, events),) = selector.select(0)
    assert (key.data, events) == (3, selectors.EVENT_READ)
    selector.unregister(ours)
    assert selector.select(0) == []


def test_connections_work_in_it() -> None:
    async def work() -> bytes:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, ServerLoop)
            loop.serve_last(writer.get_extra_info("socket").fileno())
            writer.write(b"x" * 10**6)  # more than fits at once, so it waits for the socket as a stream
            await writer.drain()
            assert await reader.read() == b""
            writer.close()
            ended.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        got = await reader.readexactly(10**6)
        writer.close()
        await ended.wait()
        server.close()
        return got

    assert server_loop.run(work()) == b"x" * 10**6
