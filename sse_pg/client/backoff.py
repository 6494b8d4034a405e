"""How long a client waits before the next attempt: its own backoff, and the Retry-After header."""

from __future__ import annotations

import email.utils
import random
from collections.abc import Callable
from datetime import UTC, datetime

#: Limit of Retry-After and retry:, so that a mistake of a server does not stop a subscription for good.
MAX_WAIT_S = 86400.0


class Backoff:
    """Exponential backoff with full jitter.

    ``base`` and ``cap`` are in seconds; ``base`` may be changed at any time. ``random`` returns a number in [0, 1).
    """

    def __init__(
        self,
        base: float = 1.0,
        cap: float = 30.0,
        *,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.base = base
        self._cap = cap
        self._random = random
        self._attempts = 0

    def next_delay(self, at_least: float = 0.0) -> float:
        """Return how many seconds to wait now: ``at_least`` plus the jittered backoff."""
        ceiling = min(self.base * 2.0**self._attempts, max(self.base, self._cap))
        self._attempts = min(self._attempts + 1, 64)
        return at_least + self._random() * ceiling

    def reset(self) -> None:
        """Start again at ``base``, after a successful attempt."""
        self._attempts = 0


def retry_after(value: str | None, now: datetime) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date; 0 if it is missing or invalid."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_WAIT_S)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), MAX_WAIT_S)
