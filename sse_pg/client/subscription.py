"""Channels being followed over any number of streams, from where the last one ended."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import TypeVar

import aiohttp
import msgspec

from sse_pg.client.backoff import LONGEST_WAIT, Backoff
from sse_pg.client.events import Event, Gap, Reconnect
from sse_pg.client.parser import Block, Parser
from sse_pg.client.responses import BAD_URL, LOST, endpoint, is_temporary, problem_of, reason_of, wait_asked
from sse_pg.errors import ClientError

T = TypeVar("T")

_log = logging.getLogger("sse_pg.client")  # as its users know it

_OWN_NAMES = "sse-pg."
_LEAST_RETRY = 0.05  # seconds; a server that says "retry: 0" gets no busy loop


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
        self._url = endpoint(url, "stream")
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
            except BAD_URL as error:
                raise ClientError(f"{self._url} cannot be used: {reason_of(error)}") from error
            except _BusyError as busy:
                reason, wait = str(busy), busy.wait
            except LOST as error:
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
                raise ClientError(f"the server sent a gap that cannot be read: {error}") from error
            await _call(self._on_gap, gap)  # may raise; the gap is then told again
        elif block.event == "sse-pg.hello":
            self._backoff.reset()
        if block.retry is not None:
            self._backoff.base = min(max(block.retry / 1000, _LEAST_RETRY), LONGEST_WAIT)
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
        if is_temporary(response.status):
            raise _BusyError(await problem_of(response), wait_asked(response))
        if response.status != 200:
            raise ClientError(await problem_of(response), status=response.status)
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


class _BusyError(Exception):
    """The server asks to come back later, after ``wait`` seconds at least."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


async def _call(callback: Callable[[T], object], argument: T) -> None:
    result = callback(argument)
    if inspect.isawaitable(result):
        await result


def _log_gap(gap: Gap) -> None:
    _log.warning("events after %s and before %s are lost: %s", gap.after, gap.before, gap.reason)


def _log_reconnect(lost: Reconnect) -> None:
    _log.warning("the stream is lost (%s); the next attempt comes in %.1f s", lost.reason, lost.delay)
