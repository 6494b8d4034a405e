"""Publishes one event over HTTP, and retries if that cannot publish it twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from sse_pg.client.backoff import Backoff
from sse_pg.client.events import Published
from sse_pg.client.responses import (
    CONNECTION_ERRORS,
    URL_ERRORS,
    endpoint,
    is_temporary,
    problem_of,
    reason_of,
    requested_wait,
)
from sse_pg.errors import BusUnavailable, ClientError, OutcomeUnknown


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
    """Publish one event. ``payload`` is anything that msgspec encodes as JSON (msgspec.Raw is sent unchanged).

    With an idempotency key, the client retries after a lost connection and after a temporary refusal, with at most
    ``attempts`` attempts in all. The event is published once, however often it arrives. ``timeout`` is the time in
    seconds for each attempt, and the longest Retry-After that the client waits for.

    Raises ClientError if the server refuses, BusUnavailable if it cannot be reached (nothing was published), and
    OutcomeUnknown if the connection was lost, so that the event may or may not be published.
    """
    target = endpoint(url, "publish")
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
                    target,
                    data=body,
                    headers=send_headers,
                    timeout=aiohttp.ClientTimeout(total=timeout),
                    allow_redirects=False,  # after most redirects, a POST would become a GET
                ) as response:
                    if response.status in {200, 201}:
                        return msgspec.json.decode(await response.read(), type=Published)
                    failure = ClientError(await problem_of(response), status=response.status)
                    if not is_temporary(response.status):
                        raise failure
                    wait = requested_wait(response)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ClientError(f"the response of {target} cannot be decoded: {error}") from error
            except URL_ERRORS as error:
                raise ClientError(f"{target} cannot be used: {reason_of(error)}") from error
            except aiohttp.ClientConnectorError as error:
                failure = BusUnavailable(f"nothing was published: {target} cannot be reached: {reason_of(error)}")
                failure.__cause__ = error
            except CONNECTION_ERRORS as error:
                failure = OutcomeUnknown(
                    f"it is unknown whether the event was published, because the connection to {target} was lost: "
                    f"{reason_of(error)}"
                )
                failure.__cause__ = error
            if left <= 0 or wait > timeout:
                raise failure
            await asyncio.sleep(backoff.next_delay(wait))
