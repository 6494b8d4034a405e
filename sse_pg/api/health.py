"""Whether the process is alive, whether it can serve, and which servers there are."""

from __future__ import annotations

from aiohttp import web

from sse_pg.bus import Bus
from sse_pg.core.event import timestamp
from sse_pg.http.problem import json_response, unavailable
from sse_pg.http.query import require_known


class HealthApi:
    """Health checks and active connections."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [
            web.get("/healthz", self.live),
            web.get("/readyz", self.ready),
            web.get("/api/events/active-connections", self.active_connections),
        ]

    async def live(self, _request: web.Request) -> web.Response:
        """Return 200 as long as the process responds."""
        return json_response({"status": "ok"})

    async def ready(self, _request: web.Request) -> web.Response:
        """Return 200 if requests can be served: the database is reachable, LISTEN is up, the server is not stopping.

        A database that nobody else needs is not asked: that would keep it from sleeping.
        """
        reason = self._bus.why_not_ready()
        if reason is not None:
            raise unavailable(f"Not ready: {reason}.")
        if self._bus.demand.is_away:
            return json_response({"status": "at rest"})
        if not self._bus.is_quiet:
            await self._bus.read_store.ping()
        return json_response({"status": "ready"})

    async def active_connections(self, request: web.Request) -> web.Response:
        """Count the open streams of every server on this database. This server's own count is current."""
        self._bus.access.require_observer(await self._bus.access.identify(request))
        require_known(request.query)
        own = self._bus.registry.server_id
        servers = [
            {
                "id": number,
                "name": name,
                "pid": pid,
                "version": version,
                "startedAt": timestamp(started),
                "activeConnections": len(self._bus.hub.streams) if number == own else count,
            }
            for number, name, pid, version, started, count in await self._bus.store.servers()
        ]
        total = sum(int(str(server["activeConnections"])) for server in servers)
        return json_response({"activeConnections": total, "servers": servers})
