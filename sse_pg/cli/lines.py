"""The lines of a file for ``sse-pg publish``; a pipe that somebody writes to slowly gives each as it comes."""

from __future__ import annotations

import asyncio
import os
import stat
from collections import deque
from collections.abc import AsyncIterator

from sse_pg.errors import EventRefused

#: Lines of one transaction, and their bytes.
BATCH_LINES = 1000
BATCH_BYTES = 1048576
READ_BYTES = 262144


class Lines:
    """Lines of a file descriptor. No thread reads it: nothing waits for a terminal when the command is to end."""

    def __init__(self, descriptor: int, longest: int) -> None:
        self._descriptor = descriptor
        self._longest = longest
        self._ready: deque[bytes] = deque()
        self._rest = b""
        self._number = 0
        self._stopped = False
        self._waiting: asyncio.Future[None] | None = None
        self.bytes_read = 0

    def total_bytes(self) -> int | None:
        """Return how much there is to read, where the descriptor is a file."""
        found = os.fstat(self._descriptor)
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def stop(self) -> None:
        """Give no more than the batch that is under way."""
        self._stopped = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def batches(self) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Give lists of numbered lines, without their line ends; blank ones are counted, not given."""
        ended = False
        while not self._stopped and (self._ready or not ended):
            if not self._ready:
                ended = not await self._fill()
                continue
            batch: list[tuple[int, bytes]] = []
            size = 0
            while self._ready and len(batch) < BATCH_LINES and size < BATCH_BYTES:
                line = self._ready.popleft()
                self._number += 1
                size += len(line)
                if line.strip():
                    batch.append((self._number, line))
            if batch:
                yield batch

    async def _fill(self) -> bool:
        await self._readable()
        if self._stopped:
            return False
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return True  # another reader of the same pipe was faster
        self.bytes_read += len(data)
        if not data:
            if self._rest:
                self._ready.append(self._rest)
                self._rest = b""
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._ready.extend(line.removesuffix(b"\r") for line in lines)
        if len(self._rest) > self._longest:
            number = self._number + len(self._ready) + 1
            raise EventRefused(f"line {number} is longer than {self._longest} bytes; is this one event a line?")
        return True

    async def _readable(self) -> None:
        """Wait until a read does not block."""
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        try:
            loop.add_reader(self._descriptor, self._wake)
        except PermissionError:
            return  # a file never blocks, and cannot be waited for
        try:
            await self._waiting
        finally:
            loop.remove_reader(self._descriptor)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
