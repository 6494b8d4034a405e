"""GET /api/events/rights: what the access rule allows a user, for operators."""

from __future__ import annotations

from aiohttp import web

from sse_pg.bus import Bus
from sse_pg.http.problem import FieldError, invalid, json_response
from sse_pg.http.query import query_channels, query_user, require_known


class RightsApi:
    """Asks the rule on behalf of a user.

    The channels are named by the request: the rule is a function of a user and a channel, so there is no list of all
    channels that it allows. What the user's token allows is not known here, because tokens are not stored.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [web.get("/api/events/rights", self.rights)]

    async def rights(self, request: web.Request) -> web.Response:
        """Return those of the channels that the user may read, and those that the user may publish to."""
        self._bus.access.require_observer(await self._bus.access.identify(request))
        require_known(request.query, "userId", "channels")
        user = query_user(request.query)
        channels = query_channels(request.query, "channels", self._bus.settings.max_channels)
        missing = [name for name, given in (("userId", user is not None), ("channels", channels)) if not given]
        if missing:
            raise invalid([FieldError(name, "required") for name in missing])
        allowed = {
            action: await self._bus.authorizer.allowed(user, action, channels) for action in ("subscribe", "publish")
        }
        return json_response(
            {
                "userId": user,
                **{action: [name for name in channels if name in names] for action, names in allowed.items()},
            }
        )
