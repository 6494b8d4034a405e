"""The lines of a file or pipe for ``sse-pg publish``, in batches. A line of a slow pipe is returned when it arrives."""

from __future__ import annotations

import asyncio
import os
import stat
from collections import deque
from collections.abc import AsyncIterator

from sse_pg.errors import EventRefused

#: The byte order mark that some programs write at the beginning of a file. JSON has none (RFC 8259, section 8.1).
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Maximum number and size of the lines that are published in one transaction.
MAX_BATCH_LINES = 1000
MAX_BATCH_BYTES = 1048576
READ_BYTES = 262144


class Lines:
    """The lines of a file descriptor. They are read without a thread, which could not be stopped while it waits."""

    def __init__(self, descriptor: int, max_line_bytes: int) -> None:
        self._descriptor = descriptor
        self._max_line_bytes = max_line_bytes
        self._ready: deque[bytes] = deque()
        self._rest = b""
        self._number = 0
        self._stopped = False
        self._waiting: asyncio.Future[None] | None = None
        self.bytes_read = 0

    def total_bytes(self) -> int | None:
        """Return the size of a regular file, or None for anything else."""
        found = os.fstat(self._descriptor)
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def stop(self) -> None:
        """End batches() after the current batch."""
        self._stopped = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def batches(self) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Yield lists of numbered lines, without line ends. Blank lines count, but are left out."""
        ended = False
        while not self._stopped and (self._ready or not ended):
            if not self._ready:
                ended = not await self._fill()
                continue
            batch: list[tuple[int, bytes]] = []
            size = 0
            while self._ready and len(batch) < MAX_BATCH_LINES and size < MAX_BATCH_BYTES:
                line = self._ready.popleft()
                self._number += 1
                if self._number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
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
            return True  # another reader of the same pipe was first
        self.bytes_read += len(data)
        if not data:
            if self._rest:
                self._ready.append(self._rest)
                self._rest = b""
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._ready.extend(line.removesuffix(b"\r") for line in lines)
        if len(self._rest) > self._max_line_bytes:
            number = self._number + len(self._ready) + 1
            raise EventRefused(f"line {number} is longer than {self._max_line_bytes} bytes; is this one event a line?")
        return True

    async def _readable(self) -> None:
        """Wait until a read would not block."""
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        try:
            loop.add_reader(self._descriptor, self._wake)
        except PermissionError:
            return  # a regular file never blocks, and cannot be waited for
        try:
            await self._waiting
        finally:
            loop.remove_reader(self._descriptor)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
