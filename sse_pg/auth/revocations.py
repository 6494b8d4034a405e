"""Which streams a set of revocations concerns."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sse_pg.auth.digests import Digests

#: The digests of a user and a channel; None means any.
Revocation = tuple[str | None, str | None]


class Revocations:
    """Some revocations, by user, so that a look at a stream costs little if its user is not among them."""

    def __init__(self, revoked: Iterable[Revocation], digests: Digests) -> None:
        self._digests = digests
        self._by_user: dict[str | None, set[str | None]] = {}
        for user, channel in revoked:
            self._by_user.setdefault(user, set()).add(channel)
        self._all = None in self._by_user.get(None, ())

    def among(self, user: str | None, channels: Collection[str]) -> Collection[str]:
        """Return those of a user's channels that may have been revoked."""
        if self._all:
            return channels
        if not self._by_user:
            return ()
        names: set[str | None] = set()
        for who in (self._digests.of(user), None):
            names |= self._by_user.get(who, set())
        if not names or None in names:
            return channels if names else ()
        return [channel for channel in channels if self._digests.of(channel) in names]
