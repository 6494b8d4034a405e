"""The key set of an identity provider: fetched when it is needed, kept, and fetched again now and then."""

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

#: Seconds for one fetch, and the most bytes of an answer.
PATIENCE, MOST_BYTES = 5.0, 1 << 20


class Jwks:
    """Keys from a URL. Those that were fetched stay while the URL does not answer."""

    def __init__(self, url: str, *, refresh: float, pause: float) -> None:
        """``refresh``: seconds after which the set is fetched again. ``pause``: seconds between any two fetches."""
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
        """See to it that there are keys. Raises KeysUnavailable when there never were any and there are none now."""
        if not self.keys:
            await self.again()
            if not self.keys:
                raise KeysUnavailable("the keys of the identity provider cannot be had")
        elif time.monotonic() - max(self._fetched_at, self._tried_at) >= self._refresh and (
            self._task is None or self._task.done()
        ):
            # Nobody waits for it: the keys at hand are good until then.
            self._task = asyncio.create_task(self.again())

    async def again(self) -> bool:
        """Fetch the set, unless that was tried a moment ago; True when the keys are others."""
        asked_at = time.monotonic()
        async with self._lock:
            if asked_at - self._tried_at < self._pause or self._fetched_at >= asked_at:
                return self._fetched_at >= asked_at  # who came while it was fetched has what was fetched
            self._tried_at = time.monotonic()
            try:
                keys = jwk_keys(await self._get())
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                reason = str(error).replace(self._url, self._shown) or type(error).__name__
                log.warning("the key set at %s cannot be had: %s", self._shown, reason)
                return False
            self._fetched_at = time.monotonic()
            self.keys = keys
            return True

    async def close(self) -> None:
        """Leave a fetch that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _get(self) -> Any:
        # A redirect could lead from https to anywhere.
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(self._url, allow_redirects=False, headers={"Accept": "application/json"}) as response,
        ):
            if response.status != 200:
                raise ValueError(f"it answers {response.status}")
            body = bytearray()
            async for part in response.content.iter_chunked(65536):
                body += part
                if len(body) > MOST_BYTES:
                    raise ValueError(f"it has more than {MOST_BYTES} bytes")
            return msgspec.json.decode(bytes(body))
