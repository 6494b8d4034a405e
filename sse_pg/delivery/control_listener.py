"""What the tail expects of the part that handles the notifications on the channel ``sse_pg_control``."""

from __future__ import annotations

from typing import Protocol


class ControlListener(Protocol):
    """Receives the notifications that are not the bell. The access rules fit it; the tail does not know them."""

    epoch_began: bool
    """An epoch has begun that the tail has not read yet."""

    def heard(self, text: str) -> None:
        """Take in the text of one notification."""

    def missed(self) -> None:
        """Assume that anything may have been said, because nobody listened."""

    async def apply(self) -> None:
        """Do what the notifications ask for. The tail waits for it before it delivers events."""
