"""The open streams, one by one, of this server or of all, and a way to end those of a user on all servers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from sse_pg.bus import Bus
from sse_pg.db import stream_questions
from sse_pg.db.disconnecting import disconnect
from sse_pg.delivery.stream_list import list_streams
from sse_pg.errors import BusUnavailable
from sse_pg.http.problem import FieldError, invalid, json_response
from sse_pg.http.query import query_choice, query_integer, query_user, require_known

#: Time in which the servers have to answer. A response without the answer of one says so.
ANSWER_TIMEOUT_S = 3.0
#: Time between two looks whether all have answered.
LOOK_PAUSE_S = 0.03


class OpenStreamsApi:
    """Lists streams and disconnects users.

    Only a server process knows its streams and what their clients have not read. The servers write nothing about single
    streams into the database unless somebody asks all of them: that would be a write for each stream that opens.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [web.get("/api/events/streams", self.streams), web.delete("/api/events/streams", self.disconnect)]

    async def streams(self, request: web.Request) -> web.Response:
        """List the streams of this server or of all, those with the most unread bytes first, then the oldest."""
        self._bus.access.require_observer(await self._bus.access.identify(request))
        require_known(request.query, "userId", "limit", "servers")
        user = query_user(request.query)
        limit = query_integer(request.query, "limit", 100, 1, 1000)
        if query_choice(request.query, "servers", ("this", "all")) == "all":
            return json_response(await self._of_all(user, limit))
        own = self._bus.registry.server_id
        count, listed = await list_streams(self._bus.hub, user, limit)
        servers = [
            {"id": row[0], "name": row[1], "pid": row[2], "activeConnections": row[5]}
            for row in await self._bus.store.servers()
        ]
        return json_response(
            {
                "server": next((each for each in servers if each["id"] == own), None),
                "otherServers": [each for each in servers if each["id"] != own],
                "count": count,
                "streams": [{"serverId": own, **each} for each in listed],
            }
        )

    async def _of_all(self, user: str | None, limit: int) -> dict[str, Any]:
        """Ask all servers, this one too, and wait for the answers."""
        pool = self._bus.pool
        number = await stream_questions.ask(pool, user, limit)
        self._bus.changed_here()
        until = time.monotonic() + ANSWER_TIMEOUT_S
        while await stream_questions.is_incomplete(pool, number) and time.monotonic() < until:  # noqa: ASYNC110 - rows
            await asyncio.sleep(LOOK_PAUSE_S)
        servers: list[dict[str, Any]] = []
        streams: list[dict[str, Any]] = []
        total = 0
        for answer in await stream_questions.answers(pool, number):
            servers.append(
                {
                    "id": answer.server_id,
                    "name": answer.name,
                    "pid": answer.pid,
                    "activeConnections": answer.active_connections,
                    "answered": answer.total is not None,
                }
            )
            total += answer.total or 0
            streams += [{"serverId": answer.server_id, **each} for each in answer.streams or ()]
        streams.sort(key=lambda each: (-each["unreadBytes"], each["since"]))
        own = next((each for each in servers if each["id"] == self._bus.registry.server_id), None)
        if own is None:
            raise BusUnavailable("this server is not registered at the moment, so its streams would be missing")
        return {
            "server": own,
            "otherServers": [each for each in servers if each is not own],
            "count": total,
            "streams": streams[:limit],
        }

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
