"""Streams that follow a user's subscriptions while they are open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from random import random

from sse_pg.auth.authorizer import MAX_LATE_USERS, Authorizer
from sse_pg.auth.digests import Digests
from sse_pg.auth.holds import Holds
from sse_pg.auth.identity import Patterns
from sse_pg.db.store import Store
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.turns import Turns
from sse_pg.errors import BusUnavailable, RuleFailed, fresh

log = logging.getLogger(__name__)

#: Maximum number of users whose subscriptions are read with one statement. With 100 channels each, taking them in is a
#: step of the event loop of 1.3 ms.
MAX_USERS_PER_READ = 100
#: Average pause before the next attempt if the database is unavailable.
RETRY_PAUSE_S = 0.5


class Followers:
    """Knows which streams follow which user, and whose subscriptions have to be read again.

    The streams of a user whose subscriptions have changed receive no events until the new ones are read; a task does
    that. Then they catch up from where they were. So they miss nothing, and the streams of others do not wait.
    """

    def __init__(self, hub: Hub, store: Store, authorizer: Authorizer, holds: Holds, digests: Digests) -> None:
        self._hub = hub
        self._store = store
        self._authorizer = authorizer
        self._holds = holds
        self._digests = digests
        self._users: dict[str, str] = {}
        """The users that are followed, by their digests."""
        self._streams: dict[str, dict[Stream, Patterns]] = {}
        self._stale: dict[str, None] = {}  # in the order of their changes
        self._reading: set[str] = set()
        """The users whose subscriptions are being read."""
        self._held: dict[str, set[Stream]] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def follow(self, stream: Stream, user_id: str, patterns: Patterns) -> None:
        """Give a stream its user's channels, now and after each change, as far as patterns and access rule allow.

        Raises RuleFailed if the rule gives no answer, and BusUnavailable if the database is unavailable.
        """
        self._streams.setdefault(user_id, {})[stream] = patterns
        self._users[self._digests.of(user_id)] = user_id
        read: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user_id, []).append(read)
        self._stale[user_id] = None
        self._start()
        await read

    def leave(self, stream: Stream, user_id: str) -> None:
        """Stop following for a stream."""
        streams = self._streams.get(user_id, {})
        streams.pop(stream, None)
        if not streams:
            self._streams.pop(user_id, None)
            self._users.pop(self._digests.of(user_id), None)

    def rename(self) -> None:
        """Compute the digests of the users again, because they have another key."""
        self._users = {self._digests.of(user): user for user in self._streams}

    def changed(self, digest: str | None) -> None:
        """Note that the subscriptions of the user with this digest (None: of any user) have changed."""
        if digest is None:
            self._stale.update(dict.fromkeys(self._streams))
        elif digest in self._users:
            self._stale[self._users[digest]] = None

    async def apply(self) -> None:
        """Hold the streams of users whose subscriptions have changed, and start to read them."""
        if not self._stale:
            return
        turns = Turns()
        for user in list(self._stale):
            for stream in list(self._streams.get(user, ())):
                if user not in self._stale and user not in self._reading:
                    break  # they have been read in the meantime
                held = self._held.setdefault(user, set())
                if stream not in held and stream in self._streams.get(user, ()):
                    held.add(stream)
                    self._holds.hold(stream)
                await turns.pause()
        self._start()

    async def close(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _start(self) -> None:
        if self._stale and self._task is None:
            self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while self._stale:
                users = list(self._stale)[:MAX_USERS_PER_READ]
                waiting = {user: self._waiting.pop(user, []) for user in users}
                for user in users:
                    del self._stale[user]
                self._reading.update(users)
                try:
                    failed = await self._read_users(users)
                except BusUnavailable as error:
                    _finish(waiting.values(), error)
                    self._stale = {**dict.fromkeys(user for user in users if user in self._streams), **self._stale}
                    self._reading.clear()
                    await asyncio.sleep(RETRY_PAUSE_S * (0.5 + random()))  # noqa: S311 - jitter
                    continue
                except BaseException:
                    _finish(waiting.values(), BusUnavailable("the server is stopping"))
                    raise
                turns = Turns()
                for user in users:
                    self._reading.discard(user)
                    _finish([waiting[user]], failed.get(user))
                    for stream in () if user in self._stale else self._held.pop(user, ()):
                        self._holds.release(stream)
                        await turns.pause()
        finally:
            self._task = None

    async def _read_users(self, users: Sequence[str]) -> dict[str, RuleFailed]:
        """Give the streams of some users their channels. Return the users for whom the rule gave no answer."""
        subscribed = await self._store.subscriptions_of(users)
        try:
            await self._assign(users, await self._authorizer.followed(subscribed))
        except RuleFailed as error:
            if len(users) == 1:
                return self._fail(users, error)
        else:
            return {}
        failed: dict[str, RuleFailed] = {}
        late = 0
        for number, user in enumerate(users):  # the rule fails for one of them: ask for each alone
            try:
                await self._assign([user], await self._authorizer.followed({user: subscribed.get(user, frozenset())}))
            except RuleFailed as error:
                failed |= self._fail([user], error)
                late += error.late
                if late == MAX_LATE_USERS:
                    return failed | self._fail(users[number + 1 :], error)
        return failed

    async def _assign(self, users: Iterable[str], channels: dict[str, frozenset[str]]) -> None:
        turns = Turns()
        for user in users:
            allowed = channels.get(user, frozenset())
            for stream, patterns in list(self._streams.get(user, {}).items()):
                if stream not in self._streams.get(user, {}):
                    continue  # it has ended
                self._hub.change_channels(stream, frozenset(filter(patterns.match, allowed)))
                await turns.pause()

    def _fail(self, users: Iterable[str], error: RuleFailed) -> dict[str, RuleFailed]:
        for user in users:
            for stream in self._streams.get(user, {}):
                stream.end(EndReason.RULE_FAILED)
        return dict.fromkeys(users, error)


def _finish(waiting: Iterable[list[asyncio.Future[None]]], error: Exception | None) -> None:
    for futures in waiting:
        for future in futures:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(fresh(error))
