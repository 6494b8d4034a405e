"""A client of the bus: ``subscribe`` follows channels and never gives up, ``publish`` sends one event.

    async with subscribe("http://127.0.0.1:8080", ["orders"]) as events:
        async for event in events:
            print(event.id, event.type, event.json())

Stands alone: a program that only talks to a bus needs nothing else of this package.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import inspect
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
import msgspec

from sse_pg.errors import BusUnavailable, ClientError, OutcomeUnknown
from sse_pg.sse_parser import Block, Parser

T = TypeVar("T")

_log = logging.getLogger(__name__)

_OWN_NAMES = "sse-pg."
_LEAST_RETRY = 0.05  # seconds; a server that says "retry: 0" gets no busy loop
_LONGEST_WAIT = 86400.0  # seconds; a slip in Retry-After must not end a subscription
_PROBLEM_LIMIT = 64 << 10
_BAD_URL = (
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    aiohttp.RedirectClientError,
    aiohttp.TooManyRedirects,
)
_LOST = (aiohttp.ClientError, OSError)  # TimeoutError is an OSError


class Event(msgspec.Struct, frozen=True):
    """An event as a subscriber gets it."""

    id: str
    """The cursor to resume from, once this event is dealt with."""
    type: str
    data: str
    """The payload, as JSON text; with ``envelope`` the whole event."""

    def json(self, type: Any = Any) -> Any:  # noqa: A002 - its name in msgspec
        """Decode the data, to ``type`` where one is given. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.data, type=type)


class Gap(msgspec.Struct, frozen=True):
    """What lies after one cursor and before another can no longer be delivered."""

    reason: str
    """``expired`` (purged) or ``unknown`` (the cursor is not of this bus)."""
    after: str
    before: str


class Reconnect(msgspec.Struct, frozen=True):
    """A stream was lost, or could not be had."""

    reason: str
    delay: float
    """Seconds until the next attempt."""
    cursor: str | None
    """Where that one resumes."""


class Published(msgspec.Struct, frozen=True, rename="camel"):
    """The answer to a publish. ``created_at`` is RFC 3339 text."""

    id: int
    channel: str
    event_type: str
    created_at: str


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""


class Backoff:
    """How long to wait before the next attempt: exponential, with full jitter.

    ``base`` and ``cap`` are seconds; ``base`` may be set at any time. ``random`` returns a number in [0, 1).
    """

    def __init__(
        self,
        base: float = 1.0,
        cap: float = 30.0,
        *,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.base = base
        self._cap = cap
        self._random = random
        self._attempts = 0

    def next_delay(self, at_least: float = 0.0) -> float:
        """Return the seconds to wait now; the jitter comes on top of ``at_least``."""
        ceiling = min(self.base * 2.0**self._attempts, max(self.base, self._cap))
        self._attempts = min(self._attempts + 1, 64)
        return at_least + self._random() * ceiling

    def reset(self) -> None:
        """Begin again at ``base``: the last attempt was a success."""
        self._attempts = 0


def retry_after(value: str | None, now: datetime) -> float:
    """Return the seconds that a Retry-After header asks for: a number or a date; 0 for none or nonsense."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _LONGEST_WAIT)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), _LONGEST_WAIT)


class Subscription:
    """Channels being followed: an async iterator of Event, and an async context manager.

    ``cursor`` is where the subscription stands: after the event yielded last, or at the position the server
    has given since. Save it (or ``event.id``), give it back as ``cursor`` later, and nothing is missed.

    Nothing is opened before the first event is asked for, and no task runs: a slow consumer slows the stream
    down, and one too slow is disconnected by the server and resumes. Cancelling a wait for the next event
    loses nothing; iteration may go on afterwards.
    """

    def __init__(
        self,
        url: str,
        channels: Iterable[str] = (),
        *,
        user_id: str | int | None = None,
        cursor: str | int | None = None,
        envelope: bool = False,
        headers: Mapping[str, str] | None = None,
        session: aiohttp.ClientSession | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_reconnect: Callable[[Reconnect], object] | None = None,
        max_silence: float | None = 60.0,
        max_block: int = 16 << 20,
        backoff: Backoff | None = None,
    ) -> None:
        """Prepare to follow ``channels`` of the bus at ``url`` (``http://host:port``, and a prefix if any).

        :param channels: names; none, with a ``user_id``, for all channels of that user.
        :param cursor: where to resume, 0 for all that is retained, None for from now on.
        :param envelope: ask for id, channel, eventType, payload and createdAt in the data.
        :param headers: sent with each request; authorization, say.
        :param session: used, and left open; without one, the subscription has its own.
        :param on_gap: called, and awaited where it is async, when events can no longer be delivered.
        :param on_reconnect: the same, before each wait for the next attempt. Both log a warning by default.
        :param max_silence: seconds without a byte, heartbeats included, after which a stream counts as lost.
        :param max_block: bytes that one event may have.

        The iteration raises ClientError when the server refuses (a 4xx other than 408 and 429) or does not
        speak the protocol, and ends when it answers 204. Whatever else happens, it reconnects.
        Raises ValueError for arguments that cannot be used.
        """
        names = [channels] if isinstance(channels, str) else list(channels)
        if any(not name or "," in name for name in names):
            raise ValueError("a channel name is not empty and has no comma")
        if not names and user_id is None:
            raise ValueError("name the channels to follow, or the user whose channels to follow")
        if max_silence is not None and max_silence <= 0:
            raise ValueError("max_silence is a number of seconds above 0, or None")
        self.cursor = None if cursor is None else str(cursor)
        self._url = _endpoint(url, "stream")
        self._params = {
            **({"channels": ",".join(names)} if names else {}),
            **({} if user_id is None else {"userId": str(user_id)}),
            **({"envelope": "true"} if envelope else {}),
        }
        self._headers = dict(headers or {})
        self._given_session = session
        self._on_gap = on_gap or _log_gap
        self._on_reconnect = on_reconnect or _log_reconnect
        self._max_silence = max_silence
        self._max_block = max_block
        self._backoff = backoff or Backoff()
        self._own_session: aiohttp.ClientSession | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._parser = Parser()
        self._blocks: deque[Block] = deque()
        self._not_before = 0.0  # loop time of the next attempt
        self._busy = False
        self._closed = False
        self._waiting: asyncio.Timeout | None = None  # the wait that close() cuts short

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._busy:
            raise RuntimeError("a subscription is iterated by one task at a time")
        self._busy = True
        try:
            return await self._next()
        except (ClientError, StopAsyncIteration):
            await self.close()
            raise
        finally:
            self._busy = False

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the stream and end the iteration, also one that waits in another task. May be called again."""
        self._closed = True
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(0)
        self._drop()
        session, self._own_session = self._own_session, None
        if session is not None:
            await session.close()

    aclose = close

    def __del__(self) -> None:
        # For a loop left by break, without a context manager. The own session pools no connection.
        if getattr(self, "_response", None) is not None:
            self._drop()
        session: aiohttp.ClientSession | None = getattr(self, "_own_session", None)
        if session is not None:
            session.detach()

    async def _next(self) -> Event:
        while not self._closed:
            if self._blocks:
                event = await self._take(self._blocks[0])
                if event is not None:
                    return event
                continue
            wait = 0.0
            try:
                if self._response is None:
                    await self._connect()
                else:
                    await self._read(self._response)
                continue
            except _BAD_URL as error:
                raise ClientError(f"{self._url} cannot be used: {_reason(error)}") from error
            except _BusyError as busy:
                reason, wait = str(busy), busy.wait
            except _LOST as error:
                reason = _reason(error)
            self._drop()
            if not self._closed:
                delay = self._backoff.next_delay(wait)
                self._not_before = asyncio.get_running_loop().time() + delay
                await _call(self._on_reconnect, Reconnect(reason, delay, self.cursor))
        raise StopAsyncIteration

    async def _take(self, block: Block) -> Event | None:
        if block.event == "sse-pg.gap":
            try:
                gap = msgspec.json.decode(block.data, type=Gap)
            except msgspec.DecodeError as error:
                raise ClientError(f"the server sent a gap that cannot be read: {error}") from error
            await _call(self._on_gap, gap)  # may raise; the gap is then told again
        elif block.event == "sse-pg.hello":
            self._backoff.reset()
        if block.retry is not None:
            self._backoff.base = min(max(block.retry / 1000, _LEAST_RETRY), _LONGEST_WAIT)
        self._blocks.popleft()
        if block.id:
            self.cursor = block.id
        if block.event.startswith(_OWN_NAMES):
            return None
        return Event(block.id, block.event, block.data)

    async def _connect(self) -> None:
        delay = self._not_before - asyncio.get_running_loop().time()
        if delay > 0:
            await self._bounded(asyncio.sleep(delay), None)
        if self._closed:
            return
        headers = {
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "Cache-Control": "no-store",
            **self._headers,
        }
        if self.cursor is not None:
            headers["Last-Event-ID"] = self.cursor
        request = self._session().get(
            self._url, params=self._params, headers=headers, timeout=aiohttp.ClientTimeout(total=None)
        )
        response = await self._bounded(request, self._max_silence)
        try:
            await self._bounded(self._check(response), self._max_silence)
        except BaseException:
            response.close()
            raise
        self._response = response
        self._parser = Parser(limit=self._max_block, last_event_id=self.cursor or "")

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 204:
            raise StopAsyncIteration
        if _is_temporary(response.status):
            raise _BusyError(await _problem(response), _wait_asked(response))
        if response.status != 200:
            raise ClientError(await _problem(response))
        if response.content_type != "text/event-stream":
            raise ClientError(f"{self._url} answers {response.content_type}, not an event stream")

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        self._parser.feed(b"")  # raises what the chunk before could not, for the blocks in it
        chunk = await self._bounded(response.content.readany(), self._max_silence)
        if not chunk:
            raise aiohttp.ServerDisconnectedError("the server ended the stream")
        self._blocks.extend(self._parser.feed(chunk))

    async def _bounded(self, work: Awaitable[T], seconds: float | None) -> T:
        """Await work, for so long at most; close() ends it too. Both raise TimeoutError."""
        try:
            async with asyncio.timeout(seconds) as self._waiting:
                result = await work
        except TimeoutError as error:
            if self._waiting is not None and self._waiting.expired():
                raise TimeoutError(f"nothing came for {seconds} s") from error
            raise
        finally:
            self._waiting = None
        return result

    def _session(self) -> aiohttp.ClientSession:
        if self._given_session is not None:
            return self._given_session
        if self._own_session is None:
            self._own_session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        return self._own_session

    def _drop(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()


subscribe = Subscription


async def publish(
    url: str,
    channel: str,
    payload: Any,
    *,
    event_type: str = "message",
    idempotency_key: str | None = None,
    session: aiohttp.ClientSession | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    attempts: int = 5,
    backoff: Backoff | None = None,
) -> Published:
    """Publish one event; ``payload`` is anything msgspec encodes as JSON (msgspec.Raw passes JSON text on).

    With an idempotency key, a lost connection and a busy server are tried again, ``attempts`` times in all: the
    event is published once however often it arrives. ``timeout`` is seconds for each attempt, and the longest
    Retry-After that is waited for.

    Raises ClientError when the server refuses, BusUnavailable when it cannot be reached (nothing was published),
    OutcomeUnknown when the connection is lost and the event may or may not be published.
    """
    target = _endpoint(url, "publish")
    key = {} if idempotency_key is None else {"idempotencyKey": idempotency_key}
    body = msgspec.json.encode({"channel": channel, "eventType": event_type, "payload": payload, **key})
    send_headers = {"Content-Type": "application/json", **(headers or {})}
    backoff = backoff or Backoff(base=0.2, cap=5.0)
    left = attempts if idempotency_key is not None else 1
    async with contextlib.AsyncExitStack() as stack:
        if session is None:
            session = await stack.enter_async_context(aiohttp.ClientSession())
        while True:
            left -= 1
            wait = 0.0
            failure: Exception
            try:
                async with session.post(
                    target, data=body, headers=send_headers, timeout=aiohttp.ClientTimeout(total=timeout)
                ) as response:
                    if response.status in {200, 201}:
                        return msgspec.json.decode(await response.read(), type=Published)
                    failure = ClientError(await _problem(response))
                    if not _is_temporary(response.status):
                        raise failure
                    wait = _wait_asked(response)
            except msgspec.DecodeError as error:
                raise ClientError(f"{target} gives an answer that cannot be read: {error}") from error
            except _BAD_URL as error:
                raise ClientError(f"{target} cannot be used: {_reason(error)}") from error
            except aiohttp.ClientConnectorError as error:
                failure = BusUnavailable(f"nothing was published, {target} is away: {_reason(error)}")
                failure.__cause__ = error
            except _LOST as error:
                failure = OutcomeUnknown(
                    f"it is unknown whether the event is published, {target} went away: {_reason(error)}"
                )
                failure.__cause__ = error
            if left <= 0 or wait > timeout:
                raise failure
            await asyncio.sleep(backoff.next_delay(wait))


class _BusyError(Exception):
    """The server asks to come back later, after ``wait`` seconds at least."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


def _endpoint(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/api/events/{name}"


def _is_temporary(status: int) -> bool:
    return status in {408, 429} or status >= 500


def _wait_asked(response: aiohttp.ClientResponse) -> float:
    return retry_after(response.headers.get("Retry-After"), datetime.now(UTC))


async def _problem(response: aiohttp.ClientResponse) -> str:
    """Say in one line what a refusal says: its status, and the problem document where there is one."""
    body = b""
    try:
        body = await response.content.readexactly(_PROBLEM_LIMIT)
    except asyncio.IncompleteReadError as error:
        body = error.partial
    except _LOST:
        pass  # the status alone, then
    problem = _Problem()
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        problem = msgspec.json.decode(body, type=_Problem)
    title = problem.title or response.reason or ""
    text = f"{response.url.origin()}{response.url.path} answers {response.status} {title}: {problem.detail}"
    return " ".join(text.split()).removesuffix(":")


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def _call(callback: Callable[[T], object], argument: T) -> None:
    result = callback(argument)
    if inspect.isawaitable(result):
        await result


def _log_gap(gap: Gap) -> None:
    _log.warning("events after %s and before %s are lost: %s", gap.after, gap.before, gap.reason)


def _log_reconnect(lost: Reconnect) -> None:
    _log.warning("the stream is lost (%s); the next attempt comes in %.1f s", lost.reason, lost.delay)
