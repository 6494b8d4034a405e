"""Waiting for what must come, as long as it may take on a machine that has much to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 20.0
"""Seconds a test waits for something that must happen in this process; only a failure takes that long."""

PROCESS_TIMEOUT_S = 60.0
"""The same for what other processes do."""


async def eventually(condition: Callable[[], Any], *, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until a condition on this process's own objects holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def wait_for(condition: Callable[[], object], what: str = "it") -> None:
    """Wait until something holds that another process brings about."""
    deadline = time.monotonic() + PROCESS_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} does not happen"
        time.sleep(0.02)
