"""What a response, or a missing one, means to a client: retry later, or give up."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import aiohttp
import msgspec

from sse_pg.client.backoff import retry_after
from sse_pg.errors import one_line, system_text

#: Errors because of which no retry can succeed.
URL_ERRORS = (
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    aiohttp.RedirectClientError,
    aiohttp.TooManyRedirects,
)
#: Errors of a connection, after which a retry may succeed.
CONNECTION_ERRORS = (aiohttp.ClientError, OSError)  # TimeoutError is an OSError

_MAX_PROBLEM_BYTES = 64 << 10


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""


def endpoint(url: str, name: str) -> str:
    """Return the address of an endpoint of the bus."""
    return f"{url.rstrip('/')}/api/events/{name}"


def is_temporary(status: int) -> bool:
    """Return whether the same request may succeed later."""
    return status in {408, 429} or status >= 500


def requested_wait(response: aiohttp.ClientResponse) -> float:
    """Return how many seconds the server asks the client to wait."""
    return retry_after(response.headers.get("Retry-After"), datetime.now(UTC))


async def problem_of(response: aiohttp.ClientResponse) -> str:
    """Return a refusal as one line: its status, and the problem document if there is one."""
    body = b""
    try:
        body = await response.content.readexactly(_MAX_PROBLEM_BYTES)
    except asyncio.IncompleteReadError as error:
        body = error.partial
    except CONNECTION_ERRORS:
        pass  # then there is only the status
    problem = _Problem()
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        problem = msgspec.json.decode(body, type=_Problem)
    title = problem.title or response.reason or ""
    text = f"{response.url.origin()}{response.url.path} responds with {response.status} {title}: {problem.detail}"
    if location := response.headers.get("Location"):
        text += f" the URL is now {location}" if response.status in {301, 302, 303, 307, 308} else ""
    return " ".join(text.split()).removesuffix(":")


def reason_of(error: BaseException) -> str:
    """Return in one line why a request or a stream failed."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            cause = getattr(error.certificate_error, "verify_message", "") or one_line(error.certificate_error)
            return (
                f"the certificate of {error.host}:{error.port} is not accepted ({cause.rstrip('.')}): use a name that "
                "it is for, or let this machine trust its issuer, for example with SSL_CERT_FILE"
            )
        case aiohttp.ClientConnectorError():
            return f"no server responds at {error.host}:{error.port} ({system_text(error.os_error)})"
        case aiohttp.TooManyRedirects():
            return "too many redirects"
        case aiohttp.InvalidURL():
            return "it is not a valid URL"  # the text of the error is only the URL
        case aiohttp.ServerDisconnectedError() if not isinstance(error.message, str):
            return "the server closed the connection within the head of the response"
        case aiohttp.ClientResponseError():
            return f"the response is not valid HTTP: {error.message.strip().partition(chr(10))[0].rstrip(':')}"
        case aiohttp.ClientPayloadError():
            return "the response ended early, or its compression is broken"
    return one_line(error)
