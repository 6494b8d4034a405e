"""A client of the bus: ``subscribe`` follows channels and reconnects, ``publish`` publishes one event.

    async with subscribe("http://127.0.0.1:8080", ["orders"]) as events:
        async for event in events:
            print(event.id, event.type, event.json())

It does not import the server, so a program that only uses the client needs no database driver.
"""

from __future__ import annotations

from sse_pg.client.backoff import Backoff, retry_after
from sse_pg.client.events import Event, Gap, Published, Reconnect
from sse_pg.client.publishing import publish
from sse_pg.client.subscription import Subscription
from sse_pg.errors import BusUnavailable, ClientError, OutcomeUnknown

__all__ = [
    "Backoff",
    "BusUnavailable",
    "ClientError",
    "Event",
    "Gap",
    "OutcomeUnknown",
    "Published",
    "Reconnect",
    "Subscription",
    "publish",
    "retry_after",
    "subscribe",
]

subscribe = Subscription
