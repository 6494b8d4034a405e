"""Runs the application: listens, waits for a signal, drains."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from aiohttp import web

from sse_pg.app import BUS, create_app
from sse_pg.config import Settings
from sse_pg.errors import SettingError

log = logging.getLogger(__name__)

#: Bytes of a request line and of a header: a thousand channel names fit into a URL.
MAX_LINE = 65536
#: Seconds that requests in flight get when the server stops.
LAST_REQUESTS = 10.0


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then drain. ``announce`` gets the URL once the port is open.

    Raises SettingError when the address cannot be listened on.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    app = create_app(settings)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=LAST_REQUESTS,
        max_line_size=MAX_LINE,
        max_field_size=MAX_LINE,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            raise SettingError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
        host, port = runner.addresses[0][:2]
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await stop.wait()
        log.info("stopping: %d streams end within %g s", len(app[BUS].hub.streams), settings.drain)
        # Still listening: whoever asks /readyz is told that this server stops, rather than refused.
        await app[BUS].end_streams(settings.drain)
        await site.stop()
    finally:
        await runner.cleanup()
