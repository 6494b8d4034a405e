"""The open streams of this server, one by one, and a way to end those of a user on all servers."""

from __future__ import annotations

import heapq
import time

from aiohttp import web

from sse_pg.bus import Bus
from sse_pg.core.event import POSTGRES_EPOCH_S, timestamp
from sse_pg.db.disconnecting import disconnect
from sse_pg.delivery.stream import Stream
from sse_pg.http.problem import FieldError, invalid, json_response
from sse_pg.http.query import query_integer, query_user, require_known

#: Maximum number of channels that are named for a stream.
MAX_CHANNELS_NAMED = 20


class OpenStreamsApi:
    """Lists streams and disconnects users.

    The list is that of one server process, because only that process knows what its clients have not read. The servers
    write nothing about single streams into the database: that would be a write for each stream that opens.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [web.get("/api/events/streams", self.streams), web.delete("/api/events/streams", self.disconnect)]

    async def streams(self, request: web.Request) -> web.Response:
        """List the streams of this server, those with the most unread bytes first, then the oldest."""
        self._bus.access.require_observer(await self._bus.access.identify(request))
        require_known(request.query, "userId", "limit")
        user = query_user(request.query)
        limit = query_integer(request.query, "limit", 100, 1, 1000)
        found = [each for each in self._bus.hub.streams if user is None or user in (each.user, each.follows)]
        first = heapq.nsmallest(limit, found, key=lambda each: (-each.unread, each.opened_at))
        own = self._bus.registry.server_id
        servers = [
            {"id": row[0], "name": row[1], "pid": row[2], "activeConnections": row[5]}
            for row in await self._bus.store.servers()
        ]
        return json_response(
            {
                "server": next((each for each in servers if each["id"] == own), None),
                "otherServers": [each for each in servers if each["id"] != own],
                "count": len(found),
                "streams": [_described(each) for each in first],
            }
        )

    async def disconnect(self, request: web.Request) -> web.Response:
        """Ask all servers to end the streams of a user. It needs a token that may act for that user."""
        identity = await self._bus.access.identify(request)
        require_known(request.query, "userId")
        user = query_user(request.query)
        if user is None:
            raise invalid([FieldError("userId", "required")])
        self._bus.access.user(identity, user)
        await disconnect(self._bus.pool, user)
        self._bus.changed_here()
        return json_response({"userId": user, "disconnected": True}, 202)


def _described(stream: Stream) -> dict[str, object]:
    opened = time.time() - (time.monotonic() - stream.opened_at)
    return {
        "number": stream.number,
        "userId": stream.user,
        "address": stream.remote,
        "channels": sorted(stream.channels)[:MAX_CHANNELS_NAMED],
        "channelCount": len(stream.channels),
        "followsSubscriptions": stream.follows is not None,
        "since": timestamp(round((opened - POSTGRES_EPOCH_S) * 1_000_000)),
        "unreadBytes": stream.unread,
        "sentBytes": stream.sent_bytes,
        "catchingUp": not stream.live,
    }
