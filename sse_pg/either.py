"""Waiting for the first of two things."""

from __future__ import annotations

import asyncio
from typing import Any


async def either(one: asyncio.Event, other: asyncio.Event | asyncio.Future[Any], timeout: float | None = None) -> None:
    """Wait until ``one`` is set or ``other`` happens: an event is set, or a future or task is done.

    Returns after ``timeout`` seconds, without an error, if neither happens. A future is not cancelled.
    """
    waiting = [asyncio.ensure_future(each.wait()) for each in (one, other) if isinstance(each, asyncio.Event)]
    futures = [other] if isinstance(other, asyncio.Future) else []
    try:
        await asyncio.wait([*waiting, *futures], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
