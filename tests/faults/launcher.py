"""Servers without heartbeats."""

from __future__ import annotations

from typing import Any

from support.server import Launcher, Server


class QuietLauncher(Launcher):
    """Starts servers that send no heartbeats and no positions."""

    async def __call__(self, *, ready: bool = True, **overrides: Any) -> Server:
        return await super().__call__(ready=ready, **{"heartbeat": 3600.0, **overrides})
