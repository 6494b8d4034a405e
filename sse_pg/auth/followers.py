"""Streams that follow a user's subscriptions while they are open."""

from __future__ import annotations

import asyncio

from sse_pg.auth.authorizer import Authorizer
from sse_pg.auth.identity import Patterns
from sse_pg.db.store import Store
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.errors import RuleFailed


class Followers:
    """Knows which streams follow which user, and whose subscriptions have to be read again."""

    def __init__(self, hub: Hub, store: Store, authorizer: Authorizer) -> None:
        self._hub = hub
        self._store = store
        self._authorizer = authorizer
        self._streams: dict[str, dict[Stream, Patterns]] = {}
        self._stale: set[str] = set()
        self._failed: dict[str, RuleFailed] = {}
        """Users for whom the access rule gave no answer the last time."""
        self._lock = asyncio.Lock()

    async def follow(self, stream: Stream, user_id: str, patterns: Patterns) -> None:
        """Give a stream its user's channels, now and after each change, as far as patterns and access rule allow.

        Raises RuleFailed if the rule gives no answer, and BusUnavailable if the database is unavailable.
        """
        self._streams.setdefault(user_id, {})[stream] = patterns
        self._stale.add(user_id)
        await self.refresh()
        if user_id in self._failed:
            raise self._failed[user_id]

    def leave(self, stream: Stream, user_id: str) -> None:
        """Stop following for a stream."""
        streams = self._streams.get(user_id, {})
        streams.pop(stream, None)
        if not streams:
            self._streams.pop(user_id, None)
            self._failed.pop(user_id, None)

    def changed(self, user_id: str | None) -> None:
        """Note that the subscriptions of a user (None: any user) have changed."""
        if user_id is None:
            self._stale.update(self._streams)
        elif user_id in self._streams:
            self._stale.add(user_id)

    async def refresh(self) -> None:
        """Read the stale subscriptions. Raises BusUnavailable if the database is unavailable; they then stay stale.

        One read at a time, because the result of an older read must not overwrite that of a newer one.
        """
        if not self._stale and not self._lock.locked():
            return
        async with self._lock:
            users, self._stale = self._stale, set()
            if not users:
                return
            try:
                subscribed = await self._store.subscriptions_of(sorted(users))
                channels = await self._authorizer.followed(subscribed)
            except RuleFailed as error:
                for user in users & self._streams.keys():
                    self._failed[user] = error
                    for stream in self._streams[user]:
                        stream.end(EndReason.RULE_FAILED)
                return
            except BaseException:
                self._stale |= users
                raise
            for user in users:
                self._failed.pop(user, None)
                for stream, patterns in self._streams.get(user, {}).items():
                    allowed = channels.get(user, frozenset())
                    self._hub.change_channels(stream, frozenset(filter(patterns.match, allowed)))
