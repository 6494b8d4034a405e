"""POST /api/events/publish: one event or many, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from sse_pg.bus import Bus
from sse_pg.core.event import timestamp
from sse_pg.db.publisher import Draft, Published
from sse_pg.errors import EventRefused
from sse_pg.http import publish_body
from sse_pg.http.limits import site
from sse_pg.http.problem import Problem, json_response

NDJSON = "application/x-ndjson"


class PublishedJson(msgspec.Struct, frozen=True, rename="camel"):
    """The response to a publish. ``created_at`` is None if a repeated key belongs to an event that was purged."""

    id: int
    channel: str
    event_type: str
    created_at: str | None


class PublishApi:
    """Publishing over HTTP."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [web.post("/api/events/publish", self.publish)]

    async def publish(self, request: web.Request) -> web.Response:
        """Publish the event or events of a body; 201 after the commit."""
        access = self._bus.access
        identity = await access.identify(request)
        if request.content_type not in ("application/json", NDJSON):
            raise Problem(
                415,
                f"The body must be JSON, with the header Content-Type: application/json, or NDJSON, with {NDJSON}.",
            )
        settings, limits = self._bus.settings, self._bus.limits
        publisher = identity.user or site(limits.proxies.client(request))
        limits.publishing.check(publisher)
        drafts, batch = publish_body.drafts(
            await limits.bodies.read(request),
            ndjson=request.content_type == NDJSON,
            max_payload=settings.max_payload,
            max_batch=settings.max_batch,
        )
        channels = {draft.channel for draft in drafts}
        await access.require(identity, identity.user, "publish", channels, "channel")
        limits.publishing.take(publisher, len(drafts))
        try:
            published = _response(drafts, await self._bus.publisher.publish(drafts, batch=batch))
        except EventRefused as refused:
            if not batch:
                refused.index = None  # the problem then names the field without events[0]
            raise
        return json_response({"events": published} if batch else published[0], 201)


def _response(drafts: Sequence[Draft], published: Sequence[Published]) -> list[PublishedJson]:
    return [
        PublishedJson(number, draft.channel, draft.event_type, None if created is None else timestamp(created))
        for draft, (number, created) in zip(drafts, published, strict=True)
    ]
