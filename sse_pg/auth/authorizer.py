"""The access rule in SQL: asks sse_pg.authorize(), and caches its answers for a short time or until a revocation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from random import random
from typing import Any

from sse_pg.auth.digests import Digests
from sse_pg.auth.holds import Holds
from sse_pg.auth.recent_revocations import RecentRevocations
from sse_pg.auth.revocations import Revocation, Revocations
from sse_pg.db.store import Store
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.turns import Turns
from sse_pg.errors import BusUnavailable, RuleFailed, fresh

log = logging.getLogger(__name__)

#: user, action, channel
Question = tuple[str | None, str, str]
#: Maximum number of cached answers; the least recently used one is dropped.
MAX_CACHED_ANSWERS = 50000
#: Maximum number of questions in one statement.
MAX_QUESTIONS_PER_STATEMENT = 500
#: Users for whom the rule may take too long, one after the other, before no others are asked about.
MAX_LATE_USERS = 3
#: Average pause before the next attempt if the database is unavailable.
RETRY_PAUSE_S = 0.5


class Authorizer:
    """Asks the rule and caches its answers.

    The rule as shipped allows everything. While it is in place, the rule is not asked; whether it still is in place is
    checked as often as answers expire.
    """

    def __init__(
        self, store: Store, tail_store: Store, holds: Holds, digests: Digests, *, seconds: float, timeout: float
    ) -> None:
        """``seconds`` is how long an answer is cached, ``timeout`` how many seconds the rule may take.

        ``tail_store`` serves the questions about open streams, which must not wait behind requests.
        """
        self._store = store
        self._tail_store = tail_store
        self._holds = holds
        self._digests = digests
        self._seconds = seconds
        self._timeout = timeout
        self._answers: OrderedDict[Question, tuple[bool, float, int]] = OrderedDict()
        """Each with the time until which it is valid, and the generation in which it was cached."""
        self._shipped = False
        self._shipped_until = 0.0
        self._checks: dict[Store, tuple[int, asyncio.Task[bool]]] = {}
        """The check under way whether the rule is as shipped, and the generation in which it began."""
        self._generation = 0
        self._streams: set[Stream] = set()
        self._heard: set[Revocation] = set()
        """Whose open streams have to be held."""
        self._holding: set[Revocation] = set()
        """Whose open streams are being held."""
        self._revoked: set[Revocation] = set()
        """Whose open streams are held and have to be asked about."""
        self._held: set[Stream] = set()
        self._task: asyncio.Task[None] | None = None
        self._recent = RecentRevocations(digests, seconds)

    @property
    def asks_nobody(self) -> bool:
        """Whether authorize() is known to be as shipped."""
        return self._shipped and time.monotonic() < self._shipped_until

    async def allowed(self, user: str | None, action: str, channels: Collection[str]) -> frozenset[str]:
        """Return those of the channels on which the user may do this.

        Raises RuleFailed if the rule gives no answer, and BusUnavailable if the database is unavailable.
        """
        answers = await self._ask([(user, action, channel) for channel in channels], self._store)
        return frozenset(channel for channel in channels if answers[user, action, channel])

    async def followed(self, channels: Mapping[str, Collection[str]]) -> dict[str, frozenset[str]]:
        """Return, for each user, the channels that the user may read. Raises the same errors as ``allowed``."""
        turns = Turns()
        answers: dict[Question, bool] = {}
        for questions in _statements((user, "subscribe", name) for user, names in channels.items() for name in names):
            answers |= await self._ask(questions, self._tail_store)
            await turns.pause()
        allowed: dict[str, frozenset[str]] = {}
        for user, names in channels.items():
            allowed[user] = frozenset(channel for channel in names if answers[user, "subscribe", channel])
            await turns.pause()
        return allowed

    def watch(self, stream: Stream) -> None:
        """Recheck a stream after revocations. Call it before the first question, so that no revocation is missed."""
        self._streams.add(stream)

    def unwatch(self, stream: Stream) -> None:
        """Stop rechecking a stream."""
        self._streams.discard(stream)

    def revoked(self, user: str | None, channel: str | None) -> None:
        """Forget the answers for the digests of a user and a channel (None: any); ``apply`` then asks again."""
        self._generation += 1
        self._shipped_until = 0.0
        if self._answers:  # with an empty cache there is nothing to forget
            self._recent.note((user, channel), self._generation, time.monotonic())
        self._heard.add((user, channel))

    async def apply(self) -> None:
        """Hold the open streams that revocations concern, and start to ask about them again.

        Those that are no longer allowed end, or go on without what is not allowed if their client asked for that. The
        others go on from where they were. A stream without an answer within the time that the rule may take ends, and
        its client reconnects.
        """
        if not self._heard:
            return
        self._holding, self._heard = self._heard, set()
        holding, turns = Revocations(self._holding, self._digests), Turns()
        for stream in list(self._streams):  # those that come later ask for themselves
            if stream in self._streams and stream not in self._held and _concern(holding, stream):
                self._held.add(stream)
                self._holds.hold(stream)
            await turns.pause()
        self._revoked |= self._holding
        self._holding = set()
        if self._task is None:
            self._task = asyncio.create_task(self._recheck())

    async def close(self) -> None:
        """Stop asking."""
        tasks: list[asyncio.Task[Any]] = [check for _, check in self._checks.values()]
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _recheck(self) -> None:
        try:
            while self._revoked:
                revoked, self._revoked = self._revoked, set()
                try:
                    await self._recheck_streams(revoked)
                except BusUnavailable:
                    self._revoked |= revoked
                    await asyncio.sleep(RETRY_PAUSE_S * (0.5 + random()))  # noqa: S311 - jitter
                await self._release()
        finally:
            self._task = None

    async def _release(self) -> None:
        """Let go of the held streams that no other revocation concerns. More may come meanwhile."""
        turns = Turns()
        others: set[Revocation] = set()
        undecided = Revocations(others, self._digests)
        for stream in list(self._held):
            if others != self._revoked | self._holding:
                others = self._revoked | self._holding
                undecided = Revocations(others, self._digests)
            if not _concern(undecided, stream):
                self._held.discard(stream)
                self._holds.release(stream)
            await turns.pause()

    async def _recheck_streams(self, revoked: set[Revocation]) -> None:
        if await self._is_shipped(self._tail_store):
            return
        concerned, turns = Revocations(revoked, self._digests), Turns()
        asked: dict[Stream, list[Question]] = {}
        by_user: dict[str | None, dict[Question, None]] = {}
        for stream in list(self._streams):
            names = concerned.among(stream.user, stream.channels)
            asked[stream] = [(stream.user, "subscribe", channel) for channel in names]
            by_user.setdefault(stream.user, {}).update(dict.fromkeys(asked[stream]))
            await turns.pause()
        answers: dict[Question, bool] = {}
        deadline = time.monotonic() + self._timeout
        try:
            for questions in _statements(each for of_user in by_user.values() for each in of_user):
                if time.monotonic() >= deadline:
                    log.error("authorize() is too slow: after a revocation, streams end without having been checked")
                    break
                answers |= await self._ask(questions, self._tail_store)
                await turns.pause()
        except RuleFailed:
            answers |= await self._ask_per_user(by_user)
        for stream, questions in asked.items():
            refused = frozenset(each[2] for each in questions if not answers.get(each, False))
            if refused and stream.denied is not None and all(each in answers for each in questions):
                self._holds.hold(stream)  # those that came later are not held
                self._holds.deny(stream, refused)
                self._holds.release(stream)
            elif refused:
                stream.end(EndReason.REVOKED)
            await turns.pause()

    async def _ask_per_user(self, by_user: Mapping[str | None, Collection[Question]]) -> dict[Question, bool]:
        """Ask about each user alone, because the rule fails for one of them."""
        answers: dict[Question, bool] = {}
        late = 0
        for asked in by_user.values():
            try:
                answers |= await self._ask(asked, self._tail_store)
            except RuleFailed as error:  # logged; streams without an answer end
                late += error.late
                if late == MAX_LATE_USERS:
                    break
        return answers

    async def _ask(self, questions: Collection[Question], store: Store) -> dict[Question, bool]:
        if not questions:
            return {}
        if await self._is_shipped(store):
            self._answers.clear()
            return dict.fromkeys(questions, True)
        now = time.monotonic()
        answers: dict[Question, bool] = {}
        unknown: list[Question] = []
        for question in dict.fromkeys(questions):
            known = self._answers.get(question)
            if known is not None and known[1] > now and not self._recent.concern(question[0], question[2], known[2]):
                answers[question] = known[0]
                self._answers.move_to_end(question)
            else:
                unknown.append(question)
        if unknown:
            generation = self._generation
            try:
                given = await store.authorize(unknown, self._timeout)
            except RuleFailed as error:
                log.error("%s: sse_pg.authorize() failed, so nothing is allowed", error)  # noqa: TRY400 - the error is in the rule, so a traceback of the server does not help
                raise
            answers.update(zip(unknown, given, strict=True))
            if generation == self._generation:  # else the answers may be older than a revocation
                self._cache(zip(unknown, given, strict=True), time.monotonic() + self._seconds)
        return answers

    async def _is_shipped(self, store: Store) -> bool:
        if time.monotonic() < self._shipped_until:
            return self._shipped
        # All requests that wait share the outcome: in an outage, each asking in its turn would take a time-out each.
        asked = self._generation
        while True:
            if store not in self._checks:
                self._checks[store] = self._generation, asyncio.create_task(self._check_shipped(store))
            began, check = self._checks[store]
            try:
                shipped = await asyncio.shield(check)
            except Exception as error:
                raise fresh(error) from error
            if began >= asked:  # otherwise it may be older than a revocation
                return shipped

    async def _check_shipped(self, store: Store) -> bool:
        generation = self._generation
        try:
            shipped = await store.authorize_is_shipped()
            if generation == self._generation:
                self._shipped, self._shipped_until = shipped, time.monotonic() + self._seconds
            return shipped
        finally:
            del self._checks[store]

    def _cache(self, answers: Iterable[tuple[Question, bool]], until: float) -> None:
        for question, answer in answers:
            self._answers[question] = (answer, until, self._generation)
            self._answers.move_to_end(question)
        while len(self._answers) > MAX_CACHED_ANSWERS:
            self._answers.popitem(last=False)


def _concern(revocations: Revocations, stream: Stream) -> bool:
    return bool(revocations.among(stream.user, stream.channels))


def _statements(questions: Iterator[Question]) -> Iterator[list[Question]]:
    """Cut questions into lists, each for one statement."""
    while some := list(islice(questions, MAX_QUESTIONS_PER_STATEMENT)):
        yield some
