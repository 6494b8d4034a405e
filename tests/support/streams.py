"""Streams, read by a parser that is written apart from the package's."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from support.waiting import TIMEOUT_S


@dataclass
class Block:
    """One block of a stream, as a strict reader sees it."""

    event: str = "message"
    data: str = ""
    id: str | None = None
    retry: int | None = None
    number: int | None = None
    """The event's own id, if the cursor does not begin with it."""
    comment: bool = False

    def json(self) -> Any:
        """Decode the data."""
        return json.loads(self.data)


def parse_block(text: str) -> Block:
    """Read one block, field by field; written apart from the package's parser on purpose."""
    block = Block()
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith(":"):
            block.comment = True
            continue
        name, _, value = line.partition(": ")
        if name == "data":
            lines.append(value)
        elif name == "id":
            block.id = value
        elif name == "event":
            block.event = value
        elif name == "retry":
            block.retry = int(value)
        elif name == "number":
            block.number = int(value)
        else:
            raise AssertionError(f"a line that is no field: {line!r}")
    block.data = "\n".join(lines)
    return block


@dataclass(eq=False)
class StreamReader:
    """An open stream."""

    response: aiohttp.ClientResponse
    hello: Block
    last_id: str = ""
    _rest: str = field(default="", repr=False)

    async def block(self) -> Block:
        """Return the next block, heartbeats and the bus's own included."""
        async with asyncio.timeout(TIMEOUT_S):
            while not (self._rest.startswith(":\n") or "\n\n" in self._rest):
                data = await self.response.content.readany()
                if not data:
                    raise EOFError("the stream ended")
                self._rest += data.decode()
        if self._rest.startswith(":\n"):
            self._rest = self._rest[2:]
            return Block(comment=True)
        text, _, self._rest = self._rest.partition("\n\n")
        block = parse_block(text)
        if block.id is not None:
            self.last_id = block.id
        return block

    async def event(self) -> Block:
        """Return the next block that is not a heartbeat or a position."""
        while True:
            block = await self.block()
            if not block.comment and block.event != "sse-pg.position":
                return block

    async def events(self, count: int) -> list[Block]:
        """Return the next ``count`` events."""
        return [await self.event() for _ in range(count)]

    async def ended(self) -> None:
        """Wait for the end of the stream."""
        try:
            while True:
                await self.block()
        except (EOFError, aiohttp.ClientError):
            return

    def close(self) -> None:
        """Drop the connection without a word."""
        self.response.close()
