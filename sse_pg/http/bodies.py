"""JSON request bodies, and the body of subscribe and unsubscribe."""

from __future__ import annotations

import msgspec
from aiohttp import web

from sse_pg.core.names import channel_fault, user_fault
from sse_pg.http.limits import Bodies
from sse_pg.http.problem import FieldError, Problem, invalid


async def read_json(request: web.Request, bodies: Bodies) -> bytes:
    """Return a body of type JSON. Raises 415 for another content type, and whatever Bodies.read() raises."""
    if request.content_type != "application/json":
        raise Problem(415, "The body must be JSON, sent with the header Content-Type: application/json.")
    return await bodies.read(request)


def without_mark(body: bytes) -> bytes:
    """Return a body without a byte order mark, which some programs write before JSON (RFC 8259, section 8.1)."""
    return body.removeprefix(b"\xef\xbb\xbf")


def malformed(error: Exception) -> Problem:
    """Return the 400 for a body that is not JSON."""
    return Problem(400, f"The body is not JSON: {error}.")


class SubscriptionBody(msgspec.Struct, frozen=True):
    """The body of subscribe and unsubscribe."""

    user_id: str
    channel: str


def subscription_body(body: bytes) -> SubscriptionBody:
    """Parse ``{"userId", "channel"}``. An integer userId stands for its digits."""
    try:
        value = msgspec.json.decode(without_mark(body))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise malformed(error) from None
    if not isinstance(value, dict):
        raise invalid([FieldError("", "must be an object with userId and channel")])
    user, channel = value.get("userId"), value.get("channel")
    errors = []
    if isinstance(user, int) and not isinstance(user, bool):
        user = str(user)
    if not isinstance(user, str):
        errors.append(FieldError("userId", "must be a string or an integer"))
    elif fault := user_fault(user):
        errors.append(FieldError("userId", fault))
    if not isinstance(channel, str):
        errors.append(FieldError("channel", "must be a string"))
    elif fault := channel_fault(channel):
        errors.append(FieldError("channel", fault))
    errors += [FieldError(name, "unknown field") for name in value if name not in ("userId", "channel")]
    if errors or not isinstance(user, str) or not isinstance(channel, str):
        raise invalid(errors)
    return SubscriptionBody(user, channel)
