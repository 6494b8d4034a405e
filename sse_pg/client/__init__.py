"""A client of the bus: ``subscribe`` follows channels and reconnects, ``publish`` publishes one event.

    async with subscribe("http://127.0.0.1:8080", ["orders"]) as events:
        async for event in events:
            print(event.id, event.type, event.json())

A worker that is to do something once for every event, in the transaction of its own writes, connects to the database::

    async for batch, conn in consume("postgresql:///shop", "mail", ["orders"]):
        for event in batch:
            await conn.execute("INSERT INTO outbox (body) VALUES (%s)", [event.payload["text"]])

The client does not import the server. Only ``consume`` loads a database driver, when it connects.
"""

from __future__ import annotations

from sse_pg.client.backoff import Backoff, retry_after
from sse_pg.client.coalescing import Publisher
from sse_pg.client.consuming import Consumer, StoredEvent
from sse_pg.client.events import Denied, Event, Finished, Gap, Published, Reconnect, Snapshot
from sse_pg.client.publishing import publish
from sse_pg.client.subscription import Subscription
from sse_pg.errors import BusUnavailable, ClientError, OutcomeUnknown

__all__ = [
    "Backoff",
    "BusUnavailable",
    "ClientError",
    "Consumer",
    "Denied",
    "Event",
    "Finished",
    "Gap",
    "OutcomeUnknown",
    "Published",
    "Publisher",
    "Reconnect",
    "Snapshot",
    "StoredEvent",
    "Subscription",
    "consume",
    "publish",
    "retry_after",
    "subscribe",
]

subscribe = Subscription

consume = Consumer
"""Takes the events of a named consumer from the database, in batches, each in a transaction of the program."""
