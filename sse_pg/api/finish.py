"""POST /api/events/finish: says that a channel has ended."""

from __future__ import annotations

from aiohttp import web

from sse_pg.bus import Bus
from sse_pg.core.names import END
from sse_pg.http import bodies
from sse_pg.http.limits import site
from sse_pg.http.problem import json_response
from sse_pg.http.query import require_known


class FinishApi:
    """Finishing a channel over HTTP."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [web.post("/api/events/finish", self.finish)]

    async def finish(self, request: web.Request) -> web.Response:
        """Finish a channel; 201 after the commit. It needs the right to publish to the channel, and counts as one."""
        bus = self._bus
        identity = await bus.access.identify(request)
        require_known(request.query)
        bus.access.require_any(identity, "publish")
        publisher = identity.user or site(bus.limits.proxies.client(request))
        bus.limits.publishing.check(publisher)
        channel = bodies.channel_body(await bodies.read_json(request, bus.limits.bodies))
        await bus.access.require(identity, identity.user, "publish", [channel], "channel")
        bus.limits.publishing.take(publisher, 1)
        number = await bus.publisher.finish(channel)
        return json_response({"id": number, "channel": channel, "eventType": END}, 201)
