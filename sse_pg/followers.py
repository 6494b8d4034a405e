"""Streams that follow a user's subscriptions while they are open."""

from __future__ import annotations

import asyncio

from sse_pg.hub import Hub
from sse_pg.store import Store
from sse_pg.stream import Stream


class Followers:
    """Which streams follow which user, and whose subscriptions have to be read again."""

    def __init__(self, hub: Hub, store: Store) -> None:
        self._hub = hub
        self._store = store
        self._streams: dict[str, set[Stream]] = {}
        self._stale: set[str] = set()
        self._lock = asyncio.Lock()

    async def follow(self, stream: Stream, user_id: str) -> None:
        """Give a stream its user's channels, now and after each change."""
        self._streams.setdefault(user_id, set()).add(stream)
        self._stale.add(user_id)
        await self.refresh()

    def leave(self, stream: Stream, user_id: str) -> None:
        """Forget a stream that has ended."""
        streams = self._streams.get(user_id, set())
        streams.discard(stream)
        if not streams:
            self._streams.pop(user_id, None)

    def changed(self, user_id: str | None) -> None:
        """Note that the subscriptions of a user (None: of anybody) have changed."""
        if user_id is None:
            self._stale.update(self._streams)
        elif user_id in self._streams:
            self._stale.add(user_id)

    async def refresh(self) -> None:
        """Read what is stale. Raises BusUnavailable when the database is away; it stays stale then.

        One read at a time: the answer of an older read must not overwrite that of a newer one.
        """
        if not self._stale and not self._lock.locked():
            return
        async with self._lock:
            users, self._stale = self._stale, set()
            if not users:
                return
            try:
                channels = await self._store.subscriptions_of(sorted(users))
            except BaseException:
                self._stale |= users
                raise
            for user in users:
                for stream in self._streams.get(user, ()):
                    self._hub.change_channels(stream, channels.get(user, frozenset()))
