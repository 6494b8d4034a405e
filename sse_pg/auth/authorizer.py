"""The rules in SQL: sse_pg.authorize() is asked, its answers hold for a moment, and a revocation ends that at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping

from sse_pg.db.store import Store
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.stream import Stream
from sse_pg.errors import RuleFailed

log = logging.getLogger(__name__)

#: user, action, channel
Question = tuple[str | None, str, str]
#: user, channel; None is any
Revocation = tuple[str | None, str | None]

#: Answers that are remembered; the one used longest ago makes room.
REMEMBERED = 50000
#: Questions of one statement.
AT_ONCE = 500


class Authorizer:
    """Asks, and remembers. While authorize() is as shipped nobody is asked; that, too, is looked at now and then."""

    def __init__(self, store: Store, tail_store: Store, *, seconds: float, timeout: float) -> None:
        """``seconds``: how long an answer holds. ``timeout``: what one asking may take.

        ``tail_store`` is for the asking that delivery waits for.
        """
        self._store = store
        self._tail_store = tail_store
        self._seconds = seconds
        self._timeout = timeout
        self._answers: OrderedDict[Question, tuple[bool, float]] = OrderedDict()
        self._shipped = False
        self._shipped_until = 0.0
        self._looking = asyncio.Lock()
        self._generation = 0
        self._streams: set[Stream] = set()
        self._revoked: set[Revocation] = set()
        """For whose open streams ``recheck`` has to ask."""
        self._outdated: set[Revocation] = set()
        """Whose answers are to be forgotten: all at once, before the next is looked up."""

    @property
    def asks_nobody(self) -> bool:
        """Whether authorize() is known to be as shipped."""
        return self._shipped and time.monotonic() < self._shipped_until

    async def allowed(self, user: str | None, action: str, channels: Collection[str]) -> frozenset[str]:
        """Return those of the channels that the user may do this with.

        Raises RuleFailed where the rule gives no answer, and BusUnavailable when the database is away.
        """
        answers = await self._ask([(user, action, channel) for channel in channels], self._store)
        return frozenset(channel for channel in channels if answers[user, action, channel])

    async def followed(self, channels: Mapping[str, Collection[str]]) -> dict[str, frozenset[str]]:
        """Return of each user's channels those that the user may follow. Raises as ``allowed`` does."""
        questions = [(user, "subscribe", channel) for user, names in channels.items() for channel in names]
        answers = await self._ask(questions, self._tail_store)
        return {
            user: frozenset(channel for channel in names if answers[user, "subscribe", channel])
            for user, names in channels.items()
        }

    def watch(self, stream: Stream) -> None:
        """Ask again for a stream when something is revoked. Call it before the first asking: nothing falls between."""
        self._streams.add(stream)

    def unwatch(self, stream: Stream) -> None:
        """Forget a stream that has ended."""
        self._streams.discard(stream)

    def revoked(self, user: str | None, channel: str | None) -> None:
        """Forget what was answered for a user and a channel (None: any); ``recheck`` then asks again."""
        self._generation += 1
        self._shipped_until = 0.0
        if self._answers:  # else there is nothing to forget, and nobody to take it out again
            self._outdated.add((user, channel))
        self._revoked.add((user, channel))

    async def recheck(self) -> None:
        """Ask again for the open streams that revocations concern, and end those that are no longer allowed.

        Events wait for it, but no longer than one asking may take; a stream that has no answer by then ends, and its
        client comes back. Raises BusUnavailable when the database is away.
        """
        if not self._revoked:
            return
        revoked = frozenset(self._revoked)
        concerned = {
            stream: {
                (stream.user, "subscribe", channel)
                for channel in stream.channels
                if _is_among(revoked, stream.user, channel)
            }
            for stream in self._streams
        }
        questions = sorted({each for asked in concerned.values() for each in asked}, key=repr)
        answers: dict[Question, bool] = {}
        generation = self._generation
        deadline = time.monotonic() + self._timeout
        try:
            for start in range(0, len(questions), AT_ONCE):
                if time.monotonic() >= deadline:
                    log.error("authorize() is too slow: streams end after a revocation without having been asked for")
                    break
                answers |= await self._ask(questions[start : start + AT_ONCE], self._tail_store)
        except RuleFailed:
            pass  # logged; what has no answer ends
        if generation == self._generation:  # else the answers may be older than the last of the revocations
            self._revoked.clear()
        for stream, asked in concerned.items():
            if not all(answers.get(each, False) for each in asked):
                stream.end(EndReason.REVOKED)

    async def _ask(self, questions: Collection[Question], store: Store) -> dict[Question, bool]:
        if not questions:
            return {}
        if await self._is_shipped(store):
            self._answers.clear()
            self._outdated.clear()
            return dict.fromkeys(questions, True)
        self._forget()
        now = time.monotonic()
        answers: dict[Question, bool] = {}
        unknown: list[Question] = []
        for question in dict.fromkeys(questions):
            known = self._answers.get(question)
            if known is not None and known[1] > now:
                answers[question] = known[0]
                self._answers.move_to_end(question)
            else:
                unknown.append(question)
        if unknown:
            generation = self._generation
            try:
                said = await store.authorize(unknown, self._timeout)
            except RuleFailed as error:
                log.error("sse_pg.authorize() gives no answer, so nothing is allowed: %s", error)  # noqa: TRY400 - the traceback is of this server, the fault is not
                raise
            answers.update(zip(unknown, said, strict=True))
            if generation == self._generation:  # else the answers may be older than a revocation
                self._remember(zip(unknown, said, strict=True), time.monotonic() + self._seconds)
        return answers

    async def _is_shipped(self, store: Store) -> bool:
        if time.monotonic() < self._shipped_until:
            return self._shipped
        async with self._looking:
            if time.monotonic() < self._shipped_until:
                return self._shipped
            generation = self._generation
            shipped = await store.authorize_is_shipped()
            if generation == self._generation:
                self._shipped, self._shipped_until = shipped, time.monotonic() + self._seconds
            return shipped

    def _forget(self) -> None:
        if not self._outdated:
            return
        outdated, self._outdated = self._outdated, set()
        if (None, None) in outdated:
            self._answers.clear()
        for user, action, channel in [each for each in self._answers if _is_among(outdated, each[0], each[2])]:
            del self._answers[user, action, channel]

    def _remember(self, answers: Iterable[tuple[Question, bool]], until: float) -> None:
        for question, answer in answers:
            self._answers[question] = (answer, until)
            self._answers.move_to_end(question)
        while len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)


def _is_among(revoked: Collection[Revocation], user: str | None, channel: str) -> bool:
    return any(each in revoked for each in ((user, channel), (user, None), (None, channel), (None, None)))
