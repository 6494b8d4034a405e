"""What one client may take of a server: streams, publishes, memory for bodies. Each limit is of one process."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from aiohttp import web

from sse_pg.config import Settings
from sse_pg.errors import SettingError
from sse_pg.http.problem import Problem, unavailable

#: Seconds after which a client that has all its streams may ask again.
STREAMS_RETRY = 10
#: Characters of the longest address, with room for an interface's name.
LONGEST_ADDRESS = 64


class Proxies:
    """The proxies whose word on a client's address is taken."""

    def __init__(self, text: str) -> None:
        """Read addresses and networks, separated by commas. Raises SettingError."""
        try:
            self._networks = [ip_network(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise SettingError(
                f"SSE_PG_TRUSTED_PROXIES={text!r}: allowed are addresses and networks such as 10.0.0.0/8, "
                f"separated by commas ({error})"
            ) from None

    def client(self, request: web.BaseRequest) -> str:
        """Return the address of who asks: the last one in X-Forwarded-For that is no proxy of ours.

        A header of a peer that is no trusted proxy is not looked at, and neither is what stands left of an
        address that is not trusted: the client wrote it.
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
    return _parsed(text) if len(text) <= LONGEST_ADDRESS else None


@lru_cache(4096)  # each request asks, and reading an address takes as long as decoding an event
def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def site(text: str) -> str:
    """Return what counts as one address: of IPv6 a whole /64, which is what one household has."""
    return _site(text) if len(text) <= LONGEST_ADDRESS else text


@lru_cache(4096)
def _site(text: str) -> str:
    address = _address(text)
    if isinstance(address, IPv6Address):
        return str(ip_network((address.packed[:8] + bytes(8), 64)))
    return str(address or text)


class StreamLimits:
    """How many streams a user and an address have open."""

    def __init__(self, per_user: int, per_address: int) -> None:
        self._most = {"user": per_user, "address": per_address}
        self._open: Counter[tuple[str, str]] = Counter()

    def take(self, user: str | None, address: str) -> None:
        """Count a stream. Raises the 429 where there are enough."""
        keys = _keys(user, address)
        for kind, key in keys:
            most = self._most[kind]
            if most and self._open[kind, key] >= most:
                raise too_many(f"This {kind} has its {most} streams on this server.", STREAMS_RETRY, f"streams_{kind}")
        self._open.update(keys)

    def give_back(self, user: str | None, address: str) -> None:
        """Count a stream no longer."""
        for each in _keys(user, address):
            self._open[each] -= 1
            if not self._open[each]:
                del self._open[each]


def _keys(user: str | None, address: str) -> list[tuple[str, str]]:
    return [("address", site(address))] + ([("user", user)] if user is not None else [])


class PublishRate:
    """So many events a second for each who publishes: a bucket that holds one second's worth.

    Who has anything left may publish a batch of any size, and waits until it is paid off.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._full_at: dict[str, float] = {}  # when the bucket is full again; absent: it is
        self._look_again = 1000

    def check(self, who: str) -> None:
        """Raise the 429 where ``who`` has published too much of late."""
        if not self._rate:
            return
        owed = max(0.0, self._full_at.get(who, 0.0) - self._clock()) * self._rate
        left = max(1.0, self._rate) - owed
        if left < 1 - 1e-6:  # a rounding error is no debt
            wait = (1 - left) / self._rate
            detail = f"At most {self._rate:g} events a second; nothing was published."
            raise too_many(detail, max(1, math.ceil(wait)), "publish_rate")

    def charge(self, who: str, events: int) -> None:
        """Take the price of some events."""
        if not self._rate:
            return
        now = self._clock()
        self._full_at[who] = max(self._full_at.get(who, 0.0), now) + events / self._rate
        if len(self._full_at) > self._look_again:
            self._full_at = {name: full for name, full in self._full_at.items() if full > now}
            self._look_again = max(1000, 2 * len(self._full_at))


class Bodies:
    """Reads request bodies: each within a time and a size, all of them together within an amount of memory."""

    def __init__(self, largest: int, most: int, seconds: float) -> None:
        self._largest = largest
        self._most = most
        self._seconds = seconds
        self.held = 0
        """Bytes of the bodies of the requests that are not answered yet."""

    async def read(self, request: web.Request) -> bytes:
        """Return a body; it counts until the request is answered. Raises the 408, 413 or 503 that names the limit."""
        body = bytearray()  # not a list of parts: a body that comes byte by byte would take 40 times its size
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: self._release(len(body)))  # aiohttp has a task for each request
        content = request.content
        if content.is_eof():  # it came with the head, as small ones do: nothing to wait for
            self._add(body, content.read_nowait())
            return bytes(body)
        try:
            async with asyncio.timeout(self._seconds):
                async for part in content.iter_any():
                    self._add(body, part)
        except TimeoutError:
            detail = f"The body did not arrive within {self._seconds:g} s."
            raise Problem(408, detail, headers={"Connection": "close"}) from None
        return bytes(body)

    def _add(self, body: bytearray, part: bytes) -> None:
        self.held += len(part)
        body += part
        if len(body) > self._largest:
            # Not request.client_max_size: that is of the application that this one is mounted in.
            raise Problem(413, f"The body is larger than {self._largest} bytes.")
        if self.held > self._most:
            problem = unavailable("This server reads as many bodies now as it has memory for.", limit="bodies")
            problem.headers["Connection"] = "close"
            raise problem

    def _release(self, size: int) -> None:
        self.held -= size


class Limits:
    """The limits of a server, put together."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingError."""
        self.proxies = Proxies(settings.trusted_proxies)
        self.streams = StreamLimits(settings.max_streams_user, settings.max_streams_address)
        self.publishing = PublishRate(settings.publish_rate)
        self.bodies = Bodies(settings.max_body, settings.max_bodies, settings.body_seconds)


def too_many(detail: str, seconds: int, limit: str) -> Problem:
    """Return the 429 that says when to come back."""
    return Problem(429, detail, headers={"Retry-After": str(seconds)}, limit=limit)
