"""Servers in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from sse_pg.app import BUS, create_app
from sse_pg.bus import Bus
from sse_pg.config import Settings
from sse_pg.http.connections import Site
from sse_pg.server import drain as end
from support.waiting import eventually


@dataclass(eq=False)
class Server:
    """A server in this process."""

    url: str
    bus: Bus
    runner: web.AppRunner

    async def stop(self, drain: float = 0) -> None:
        """Stop as SIGTERM would."""
        await end(self.runner, self.bus, drain)
        await self.runner.cleanup()


def greeted(server: Server) -> bool:
    """Whether a stream has its position: it gets what is published from now on. It is open a moment before."""
    return any(stream.greeted for stream in server.bus.hub.streams)


def _is_ready(bus: Bus) -> bool:
    return bus.tail.listening.is_set() and bus.pool.get_stats()["pool_available"] > 0


class Launcher:
    """Starts servers on free loopback ports and stops what is left."""

    def __init__(self, database_url: str, **defaults: Any) -> None:
        self.database_url = database_url
        self._defaults = defaults
        self._servers: list[Server] = []

    async def __call__(self, *, ready: bool = True, **overrides: Any) -> Server:
        values: dict[str, Any] = {"database_url": self.database_url, "drain": 0.0, "retry": 0.02}
        values |= {**self._defaults, **overrides}
        settings = Settings(**values)
        app = create_app(settings)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=5)
        await runner.setup()
        await Site(runner, settings, host="127.0.0.1", port=0, streams=lambda: len(app[BUS].hub.streams)).start()
        host, port = runner.addresses[0][:2]
        server = Server(f"http://{host}:{port}", app[BUS], runner)
        self._servers.append(server)
        if ready:
            # With a short pool_timeout, the first request may not wait for a first connection. A server at rest has
            # been ready.
            await eventually(lambda: _is_ready(server.bus) or server.bus.demand.is_away)
        return server

    async def close(self) -> None:
        """Stop what is left."""
        for server in self._servers:
            await server.stop()
