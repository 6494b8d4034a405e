"""Servers without heartbeats, so that a test that waits for an event in vain ends at its timeout."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.server import Launcher

from faults.launcher import QuietLauncher


@pytest.fixture
async def launch(database_url: str) -> AsyncIterator[Launcher]:
    """Start servers in this process: ``server = await launch(ring_events=0)``."""
    launcher = QuietLauncher(database_url)
    yield launcher
    await launcher.close()
