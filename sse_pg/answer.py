"""JSON answers."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiohttp import web


def answer(
    body: object,
    status: int = 200,
    *,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
) -> web.Response:
    """Return a body as JSON, with a line end behind it: for whoever asks from a terminal."""
    return web.Response(
        status=status, body=msgspec.json.encode(body) + b"\n", content_type=content_type, headers=headers
    )
