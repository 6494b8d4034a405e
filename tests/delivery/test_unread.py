"""The bound of what all clients together have not read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

import psycopg
import pytest
from support.client import SMALL_BUFFER, Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.unread import Unread


@dataclass(eq=False)
class Buffer:
    """A stream, as far as its write buffer is concerned."""

    size: int = 0
    reason: EndReason | None = None
    measured: int = 0

    @property
    def transport(self) -> asyncio.Transport:
        return cast("asyncio.Transport", self)

    def get_write_buffer_size(self) -> int:
        self.measured += 1
        return self.size

    def end(self, reason: EndReason) -> None:
        self.reason = reason


def note(unread: Unread, buffer: Buffer, size: int) -> None:
    """What is about to be written is not in the buffer yet."""
    unread.note(buffer, size)
    buffer.size = size


def test_the_largest_go_first() -> None:
    unread = Unread(1600)
    buffers = [Buffer() for _ in range(5)]
    for buffer, size in zip(buffers, (100, 500, 300, 600, 50), strict=True):
        note(unread, buffer, size)
    assert unread.bytes == 1550
    assert all(buffer.reason is None for buffer in buffers)
    note(unread, buffers[4], 200)
    assert [buffer.reason for buffer in buffers] == [None, None, None, EndReason.SLOW, None]
    assert unread.bytes == 100 + 500 + 300 + 200


def test_the_one_that_is_written_to_may_be_the_largest() -> None:
    unread = Unread(1600)
    small, large = Buffer(), Buffer()
    note(unread, small, 100)
    note(unread, large, 1700)
    assert (small.reason, large.reason) == (None, EndReason.SLOW)
    assert unread.bytes == 100


def test_buffers_that_have_shrunk_are_measured_first() -> None:
    unread = Unread(1600)
    buffers = [Buffer() for _ in range(4)]
    for buffer in buffers:
        note(unread, buffer, 400)
    for buffer in buffers[1:]:
        buffer.size = 10
    note(unread, buffers[0], 500)
    assert all(buffer.reason is None for buffer in buffers)
    assert unread.bytes == 500 + 3 * 10
    for buffer in buffers:
        unread.forget(buffer)
    assert unread.bytes == 0


def test_buffers_are_seldom_measured() -> None:
    """Not at each write, even if the clients together stay close to the limit."""
    unread = Unread(160_000)
    buffers = [Buffer() for _ in range(1000)]
    for turn in range(200):
        for buffer in buffers:
            if buffer.reason is None:
                note(unread, buffer, 150 + turn % 2)
                buffer.size = 149
    assert unread.bytes <= 160_000
    assert all(buffer.reason is None for buffer in buffers)
    assert max(buffer.measured for buffer in buffers) <= 40


async def test_clients_that_read_nothing_are_cut_off_before_they_have_their_limit(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have 100 MB, all together 4 MB. One that reads gets everything."""
    server = await launch(stream_buffer=100_000_000, unread=4_000_000)
    unread = server.bus.hub.ledger.unread
    most = 0
    async with (
        Client(server.url) as client,
        client.stream("a") as reader,
        Client(server.url, receive_buffer=SMALL_BUFFER) as deaf,
    ):
        idle = [deaf.stream("a") for _ in range(6)]
        for stream in idle:
            await stream.__aenter__()
        await eventually(lambda: sum(stream.live for stream in server.bus.hub.streams) == 7)
        n = 0
        while server.bus.hub.closed[EndReason.SLOW] < 6:
            n += 1
            db.execute("INSERT INTO sse_pg.events (channel, payload) VALUES ('a', to_jsonb(repeat('x', 900000)))")
            assert (await reader.event()).id == str(n)
            most = max(most, sum(stream.transport.get_write_buffer_size() for stream in server.bus.hub.streams))
            assert n < 200
        assert most <= 4_000_000
        await eventually(lambda: unread.bytes == 0)
        for stream in idle:
            await stream.__aexit__(None, None, None)
