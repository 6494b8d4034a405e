"""What comes over the channel ``sse_pg_control``: what is to be known before events are handed on, and is no event."""

from __future__ import annotations

import contextlib

import msgspec

from sse_pg.auth.authorizer import Authorizer
from sse_pg.auth.followers import Followers


class _Revoked(msgspec.Struct):
    """What sse_pg.revoke() tells."""

    user: str | None = None
    channel: str | None = None


class Control:
    """Takes these notifications in as they come; ``apply`` does what they ask for."""

    def __init__(self, followers: Followers, authorizer: Authorizer) -> None:
        self._followers = followers
        self._authorizer = authorizer
        self.epoch_began = False
        """Somebody began an epoch, and the tail has not read which."""

    def heard(self, text: str) -> None:
        """Take in one notification: what has changed, and of whom."""
        what, _, which = text.partition(" ")
        if what == "subscriptions":
            self._followers.changed(which or None)
        elif what == "epoch":
            self.epoch_began = True
        elif what == "revoke":
            # Anybody can NOTIFY; 8,000 brackets are deep enough for a RecursionError.
            with contextlib.suppress(msgspec.DecodeError, RecursionError):
                revoked = msgspec.json.decode(which, type=_Revoked)
                self._revoked(revoked.user, revoked.channel)

    def missed(self) -> None:
        """Take it that anything may have been said: nobody listened."""
        self._revoked(None, None)

    async def apply(self) -> None:
        """Read again what has changed, and end the streams that may not go on."""
        await self._followers.refresh()
        await self._authorizer.recheck()

    def _revoked(self, user: str | None, channel: str | None) -> None:
        self._authorizer.revoked(user, channel)
        self._followers.changed(user)
