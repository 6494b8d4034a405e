"""Publishes in order, over HTTP: what comes within some milliseconds shares a request and a commit."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec

from sse_pg.client.backoff import Backoff
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

#: Events and bytes of one request.
MAX_REQUEST_EVENTS = 500
MAX_REQUEST_BYTES = 262_144
#: Bytes that may wait; ``publish`` waits for room then.
MAX_WAITING_BYTES = 4_194_304


class Publisher:
    """Publishes for a program that has many small events, such as the pieces of an answer that a model writes.

    ``publish`` does not wait for the commit, so what it is given is only certain after ``flush`` or ``finish``, or when
    the context manager is left without an error. Each of these, and each later ``publish``, raises the error if an
    event could not be published. Events are published in the order of the calls. Each has an idempotency key, and a
    request whose outcome is unknown is repeated: an event is published once.

        async with Publisher("http://127.0.0.1:8080") as bus:
            async for piece in model(question):
                await bus.publish("answer.17", piece)
            await bus.finish("answer.17")
    """

    def __init__(
        self,
        url: str,
        *,
        within: float = 0.02,
        patience: float = 60.0,
        timeout: float = 10.0,
        headers: Mapping[str, str] | None = None,
        session: aiohttp.ClientSession | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """Prepare to publish to the bus at ``url``.

        :param within: seconds between two requests: what comes meanwhile shares the next one.
        :param patience: seconds for which a request is repeated while the server cannot be reached or responds with a
            temporary refusal.
        :param timeout: seconds for each attempt.
        :param headers: sent with each request, for example Authorization.
        :param session: used and left open; without one, the publisher creates and closes its own.
        """
        self._url = url
        self._within = within
        self._patience = patience
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._given_session = session
        self._own_session: aiohttp.ClientSession | None = None
        self._backoff = backoff or Backoff(base=0.05, cap=1.0)
        self._name = uuid4().hex
        self._number = 0
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._worker: asyncio.Task[None] | None = None
        self._progress = asyncio.Condition()
        self._failure: Exception | None = None
        self._next_at = 0.0

    async def __aenter__(self) -> Publisher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            await self.close()

    async def publish(self, channel: str, payload: Any, *, event_type: str = "message") -> None:
        """Hand in an event. ``payload`` is anything that msgspec encodes as JSON. Waits only if too much waits."""
        async with self._progress:
            await self._progress.wait_for(lambda: self._size < MAX_WAITING_BYTES or self._failure is not None)
        self._raise()
        self._number += 1
        key = f"{self._name}-{self._number}"
        event = msgspec.json.encode(
            {"channel": channel, "eventType": event_type, "payload": payload, "idempotencyKey": key}
        )
        self._waiting.append(event)
        self._size += len(event)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    async def flush(self) -> None:
        """Wait until everything that was handed in is committed."""
        async with self._progress:
            await self._progress.wait_for(lambda: not self._waiting or self._failure is not None)
        self._raise()

    async def finish(self, channel: str) -> None:
        """Publish what was handed in, and then the end of a channel."""
        await self.flush()
        await self._post("finish", msgspec.json.encode({"channel": channel}))

    async def close(self) -> None:
        """Drop what is not published yet."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker
        session, self._own_session = self._own_session, None
        if session is not None:
            await session.close()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                await asyncio.sleep(self._next_at - loop.time())
                self._next_at = loop.time() + self._within
                count, size = 0, 0
                for event in self._waiting:
                    if count == MAX_REQUEST_EVENTS or (count and size + len(event) > MAX_REQUEST_BYTES):
                        break
                    count, size = count + 1, size + len(event)
                body = b",".join([self._waiting[place] for place in range(count)])
                await self._post("publish", b'{"events":[' + body + b"]}")
                async with self._progress:
                    for _ in range(count):
                        self._size -= len(self._waiting.popleft())
                    self._progress.notify_all()
        except Exception as error:
            async with self._progress:
                self._failure = error
                self._progress.notify_all()
        finally:
            if self._worker is asyncio.current_task():
                self._worker = None

    async def _post(self, name: str, body: bytes) -> None:
        """Send a request until it is answered for good."""
        target = endpoint(self._url, name)
        session = self._given_session or self._own_session
        if session is None:
            session = self._own_session = aiohttp.ClientSession()
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while True:
            wait = 0.0
            failure: Exception
            try:
                async with session.post(
                    target, data=body, headers=self._headers, timeout=self._timeout, allow_redirects=False
                ) as response:
                    if response.status == 201:
                        await response.read()
                        self._backoff.reset()
                        return
                    failure = ClientError(await problem_of(response), status=response.status)
                    if not is_temporary(response.status):
                        raise failure
                    wait = requested_wait(response)
            except URL_ERRORS as error:
                raise ClientError(f"{target} cannot be used: {reason_of(error)}") from error
            except CONNECTION_ERRORS as error:
                failure = BusUnavailable(f"{target} does not respond: {reason_of(error)}")
                failure.__cause__ = error
            delay = self._backoff.next_delay(wait)
            if loop.time() + delay > until:
                raise failure
            await asyncio.sleep(delay)
