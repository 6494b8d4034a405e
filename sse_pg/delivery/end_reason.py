"""Why streams end."""

from __future__ import annotations

from enum import Enum


class EndReason(Enum):
    """Why a stream ended. The value is the label of the metric; ``words`` is what the log says."""

    words: str

    CLIENT = "client", "the client closed the connection"
    SLOW = "slow", "the client read too slowly"
    DRAIN = "drain", "the server stops"
    EXPIRED = "expired", "its token has expired"
    REVOKED = "revoked", "it is no longer allowed"
    RULE_FAILED = "rule_failed", "the access rule failed"
    ERROR = "error", "an error"

    def __new__(cls, label: str, words: str) -> EndReason:
        """Take the label as the value, and the words beside it."""
        member = object.__new__(cls)
        member._value_ = label
        member.words = words
        return member

    @property
    def cuts(self) -> bool:
        """Whether the connection is cut; otherwise the response ends in order."""
        return self in (EndReason.SLOW, EndReason.ERROR)
