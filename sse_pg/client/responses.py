"""What a server answers, or does not, and what that means to a client: come back later, or never."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import aiohttp
import msgspec

from sse_pg.client.backoff import retry_after
from sse_pg.errors import system_words

#: Errors of a URL that no attempt mends, and of a connection that the next one may.
BAD_URL = (
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    aiohttp.RedirectClientError,
    aiohttp.TooManyRedirects,
)
LOST = (aiohttp.ClientError, OSError)  # TimeoutError is an OSError

_PROBLEM_LIMIT = 64 << 10


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""


def endpoint(url: str, name: str) -> str:
    """Return the address of an endpoint of the bus."""
    return f"{url.rstrip('/')}/api/events/{name}"


def is_temporary(status: int) -> bool:
    """Tell whether the same request may be answered otherwise later."""
    return status in {408, 429} or status >= 500


def wait_asked(response: aiohttp.ClientResponse) -> float:
    """Return for how many seconds the server asks not to be asked again."""
    return retry_after(response.headers.get("Retry-After"), datetime.now(UTC))


async def problem_of(response: aiohttp.ClientResponse) -> str:
    """Say in one line what a refusal says: its status, and the problem document where there is one."""
    body = b""
    try:
        body = await response.content.readexactly(_PROBLEM_LIMIT)
    except asyncio.IncompleteReadError as error:
        body = error.partial
    except LOST:
        pass  # the status alone, then
    problem = _Problem()
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        problem = msgspec.json.decode(body, type=_Problem)
    title = problem.title or response.reason or ""
    text = f"{response.url.origin()}{response.url.path} answers {response.status} {title}: {problem.detail}"
    return " ".join(text.split()).removesuffix(":")


def reason_of(error: BaseException) -> str:
    """Say why a request or a stream came to nothing."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no server answers at {error.host}:{error.port} ({system_words(error.os_error)})"
    return str(error) or type(error).__name__
