"""Notifications on the channel ``sse_pg_control``: changes that have to be applied before events are delivered."""

from __future__ import annotations

from sse_pg.auth.authorizer import Authorizer
from sse_pg.auth.digests import Digests
from sse_pg.auth.disconnects import Disconnects
from sse_pg.auth.followers import Followers
from sse_pg.db.store import Store
from sse_pg.delivery.erasures import Erasures
from sse_pg.delivery.stream_answers import StreamAnswers

#: Maximum length of a notification that is looked at. Those of the database's own functions are shorter.
MAX_NOTIFICATION_CHARS = 100


class Control:
    """Notes these notifications as they arrive; ``apply`` does what they ask for.

    Every login may send notifications. One that was not sent by the database's own functions has no digest that is
    known here, and changes nothing. One that was heard before and is sent again costs another check.
    """

    def __init__(
        self,
        store: Store,
        digests: Digests,
        followers: Followers,
        authorizer: Authorizer,
        disconnects: Disconnects,
        erasures: Erasures,
        answers: StreamAnswers,
    ) -> None:
        self._store = store
        self._digests = digests
        self._followers = followers
        self._authorizer = authorizer
        self._disconnects = disconnects
        self._erasures = erasures
        self._answers = answers
        self._heard: set[tuple[str, ...]] = set()
        self._missed = True
        self.epoch_began = False
        """An epoch has begun that the tail has not read yet."""

    def heard(self, text: str) -> None:
        """Note one notification: what has changed, and for whom."""
        if text == "epoch":
            self.epoch_began = True
        elif text == "deleted":
            self._erasures.heard()
        elif text == "streams":
            self._answers.heard()
        elif len(text) <= MAX_NOTIFICATION_CHARS:
            self._heard.add(tuple(text.split(" ")))

    def missed(self) -> None:
        """Assume that anything may have changed, because nobody listened."""
        self._missed = True
        self._erasures.missed()

    async def apply(self) -> None:
        """Hold the streams that the changes concern. What they may have now is decided while delivery goes on."""
        if self._missed:
            if self._digests.use(await self._store.control_key()):
                self._followers.rename()
            self._missed = False
            self._heard.clear()
            self._authorizer.revoked(None, None)
            self._followers.changed(None)
        heard, self._heard = self._heard, set()
        for words in heard:
            self._note(*words)
        await self._followers.apply()
        await self._authorizer.apply()
        await self._disconnects.apply()

    def _note(self, what: str, *digests: str) -> None:
        everybody = self._digests.of("")
        names = [None if digest == everybody else digest for digest in digests]
        if what == "subscriptions" and len(names) == 1:
            self._followers.changed(names[0])
        elif what == "revoke" and len(names) == 2:
            user, channel = names
            self._authorizer.revoked(user, channel)
            self._followers.changed(user)
        elif what == "disconnect" and len(digests) == 3:
            self._disconnects.heard(*digests)
