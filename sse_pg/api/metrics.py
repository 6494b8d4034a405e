"""GET /metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from sse_pg.api.readings import read
from sse_pg.bus import Bus
from sse_pg.core import metrics
from sse_pg.core.metrics import Numbers

#: Collects the numbers of all workers, if there are several. Raises a Problem if it cannot.
GATHER: web.AppKey[Callable[[], Awaitable[Numbers]]] = web.AppKey("GATHER")


class MetricsApi:
    """The metrics of this process, or of all workers on the port."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [web.get("/metrics", self.metrics)]

    async def metrics(self, request: web.Request) -> web.Response:
        """Return the metrics in the format that the Accept header asks for; needs no database."""
        allowed = self._bus.settings.metrics
        if allowed == "off":
            raise web.HTTPNotFound
        if allowed != "open":
            self._bus.access.require_observer(await self._bus.access.identify(request))
        gather = request.config_dict.get(GATHER)
        numbers = await gather() if gather is not None else read(self._bus)
        body, content_type = metrics.text(numbers, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})
