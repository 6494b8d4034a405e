"""Subscriptions: which user is subscribed to which channel."""

from __future__ import annotations

from aiohttp import web

from sse_pg.bus import Bus
from sse_pg.core.event import timestamp
from sse_pg.http import bodies
from sse_pg.http.problem import FieldError, invalid, json_response
from sse_pg.http.query import query_user, require_known


class SubscriptionApi:
    """Subscribes, unsubscribes, lists."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [
            web.post("/api/events/channels/subscribe", self.subscribe),
            web.post("/api/events/channels/unsubscribe", self.unsubscribe),
            web.get("/api/events/channels", self.channels),
        ]

    async def subscribe(self, request: web.Request) -> web.Response:
        """Subscribe a user to a channel: 201 if the subscription is new, 200 if it existed."""
        access = self._bus.access
        identity = await access.identify(request)
        require_known(request.query)
        body = bodies.subscription_body(await bodies.read_json(request, self._bus.limits.bodies))
        user = access.user(identity, body.user_id)
        await access.require(identity, user, "subscribe", [body.channel], "channel")
        new = await self._bus.store.subscribe(body.user_id, body.channel)
        self._bus.changed_here()
        return json_response({"userId": body.user_id, "channel": body.channel, "subscribed": True}, 201 if new else 200)

    async def unsubscribe(self, request: web.Request) -> web.Response:
        """End a subscription; 200 even if there was none. It needs no right to read, so a user can always leave."""
        identity = await self._bus.access.identify(request)
        require_known(request.query)
        body = bodies.subscription_body(await bodies.read_json(request, self._bus.limits.bodies))
        self._bus.access.user(identity, body.user_id)
        await self._bus.store.unsubscribe(body.user_id, body.channel)
        self._bus.changed_here()
        return json_response({"userId": body.user_id, "channel": body.channel, "subscribed": False})

    async def channels(self, request: web.Request) -> web.Response:
        """List a user's subscriptions."""
        identity = await self._bus.access.identify(request)
        require_known(request.query, "userId")
        user = query_user(request.query)
        if user is None:
            raise invalid([FieldError("userId", "required")])
        if not identity.observe:
            self._bus.access.user(identity, user)
        found = await self._bus.store.subscriptions(user)
        return json_response(
            {
                "userId": user,
                "channels": [name for name, _ in found],
                "subscriptions": [{"channel": name, "createdAt": timestamp(since)} for name, since in found],
            }
        )
