"""Follows channels over any number of streams, each of which resumes where the one before ended."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, TypeVar

import aiohttp
import msgspec

from sse_pg.client.backoff import MAX_WAIT_S, Backoff
from sse_pg.client.events import Denied, Event, Finished, Gap, Reconnect, Snapshot
from sse_pg.client.parser import Block, Parser
from sse_pg.client.responses import (
    CONNECTION_ERRORS,
    URL_ERRORS,
    endpoint,
    is_temporary,
    problem_of,
    reason_of,
    requested_wait,
)
from sse_pg.errors import BusUnavailable, ClientError

T = TypeVar("T")

_log = logging.getLogger("sse_pg.client")  # part of the interface; __name__ is not

_MAX_ID_DIGITS = 19  # of a bigint
_OWN_NAMES = "sse-pg."
#: The type of the events that are Snapshots.
SNAPSHOT = "sse-pg.snapshot"
#: A server that sends "retry: 0" must not make clients reconnect in a busy loop.
_MIN_RETRY_S = 0.05


class Subscription:
    """A subscription: an async iterator of Event, and an async context manager.

    ``cursor`` is the position of the subscription: after the last event that was yielded, or a newer one that the
    server has sent since. Save it (or ``event.id``) and pass it as ``cursor`` later, and no event is missed.

    The stream is opened when the first event is requested, and no task runs in the background: a slow consumer slows
    the stream down, and one that is too slow is disconnected by the server and resumes. Cancelling the wait for an
    event loses nothing; the iteration can continue afterwards.
    """

    def __init__(
        self,
        url: str,
        channels: Iterable[str] = (),
        *,
        user_id: str | int | None = None,
        cursor: str | int | None = None,
        latest: int | None = None,
        envelope: bool | Literal["cloudevents"] = False,
        until_end: bool = False,
        snapshot: Callable[[], Awaitable[tuple[Any, str | int]]] | None = None,
        headers: Mapping[str, str] | None = None,
        session: aiohttp.ClientSession | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_denied: Callable[[Denied], object] | None = None,
        on_finished: Callable[[Finished], object] | None = None,
        on_reconnect: Callable[[Reconnect], object] | None = None,
        max_silence: float | None = 60.0,
        max_block: int = 16 << 20,
        backoff: Backoff | None = None,
    ) -> None:
        """Prepare to follow ``channels`` of the bus at ``url`` (``http://host:port``, with a prefix if there is one).

        :param channels: names; none, with a ``user_id``, for all channels of that user.
        :param cursor: where to resume; 0 for everything that is retained, None to start now.
        :param latest: without a cursor, begin with so many of the last events of each channel, 1 to 1000.
        :param envelope: ask for the whole event in the data: id, channel, eventType, payload, headers (if it has any)
            and createdAt; with ``"cloudevents"``, for a CloudEvent.
        :param until_end: end the iteration when each of the channels is finished (sse_pg.finish()).
        :param snapshot: an async function that returns a state and its position (sse_pg.position()). It is called at
            the start and after each gap. The iteration yields the state as a Snapshot, and then what comes after it.
            If the function raises OSError, aiohttp.ClientError or BusUnavailable, it is called again later, as a lost
            stream is opened again. ``close`` cancels it.
        :param headers: sent with each request, for example Authorization.
        :param session: used and left open; without one, the subscription creates and closes its own.
        :param on_gap: called if events can no longer be delivered, and awaited if it is async.
        :param on_denied: called likewise with the channels that are not allowed. With it, the stream carries the
            others, also if a channel is revoked while it is open. Without it, or if none is allowed, the iteration
            raises ClientError.
        :param on_finished: called likewise when a channel is finished. A later event opens it again.
        :param on_reconnect: called likewise before each wait for the next attempt. Both log a warning by default;
            with ``snapshot``, a gap is no loss and is not logged.
        :param max_silence: seconds without any data, heartbeats included, after which a stream counts as lost.
        :param max_block: maximum size of one event in bytes.

        The iteration raises ClientError if the server refuses (a redirect, or a 4xx other than 408 and 429) or does not
        speak the protocol, or if its certificate is not accepted before it has responded once. The iteration ends if
        the server responds with 204, which it does if the channels are finished (``until_end``). In all other cases it
        reconnects.
        Raises ValueError for invalid arguments.
        """
        names = [channels] if isinstance(channels, str) else list(channels)
        if any(not name or "," in name for name in names):
            raise ValueError("a channel name must not be empty or contain a comma")
        if not names and user_id is None:
            raise ValueError("pass channels, or the user_id whose channels to follow")
        if until_end and not names:
            raise ValueError("until_end needs channels: those that have to be finished")
        if max_silence is not None and max_silence <= 0:
            raise ValueError("max_silence must be a number of seconds above 0, or None")
        if snapshot is not None and cursor is not None:
            raise ValueError("pass a cursor or a snapshot: the snapshot has a position of its own")
        self.cursor = None if cursor is None else str(cursor)
        self._url = endpoint(url, "stream")
        self._params = {
            **({"channels": ",".join(names)} if names else {}),
            **({} if user_id is None else {"userId": str(user_id)}),
            **({} if latest is None else {"latest": str(latest)}),
            **({} if on_denied is None else {"denied": "skip"}),
            **({"envelope": "true" if envelope is True else envelope} if envelope else {}),
            **({"until": "end"} if until_end else {}),
        }
        self._headers = dict(headers or {})
        self._given_session = session
        self._snapshot = snapshot
        self._outdated = snapshot is not None
        """Whether the snapshot is to be taken before a stream is opened."""
        self._unproven = False
        """Whether no stream has gone on from the position of the last snapshot yet."""
        self._until_end = until_end
        self._finished = False
        """Whether the last event of the stream was the end of a channel."""
        self._on_denied = on_denied or _ignore
        self._on_finished = on_finished or _ignore
        self._on_gap = on_gap or (_log_gap if snapshot is None else _ignore)
        self._on_reconnect = on_reconnect or _log_reconnect
        self._max_silence = max_silence
        self._max_block = max_block
        self._backoff = backoff or Backoff()
        self._own_session: aiohttp.ClientSession | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._parser = Parser()
        self._blocks: deque[Block] = deque()
        self._not_before = 0.0  # loop time of the next attempt
        self._was_answered = False
        self._busy = False
        self._closed = False
        self._waiting: asyncio.Timeout | None = None  # the wait that close() cuts short

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._busy:
            raise RuntimeError("a subscription can be iterated by only one task at a time")
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
        """Close the stream and end the iteration, even if another task waits in it. It may be called again."""
        self._closed = True
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(0)
        self._drop()
        session, self._own_session = self._own_session, None
        if session is not None:
            await session.close()

    aclose = close

    def __del__(self) -> None:
        # For a loop that was left by break, without a context manager. The own session keeps no connections.
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
                if self._outdated:
                    return await self._take_snapshot()
                if self._response is None:
                    await self._connect()
                else:
                    await self._read(self._response)
                continue
            except URL_ERRORS as error:
                raise ClientError(f"{self._url} cannot be used: {reason_of(error)}") from error
            except aiohttp.ClientConnectorCertificateError as error:
                # Later, a certificate has perhaps only expired, and will be renewed.
                if not (self._was_answered or self._outdated):
                    raise ClientError(reason_of(error)) from error
                reason = reason_of(error)
            except _Finished:  # if each of the channels is, the response to the next request is 204
                self._drop()
                continue
            except _RetryLater as later:
                reason, wait = str(later), later.wait
            except (*CONNECTION_ERRORS, BusUnavailable) as error:
                reason = reason_of(error)
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
                raise ClientError(f"the server sent a gap that cannot be decoded: {error}") from error
            await _call(self._on_gap, gap)  # if this raises, the gap is passed again
            if self._snapshot is not None:
                self._drop()
                self._blocks.clear()  # what follows the gap is part of the next snapshot
                self._outdated = True
                # A position that gets a gap at once may be an old one, from a cache.
                delay = self._backoff.next_delay() if self._unproven else 0.0
                self._not_before = asyncio.get_running_loop().time() + delay
                return None
        elif block.event == "sse-pg.denied":
            try:
                denied = msgspec.json.decode(block.data, type=Denied)
            except msgspec.DecodeError as error:
                raise ClientError(f"the server sent a denial that cannot be decoded: {error}") from error
            await _call(self._on_denied, denied)
        elif block.event == "sse-pg.end":
            try:
                finished = msgspec.json.decode(block.data, type=Finished)
            except msgspec.DecodeError as error:
                raise ClientError(f"the server sent an end that cannot be decoded: {error}") from error
            await _call(self._on_finished, finished)
        elif block.event == "sse-pg.hello":
            self._backoff.reset()
        self._finished = block.event == "sse-pg.end" or (self._finished and block.event == "sse-pg.position")
        if block.retry is not None:
            self._backoff.base = min(max(block.retry / 1000, _MIN_RETRY_S), MAX_WAIT_S)
        self._blocks.popleft()
        if block.id:
            self.cursor = block.id
        self._unproven = self._unproven and block.event in ("sse-pg.hello", "sse-pg.denied")
        if block.event.startswith(_OWN_NAMES):
            return None
        return Event(block.id, block.event, block.data, _number(block))

    async def _take_snapshot(self) -> Snapshot:
        assert self._snapshot is not None
        await self._pause()
        if self._closed:
            raise StopAsyncIteration
        state, position = await self._bounded(self._snapshot(), None)
        self.cursor = str(position)
        self._outdated, self._unproven = False, True
        return Snapshot(self.cursor, SNAPSHOT, "", state=state)

    async def _pause(self) -> None:
        """Wait until the next attempt may be made."""
        delay = self._not_before - asyncio.get_running_loop().time()
        if delay > 0 and not self._closed:
            await self._bounded(asyncio.sleep(delay), None)

    async def _connect(self) -> None:
        await self._pause()
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
        self._was_answered = True
        try:
            await self._bounded(self._check(response), self._max_silence)
        except BaseException:
            response.close()
            raise
        self._finished = False
        self._response = response
        self._parser = Parser(limit=self._max_block, last_event_id=self.cursor or "")

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 204:
            raise StopAsyncIteration
        if is_temporary(response.status):
            raise _RetryLater(await problem_of(response), requested_wait(response))
        if response.status != 200:
            raise ClientError(await problem_of(response), status=response.status)
        if response.content_type != "text/event-stream":
            raise ClientError(f"{self._url} responds with {response.content_type}, not an event stream")

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        self._parser.feed(b"")  # raises an error of the chunk before, whose blocks were returned first
        chunk = await self._bounded(response.content.readany(), self._max_silence)
        if not chunk and self._until_end and self._finished:
            raise _Finished
        if not chunk:
            raise aiohttp.ServerDisconnectedError("the server ended the stream")
        self._blocks.extend(self._parser.feed(chunk))

    async def _bounded(self, work: Awaitable[T], seconds: float | None) -> T:
        """Await work for at most so many seconds. close() ends it too; both raise TimeoutError."""
        try:
            async with asyncio.timeout(seconds) as self._waiting:
                result = await work
        except TimeoutError as error:
            if self._waiting is not None and self._waiting.expired():
                raise TimeoutError(f"nothing arrived for {seconds} s") from error
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


class _Finished(Exception):
    """The server has ended the stream after the end of a channel."""


class _RetryLater(Exception):
    """The server asks the client to retry after at least ``wait`` seconds."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


def _number(block: Block) -> int:
    text = block.number or block.id.partition("~")[0]
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS else 0


async def _call(callback: Callable[[T], object], argument: T) -> None:
    result = callback(argument)
    if inspect.isawaitable(result):
        await result


def _ignore(_notice: object) -> None:
    """Do nothing: the next snapshot has what the stream lacks."""


def _log_gap(gap: Gap) -> None:
    _log.warning("the events after %s and up to %s are lost: %s", gap.after, gap.before, gap.reason)


def _log_reconnect(lost: Reconnect) -> None:
    _log.warning("the stream was lost (%s); the next attempt is in %.1f s", lost.reason, lost.delay)
