"""Notifications on the channel ``sse_pg_control``: changes that have to be applied before events are delivered."""

from __future__ import annotations

import contextlib

import msgspec

from sse_pg.auth.authorizer import Authorizer
from sse_pg.auth.followers import Followers


class _Revoked(msgspec.Struct):
    """The notification that sse_pg.revoke() sends; None means any."""

    user: str | None = None
    channel: str | None = None


class Control:
    """Notes these notifications as they arrive; ``apply`` does what they ask for."""

    def __init__(self, followers: Followers, authorizer: Authorizer) -> None:
        self._followers = followers
        self._authorizer = authorizer
        self.epoch_began = False
        """An epoch has begun that the tail has not read yet."""

    def heard(self, text: str) -> None:
        """Note one notification: what has changed, and for whom."""
        what, _, which = text.partition(" ")
        if what == "subscriptions":
            self._followers.changed(which or None)
        elif what == "epoch":
            self.epoch_began = True
        elif what == "revoke":
            # Anybody can send a notification, and 8,000 brackets in it cause a RecursionError.
            with contextlib.suppress(msgspec.DecodeError, RecursionError):
                revoked = msgspec.json.decode(which, type=_Revoked)
                self._revoked(revoked.user, revoked.channel)

    def missed(self) -> None:
        """Assume that anything may have changed, because nobody listened."""
        self._revoked(None, None)

    async def apply(self) -> None:
        """Hold the streams that the changes concern. What they may have now is decided while delivery goes on."""
        self._followers.apply()
        self._authorizer.apply()

    def _revoked(self, user: str | None, channel: str | None) -> None:
        self._authorizer.revoked(user, channel)
        self._followers.changed(user)
