"""GET /api/events/history: the stored events, page by page."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from sse_pg.bus import Bus
from sse_pg.core.cursor import START, Cursor
from sse_pg.core.event import event_json
from sse_pg.http.large_response import LargeResponse
from sse_pg.http.problem import FieldError, invalid
from sse_pg.http.query import (
    query_channels,
    query_choice,
    query_cursor,
    query_event_type,
    query_integer,
    require_known,
)

#: Maximum size of a Link header. Clients and proxies refuse heads of more than 8 KiB, and a request may name a thousand
#: channels. The body has the cursor in any case.
MAX_LINK_BYTES = 4096


class HistoryApi:
    """Paginated history."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [web.get("/api/events/history", self.history)]

    async def history(self, request: web.Request) -> web.Response:
        """Return a page. An ascending walk ends at a cursor from which a stream continues without a loss."""
        identity = await self._bus.access.identify(request)
        query = request.query
        require_known(query, "channel", "after", "before", "limit", "eventType", "order")
        channels = query_channels(query, "channel", self._bus.settings.max_channels)
        if not channels:
            raise invalid([FieldError("channel", "required")])
        event_type = query_event_type(query)
        limit = query_integer(query, "limit", 50, 1, 1000)
        after, before = query_cursor(query, "after"), query_cursor(query, "before")
        order = query_choice(query, "order", ("asc", "desc"))
        await self._bus.access.require(identity, identity.user, "subscribe", channels, "channel")
        walk = self._ascending if order == "asc" else self._descending
        body = await walk(channels, after, before, limit, event_type)
        headers = {}
        if body["hasMore"]:
            step = "after" if order == "asc" else "before"
            # Only the query: the path may have had a prefix that a proxy has stripped.
            link = f'<?{request.rel_url.update_query({step: body["nextCursor"]}).raw_query_string}>; rel="next"'
            if len(link) <= MAX_LINK_BYTES:
                headers["Link"] = link
        encoded = msgspec.json.encode(body) + b"\n"
        self._bus.limits.bodies.hold(len(encoded))
        return LargeResponse(request, encoded, content_type="application/json", headers=headers)

    async def _ascending(
        self,
        channels: list[str],
        after: Cursor | None,
        before: Cursor | None,
        limit: int,
        event_type: str | None,
    ) -> dict[str, Any]:
        cursor = after or START
        # First the position, then the rows: so everything that is visible at the position is among the rows.
        position = await self._bus.read_store.position()
        if before is not None:
            position = position.clip(max(0, before.high - 1))
        step = await self._bus.read_store.step(channels, cursor, position, limit, event_type=event_type)
        body: dict[str, Any] = {
            "events": [event_json(event) for event in step.events],
            "nextCursor": step.cursor.text,
            "hasMore": step.more,
        }
        lost_to = max(step.purged_to, step.expired_to)
        if after is not None and after != START and after.missing_up_to(lost_to):
            body["gap"] = {"reason": "expired", "after": after.text, "before": str(lost_to)}
        return body

    async def _descending(
        self,
        channels: list[str],
        after: Cursor | None,
        before: Cursor | None,
        limit: int,
        event_type: str | None,
    ) -> dict[str, Any]:
        top = before.high - 1 if before is not None else await self._bus.read_store.last_id()
        wanted = (after or START).missing_up_to(top)
        page = await self._bus.read_store.page(channels, wanted, limit + 1, event_type=event_type, descending=True)
        rows = page.events[:limit]
        if page.full:
            before_next: int | None = rows[-1].id
        else:
            before_next = page.reach + 1 if page.reach is not None else None
        return {
            "events": [event_json(event) for event in rows],
            "nextCursor": str(before_next) if before_next is not None else None,
            "hasMore": before_next is not None,
        }
