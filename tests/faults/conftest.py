"""Servers without heartbeats: a test that waits for what never comes ends when its patience does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from support import Launcher, Server


class QuietLauncher(Launcher):
    """Starts servers that say nothing of themselves."""

    async def __call__(self, *, ready: bool = True, **overrides: Any) -> Server:
        return await super().__call__(ready=ready, **{"heartbeat": 3600.0, **overrides})


@pytest.fixture
async def launch(database_url: str) -> AsyncIterator[Launcher]:
    """Start servers in this process: ``server = await launch(ring_events=0)``."""
    launcher = QuietLauncher(database_url)
    yield launcher
    await launcher.close()
