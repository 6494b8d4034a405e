"""POST /api/events/publish: one event or many, in one transaction."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import msgspec
from aiohttp import web

from sse_pg.auth.identity import Identity
from sse_pg.bus import Bus
from sse_pg.core.event import timestamp
from sse_pg.db.draft import Draft, Published
from sse_pg.errors import EventRefused
from sse_pg.http import event_headers, publish_body
from sse_pg.http.limits import site
from sse_pg.http.problem import Problem, json_response
from sse_pg.http.query import require_known

NDJSON = "application/x-ndjson"
#: Memory of a small draft, of which its text in the body is a fraction.
DRAFT_BYTES = 150
#: Events of a response that are made in one turn of the event loop.
EVENTS_PER_TURN = 1000


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
        require_known(request.query)
        if request.content_type not in ("application/json", NDJSON):
            raise Problem(
                415,
                f"The body must be JSON, with the header Content-Type: application/json, or NDJSON, with {NDJSON}.",
            )
        access.require_any(identity, "publish")
        limits = self._bus.limits
        publisher = identity.user or site(limits.proxies.client(request))
        limits.publishing.check(publisher)
        drafts, batch = await self._read(request, identity)
        limits.publishing.take(publisher, len(drafts))
        try:
            published = await self._bus.publisher.publish(drafts, batch=batch)
        except EventRefused as refused:
            if not batch:
                refused.index = None  # the problem then names the field without events[0]
            raise
        body = await _response(drafts, published)
        return json_response({"events": body} if batch else body[0], 201)

    async def _read(self, request: web.Request, identity: Identity) -> tuple[list[Draft], bool]:
        """Return the drafts of a body, and whether it was a batch. The rights are checked after each piece of it."""
        settings, held = self._bus.settings, self._bus.limits.bodies
        body = await held.read(request)
        reader = publish_body.Drafts(
            body,
            event_headers.of_request(request.headers, identity),
            ndjson=request.content_type == NDJSON,
            key=publish_body.key_of(request.headers),
            max_body=settings.max_body,
            max_payload=settings.max_payload,
            max_batch=settings.max_batch,
        )
        drafts: list[Draft] = []
        allowed: set[str] = set()
        for piece in reader:
            if channels := {draft.channel for draft in piece} - allowed:
                await self._bus.access.require(identity, identity.user, "publish", channels, "channel")
                allowed |= channels
            drafts += piece
            # A payload with a character beyond ASCII takes up to four times its bytes in the body.
            if wide := sum(sys.getsizeof(draft.payload) for draft in piece if not draft.payload.isascii()):
                held.hold(wide)
            if len(body) > publish_body.PIECE_BYTES:
                held.hold(len(piece) * DRAFT_BYTES)
                await asyncio.sleep(0)  # others have their turn
        return drafts, reader.batch


async def _response(drafts: Sequence[Draft], published: Sequence[Published]) -> list[PublishedJson]:
    body = []
    for draft, (number, created) in zip(drafts, published, strict=True):
        at = None if created is None else timestamp(created)
        body.append(PublishedJson(number, draft.channel, draft.event_type, at))
        if len(body) % EVENTS_PER_TURN == 0:
            await asyncio.sleep(0)
    return body
