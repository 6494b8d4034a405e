"""What the tail expects of the part that handles the notifications on the channel ``sse_pg_control``."""

from __future__ import annotations

from typing import Protocol


class ControlListener(Protocol):
    """Receives the notifications that are not the bell. ``auth/control.py`` provides it; the tail does not know how."""

    epoch_began: bool
    """Whether an epoch has begun that the tail has not read yet."""

    def heard(self, text: str) -> None:
        """Note the payload of one notification."""

    def missed(self) -> None:
        """Assume that any notification may have been lost, because the connection was down."""

    async def apply(self) -> None:
        """Do what the notifications ask for. The tail waits for this before it delivers events."""
