"""What a test has of the bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from sse_pg.client import Event, Subscription
from sse_pg.db import testing as statements
from sse_pg.db.testing import Cursor, Published

#: How long a test waits for an event that does not come.
NEXT_TIMEOUT_S = 5.0


class Events:
    """What a stream receives, one after the other."""

    def __init__(self, subscription: Subscription, channels: tuple[str, ...]) -> None:
        self._subscription = subscription
        self._channels = channels

    async def next(self, timeout: float = NEXT_TIMEOUT_S) -> Event:
        """Return the next event. Raises AssertionError if none comes in ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await anext(self._subscription)
        except TimeoutError:
            raise AssertionError(f"no event on {', '.join(self._channels)} in {timeout:g} s") from None


class Bus:
    """A bus that was empty when the test began."""

    def __init__(self, database_url: str, url: str, connection: psycopg.Connection[Any]) -> None:
        self.database_url = database_url
        """The connection string of its database. Your own tables may be in it."""
        self.url = url
        """Where its server listens."""
        self._connection = connection

    def publish(self, channel: str, payload: object, event_type: str = "message") -> int:
        """Publish and commit an event, as another program would; return its id."""
        return statements.publish(self._connection, channel, event_type, payload)

    def published(self, channel: str, cursor: Cursor | None = None) -> list[Published]:
        """Return the events of a channel.

        ``cursor`` is a DB-API cursor of the test's own transaction, which need not be committed and may be rolled back
        afterwards. Without it, only committed events are seen.
        """
        if cursor is not None:
            return statements.published(cursor, channel)
        with self._connection.cursor() as own:
            return statements.published(own, channel)

    @asynccontextmanager
    async def subscribe(
        self, *channels: str, user_id: str | int | None = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[Events]:
        """Follow channels, or those of a user. What is committed from now on comes, even before ``next()``."""
        cursor = statements.position(self._connection)
        async with Subscription(self.url, channels, user_id=user_id, cursor=cursor, headers=headers) as subscription:
            yield Events(subscription, channels or (f"the channels of {user_id}",))
