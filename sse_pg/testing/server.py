"""A server in a thread of the test process, so that it serves tests with any event loop and with none."""

from __future__ import annotations

import asyncio
import threading

from aiohttp import web

from sse_pg.app import BUS, create_app
from sse_pg.config import Settings
from sse_pg.http.connections import Site
from sse_pg.server import drain

START_TIMEOUT_S = 30.0


class ThreadServer:
    """Serves a database on a free loopback port between ``start()`` and ``stop()``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sse_pg", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._app: web.Application
        self._error: BaseException | None = None
        self.url = ""

    def start(self) -> None:
        """Return when it serves. Raises what kept it from that."""
        self._thread.start()
        self._started.wait(START_TIMEOUT_S)
        if self._error is not None:
            raise self._error
        if not self.url:
            raise TimeoutError(f"the bus did not follow its log within {START_TIMEOUT_S:g} s")

    def stop(self) -> None:
        """End its streams and close its connections."""
        if self.url:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def forget(self) -> None:
        """Forget the events in memory, after they were deleted from the log."""
        asyncio.run_coroutine_threadsafe(self._forget(), self._loop).result(START_TIMEOUT_S)

    async def _forget(self) -> None:
        bus = self._app[BUS]
        await bus.tail.fresh()
        bus.hub.begin(bus.hub.position)
        bus.replay.forget()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._app = create_app(self._settings)
        bus = self._app[BUS]
        runner = web.AppRunner(self._app, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = Site(runner, self._settings, host="127.0.0.1", port=0, streams=lambda: len(bus.hub.streams))
            await site.start()
            async with asyncio.timeout(START_TIMEOUT_S):
                await bus.tail.listening.wait()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._started.set()
            await self._stop.wait()
            await drain(runner, bus, 0)
        finally:
            await runner.cleanup()
