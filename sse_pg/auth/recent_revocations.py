"""Which cached answers of the access rule are older than a revocation."""

from __future__ import annotations

from collections import OrderedDict

from sse_pg.auth.digests import Digests
from sse_pg.auth.revocations import Revocation

#: Maximum number of revocations that are remembered one by one. If there are more, all count as one that concerns all.
MAX_REVOCATIONS = 10_000


class RecentRevocations:
    """Remembers revocations for as long as an answer may be cached that is older.

    A revocation costs the same however many answers are cached: nothing is searched, and each answer is compared when
    it is looked up.
    """

    def __init__(self, digests: Digests, seconds: float) -> None:
        """``seconds`` is how long an answer is cached."""
        self._digests = digests
        self._seconds = seconds
        self._last: OrderedDict[Revocation, tuple[int, float]] = OrderedDict()
        """By what was revoked: the number of the last revocation, and until when it is remembered. The oldest first."""

    def __len__(self) -> int:
        return len(self._last)

    def note(self, revocation: Revocation, number: int, now: float) -> None:
        """Note a revocation, at a time by time.monotonic(). The numbers ascend."""
        while self._last and next(iter(self._last.values()))[1] < now:
            self._last.popitem(last=False)
        if len(self._last) >= MAX_REVOCATIONS:
            self._last.clear()
            revocation = (None, None)
        self._last[revocation] = (number, now + self._seconds)
        self._last.move_to_end(revocation)

    def concern(self, user: str | None, channel: str, number: int) -> bool:
        """Return whether a revocation after that number concerns a user on a channel."""
        if not self._last:
            return False
        whom, where = self._digests.of(user), self._digests.of(channel)
        for revocation in ((whom, where), (whom, None), (None, where), (None, None)):
            found = self._last.get(revocation)
            if found is not None and found[0] > number:
                return True
        return False
