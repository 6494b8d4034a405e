"""The key set of an identity provider: fetched when it is first needed, cached, and refreshed regularly."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from sse_pg.auth.keys import Key, jwk_keys
from sse_pg.errors import KeysUnavailable

log = logging.getLogger(__name__)

#: Maximum time of one fetch, and maximum size of a key set.
FETCH_TIMEOUT_S = 5.0
MAX_KEY_SET_BYTES = 1 << 20


class Jwks:
    """Keys from a URL. The last fetched keys stay in use while the URL does not respond."""

    def __init__(self, url: str, *, refresh: float, pause: float) -> None:
        """``refresh``: age of the set, in seconds, at which it is fetched again. ``pause``: seconds between fetches."""
        self._url = url
        parts = urlsplit(url)
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # no password, no key
        self._refresh = refresh
        self._pause = pause
        self._fetched_at = self._tried_at = -float("inf")
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[bool] | None = None
        self.keys: list[Key] = []

    async def current(self) -> None:
        """Make sure that there are keys. Raises KeysUnavailable if there are none and they cannot be fetched."""
        if not self.keys:
            await self.fetch()
            if not self.keys:
                raise KeysUnavailable("the keys of the identity provider are unavailable")
        elif time.monotonic() - max(self._fetched_at, self._tried_at) >= self._refresh and (
            self._task is None or self._task.done()
        ):
            # No request waits for it: the old keys are valid until then.
            self._task = asyncio.create_task(self.fetch())

    async def fetch(self) -> bool:
        """Fetch the set, unless that was tried within ``pause``. Return whether the keys are newer than the call."""
        asked_at = time.monotonic()
        async with self._lock:
            if asked_at - self._tried_at < self._pause or self._fetched_at >= asked_at:
                return self._fetched_at >= asked_at  # a fetch that ended while this call waited serves it too
            self._tried_at = time.monotonic()
            try:
                keys = jwk_keys(await self._get())
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                reason = str(error).replace(self._url, self._shown) or type(error).__name__
                log.warning("the key set at %s cannot be fetched: %s", self._shown, reason)
                return False
            self._fetched_at = time.monotonic()
            self.keys = keys
            return True

    async def close(self) -> None:
        """Cancel a fetch that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _get(self) -> Any:
        # Redirects are not followed: they could lead from https to anywhere.
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(self._url, allow_redirects=False, headers={"Accept": "application/json"}) as response,
        ):
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            body = bytearray()
            async for part in response.content.iter_chunked(65536):
                body += part
                if len(body) > MAX_KEY_SET_BYTES:
                    raise ValueError(f"it has more than {MAX_KEY_SET_BYTES} bytes")
            return msgspec.json.decode(bytes(body))
