"""sse_pg: a Postgres-native event bus. INSERT publishes, NOTIFY wakes, Server-Sent Events deliver.

``create_app(Settings(...))`` is the server as an aiohttp application, which can be mounted in another one;
``sse_pg.client`` is the client. The server is imported on first use, so that a program that only uses the client needs
no database driver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sse_pg import version

if TYPE_CHECKING:
    from sse_pg.app import create_app
    from sse_pg.config import Settings

__version__ = version.VERSION

__all__ = ["Settings", "__version__", "create_app"]

_HOMES = {"Settings": "sse_pg.config", "create_app": "sse_pg.app"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
