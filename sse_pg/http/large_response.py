"""Responses of several megabytes: sent at the speed of the client, and counted until it has them."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

#: Bytes that are handed to the connection before the client has to read.
PART_BYTES = 65536
#: A client that reads nothing of a response for this long is cut off.
STALL_TIMEOUT_S = 60.0


class LargeResponse(web.Response):
    """A response whose body goes out in parts.

    aiohttp would hand all of the body to the connection at once, and end the request: a client that does not read would
    hold that memory for as long as it likes, and nobody would count it.
    """

    def __init__(self, request: web.Request, body: bytes, **kwargs: Any) -> None:
        super().__init__(body=body, **kwargs)
        self._request = request
        self._whole = body

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the body. Raises ConnectionResetError if the client reads nothing for too long."""
        if self._request.method == "HEAD" or len(self._whole) <= PART_BYTES:
            await super().write_eof(data)
            return
        for start in range(0, len(self._whole), PART_BYTES):
            try:
                async with asyncio.timeout(STALL_TIMEOUT_S):
                    await self.write(self._whole[start : start + PART_BYTES])
            except TimeoutError:
                if self._request.transport is not None:
                    self._request.transport.abort()
                raise ConnectionResetError("the client does not read the response") from None
        await web.StreamResponse.write_eof(self)
