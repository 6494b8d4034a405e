"""How long a client waits before it tries again: by itself, and where the server asks for a time."""

from __future__ import annotations

import email.utils
import random
from collections.abc import Callable
from datetime import UTC, datetime

#: Seconds; a slip in Retry-After or retry: must not end a subscription.
LONGEST_WAIT = 86400.0


class Backoff:
    """How long to wait before the next attempt: exponential, with full jitter.

    ``base`` and ``cap`` are seconds; ``base`` may be set at any time. ``random`` returns a number in [0, 1).
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
        """Return the seconds to wait now; the jitter comes on top of ``at_least``."""
        ceiling = min(self.base * 2.0**self._attempts, max(self.base, self._cap))
        self._attempts = min(self._attempts + 1, 64)
        return at_least + self._random() * ceiling

    def reset(self) -> None:
        """Begin again at ``base``: the last attempt was a success."""
        self._attempts = 0


def retry_after(value: str | None, now: datetime) -> float:
    """Return the seconds that a Retry-After header asks for: a number or a date; 0 for none or nonsense."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_WAIT)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), LONGEST_WAIT)
