"""Ends the streams of users whom somebody disconnects with ``sse_pg.disconnect()``."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict

from sse_pg.auth.digests import Digests
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.turns import Turns

log = logging.getLogger(__name__)

#: Maximum number of messages that are known to have been obeyed; the oldest is forgotten.
MAX_OBEYED = 10_000


class Disconnects:
    """Obeys each message of the database's own function once, however often somebody else sends it again.

    A server that has been started again obeys an old message once more. That costs the user a reconnection.
    """

    def __init__(self, hub: Hub, digests: Digests) -> None:
        self._hub = hub
        self._digests = digests
        self._obeyed: OrderedDict[str, None] = OrderedDict()
        self._users: set[str] = set()
        """The digests of the users whose streams have to end."""

    def heard(self, user: str, number: str, signature: str) -> None:
        """Note a message, unless it is forged or was heard before; ``apply`` then ends the streams."""
        if signature != self._digests.of(f"\ndisconnect {user} {number}") or signature in self._obeyed:
            return
        self._obeyed[signature] = None
        if len(self._obeyed) > MAX_OBEYED:
            self._obeyed.popitem(last=False)
        self._users.add(user)

    async def apply(self) -> None:
        """End the streams of these users."""
        if not self._users:
            return
        users, self._users = self._users, set()
        ended: Counter[str] = Counter()
        turns = Turns()
        for stream in list(self._hub.streams):
            name = next((each for each in (stream.user, stream.follows) if self._digests.of(each) in users), None)
            if name is not None:
                stream.end(EndReason.REVOKED)
                ended[name] += 1
            await turns.pause()
        for name, count in ended.items():
            log.info("user %r is disconnected: %d streams end", name, count)
