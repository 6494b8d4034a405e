"""aiohttp-sse-client2: reconnects by itself only where a stream ends in good order; the loop is the caller's."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import aiohttp
from aiohttp_sse_client2.client import EventSource
from common import URL, end_with_stdin, record

SOON = timedelta(milliseconds=50)


async def main() -> None:
    last_event_id = ""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_read=60)) as session:
        while True:
            headers = {"Last-Event-Id": last_event_id} if last_event_id else {}
            try:
                async with EventSource(
                    URL, session=session, headers=headers, reconnection_time=SOON, read_bufsize=2**21
                ) as source:
                    async for event in source:
                        last_event_id = event.last_event_id
                        record(event.last_event_id, event.type, event.data)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                await asyncio.sleep(0.05)


end_with_stdin()
asyncio.run(main())
