"""A way to a server that can be shut: every connection through it is cut, and no new one is let in."""

from __future__ import annotations

import asyncio
import contextlib


class Gate:
    """A TCP forwarder to a port of this machine."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.shut = False
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Gate:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Reset every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        back: asyncio.StreamWriter | None = None
        try:
            if not self.shut:
                there, back = await asyncio.open_connection("127.0.0.1", self.target)
                await asyncio.wait(
                    [asyncio.create_task(_pass(reader, back)), asyncio.create_task(_pass(there, writer))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        except asyncio.CancelledError:
            pass  # StreamReaderProtocol reports a cancelled callback as an error
        finally:
            self._tasks.discard(task)
            for each in (writer, back):
                if each is not None:
                    each.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
