"""How much one client may use: streams, publishes, memory for bodies. Each limit is counted per process."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from aiohttp import web

from sse_pg.config import Settings
from sse_pg.errors import SettingError
from sse_pg.http.connections import Connection
from sse_pg.http.inflate import inflater
from sse_pg.http.problem import Problem, unavailable

#: Retry-After of a client that has reached its limit of streams.
STREAMS_RETRY_AFTER_S = 10
#: Maximum characters of an address, with room for the name of an interface.
MAX_ADDRESS_LENGTH = 64


class Proxies:
    """The proxies that are trusted to say a client's address."""

    def __init__(self, text: str) -> None:
        """Parse addresses and networks, separated by commas. Raises SettingError."""
        try:
            self._networks = [ip_network(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise SettingError(
                f"SSE_PG_TRUSTED_PROXIES={text!r}: allowed are addresses and networks such as 10.0.0.0/8, "
                f"separated by commas ({error})"
            ) from None

    def client(self, request: web.BaseRequest) -> str:
        """Return the client's address: the last one in X-Forwarded-For that is not a trusted proxy.

        The header is ignored if the peer is not a trusted proxy. Entries to the left of an address that is not trusted
        are ignored too, because the client wrote them.
        """
        address = request.remote or "unknown"
        if not self._networks or not self._trusts(address):
            return address
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        for hop in reversed([hop.strip() for hop in hops]):
            if _address(hop) is None:
                break
            address = hop
            if not self._trusts(hop):
                break
        return address

    def _trusts(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    return _parsed(text) if len(text) <= MAX_ADDRESS_LENGTH else None


@lru_cache(4096)  # every request needs it, and parsing an address takes as long as decoding an event
def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def site(text: str) -> str:
    """Return what counts as one address. For IPv6 this is a whole /64, which is what one household gets."""
    return _site(text) if len(text) <= MAX_ADDRESS_LENGTH else text


@lru_cache(4096)
def _site(text: str) -> str:
    address = _address(text)
    if isinstance(address, IPv6Address):
        return str(ip_network((address.packed[:8] + bytes(8), 64)))
    return str(address or text)


class StreamLimits:
    """The number of open streams of each user and each address."""

    def __init__(self, per_user: int, per_address: int) -> None:
        """0 means no limit."""
        self._limits = {"user": per_user, "address": per_address}
        self._open: Counter[tuple[str, str]] = Counter()

    def take(self, user: str | None, address: str) -> None:
        """Count a stream. Raises a 429 if the limit is reached."""
        keys = _keys(user, address)
        for kind, key in keys:
            limit = self._limits[kind]
            if limit and self._open[kind, key] >= limit:
                detail = f"Stream limit reached: {limit} on this server for one {kind}."
                raise too_many(detail, STREAMS_RETRY_AFTER_S, f"streams_{kind}")
        self._open.update(keys)

    def give_back(self, user: str | None, address: str) -> None:
        """Stop counting a stream."""
        for each in _keys(user, address):
            self._open[each] -= 1
            if not self._open[each]:
                del self._open[each]


def _keys(user: str | None, address: str) -> list[tuple[str, str]]:
    return [("address", site(address))] + ([("user", user)] if user is not None else [])


class PublishRate:
    """The rate at which each publisher may publish: a token bucket that holds one second's worth of events.

    A batch of any size is accepted while anything is left in the bucket; the excess is paid off by waiting.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._full_at: dict[str, float] = {}  # when a bucket is full again; full buckets are absent
        self._sweep_size = 1000

    def check(self, who: str) -> None:
        """Raise a 429 if the bucket of ``who`` is empty.

        Before a body is read this saves the work. Only ``take`` counts: any number of requests may be past this check
        while their bodies arrive.
        """
        if not self._rate:
            return
        owed = max(0.0, self._full_at.get(who, 0.0) - self._clock()) * self._rate
        left = max(1.0, self._rate) - owed
        if left < 1 - 1e-6:  # less than a rounding error
            wait = (1 - left) / self._rate
            detail = f"Publish rate limit reached ({self._rate:g} events per second); nothing was published."
            raise too_many(detail, max(1, math.ceil(wait)), "publish_rate")

    def take(self, who: str, events: int) -> None:
        """Take events out of the bucket of ``who``. Raises the 429 if it is empty."""
        if not self._rate:
            return
        self.check(who)
        now = self._clock()
        self._full_at[who] = max(self._full_at.get(who, 0.0), now) + events / self._rate
        if len(self._full_at) > self._sweep_size:
            self._full_at = {name: full for name, full in self._full_at.items() if full > now}
            self._sweep_size = max(1000, 2 * len(self._full_at))


class Bodies:
    """Reads request bodies, with limits on the time and size of each and on the memory of all together."""

    def __init__(self, max_body: int, max_total: int, timeout: float) -> None:
        """Sizes are in bytes, ``timeout`` is in seconds."""
        self._max_body = max_body
        self._max_total = max_total
        self._timeout = timeout
        self.held = 0
        """Bytes of the bodies of all requests that have no response yet, and of what was decoded from them."""
        self._held_by: dict[asyncio.Task[Any], int] = {}  # aiohttp has a task for each request

    async def read(self, request: web.Request) -> bytes:
        """Return a body, which counts until its request ends. Raises a 408, 413 or 503 that names the limit."""
        body = bytearray()  # not a list of parts: a body that arrives byte by byte would take 40 times its size
        decoder = inflater(request)
        if not isinstance(request.protocol, Connection):
            decoder = None  # this application is mounted in another one, whose connections decode
        content = request.content
        if decoder is None and content.is_eof():  # it arrived with the head, as small bodies do
            self._add(body, content.read_nowait())
            return bytes(body)
        try:
            async with asyncio.timeout(self._timeout):
                async for part in content.iter_any():
                    if decoder is None:
                        self._add(body, part)
                        continue
                    for piece in decoder.feed(part):
                        self._add(body, piece)
                        await asyncio.sleep(0)  # a small part can become a large body
            if decoder is not None:
                decoder.finish()
        except TimeoutError:
            detail = f"The body did not arrive within {self._timeout:g} s."
            raise Problem(408, detail, headers={"Connection": "close"}) from None
        return bytes(body)

    def hold(self, size: int) -> None:
        """Count memory until the request of this task ends. Raises a 503 if all requests together hold too much."""
        task = asyncio.current_task()
        assert task is not None
        if task not in self._held_by:
            self._held_by[task] = 0
            task.add_done_callback(self._release)
        self._held_by[task] += size
        self.held += size
        if self.held > self._max_total:
            problem = unavailable("Body memory limit reached; retry later.", limit="bodies")
            problem.headers["Connection"] = "close"
            raise problem

    def _add(self, body: bytearray, part: bytes) -> None:
        body += part
        if len(body) > self._max_body:
            # Not request.client_max_size, which belongs to the application that this one is mounted in.
            raise Problem(413, f"The body is larger than {self._max_body} bytes.")
        self.hold(len(part))

    def _release(self, task: asyncio.Task[Any]) -> None:
        self.held -= self._held_by.pop(task)


class Limits:
    """All limits of a server."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingError."""
        self.proxies = Proxies(settings.trusted_proxies)
        self.streams = StreamLimits(settings.max_streams_user, settings.max_streams_address)
        self.publishing = PublishRate(settings.publish_rate)
        self.bodies = Bodies(settings.max_body, settings.max_bodies, settings.body_seconds)


def too_many(detail: str, seconds: int, limit: str) -> Problem:
    """Return a 429 that says when to retry."""
    return Problem(429, detail, headers={"Retry-After": str(seconds)}, limit=limit)
