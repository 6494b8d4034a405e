"""Why streams end."""

from __future__ import annotations

from enum import Enum


class EndReason(Enum):
    """Why a stream ended. The value is the label in the metrics; ``description`` is the text in the log."""

    description: str

    CLIENT = "client", "the client closed the connection"
    SLOW = "slow", "the client read too slowly"
    FINISHED = "finished", "its channels are finished"
    DRAIN = "drain", "the server is stopping"
    EXPIRED = "expired", "the token has expired"
    REVOKED = "revoked", "access was withdrawn"
    RULE_FAILED = "rule_failed", "the access rule could not be evaluated"
    ERASED = "erased", "an erased event was still to be sent"
    ERROR = "error", "an error"

    def __new__(cls, label: str, description: str) -> EndReason:
        """Make a member whose value is the label."""
        member = object.__new__(cls)
        member._value_ = label
        member.description = description
        return member

    @property
    def aborts(self) -> bool:
        """Whether the connection is aborted. Otherwise the response is ended properly."""
        return self in (EndReason.SLOW, EndReason.ERASED, EndReason.ERROR)
