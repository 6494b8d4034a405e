"""JSON request bodies, and the body of subscribe and unsubscribe."""

from __future__ import annotations

import msgspec
from aiohttp import web

from sse_pg.core.names import channel_fault, user_fault
from sse_pg.http.limits import Bodies
from sse_pg.http.problem import FieldError, Problem, invalid


async def read_json(request: web.Request, bodies: Bodies) -> bytes:
    """Return a body that says it is JSON. Raises 415 for another content type, and what Bodies.read() raises."""
    if request.content_type != "application/json":
        raise Problem(415, "Send the body as JSON, with the header Content-Type: application/json.")
    return await bodies.read(request)


def malformed(error: Exception) -> Problem:
    """Return the 400 of a body that is not JSON."""
    return Problem(400, f"The body is not JSON: {error}.")


class SubscriptionBody(msgspec.Struct, frozen=True):
    """The body of subscribe and unsubscribe."""

    user_id: str
    channel: str


def subscription_body(body: bytes) -> SubscriptionBody:
    """Read ``{"userId", "channel"}``; an integer userId stands for its digits."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise malformed(error) from None
    if not isinstance(value, dict):
        raise invalid([FieldError("", "the body is an object with userId and channel")])
    user, channel = value.get("userId"), value.get("channel")
    errors = []
    if isinstance(user, int) and not isinstance(user, bool):
        user = str(user)
    if not isinstance(user, str):
        errors.append(FieldError("userId", "a string or an integer is needed"))
    elif fault := user_fault(user):
        errors.append(FieldError("userId", fault))
    if not isinstance(channel, str):
        errors.append(FieldError("channel", "a string is needed"))
    elif fault := channel_fault(channel):
        errors.append(FieldError("channel", fault))
    errors += [FieldError(name, "there is no such field") for name in value if name not in ("userId", "channel")]
    if errors or not isinstance(user, str) or not isinstance(channel, str):
        raise invalid(errors)
    return SubscriptionBody(user, channel)
