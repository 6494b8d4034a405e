"""JSON request bodies: of subscribe and unsubscribe, and of finish."""

from __future__ import annotations

import re

import msgspec
from aiohttp import web

from sse_pg.core.names import channel_fault, user_fault
from sse_pg.http.limits import Bodies
from sse_pg.http.problem import FieldError, Problem, invalid

_raw = msgspec.json.Decoder(msgspec.Raw)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_INTEGER = re.compile(rb"-?[0-9]+")


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


def _text(raw: msgspec.Raw) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.ValidationError:
        return None


class SubscriptionBody(msgspec.Struct, frozen=True):
    """The body of subscribe and unsubscribe."""

    user_id: str
    channel: str


def subscription_body(body: bytes) -> SubscriptionBody:
    """Parse ``{"userId", "channel"}``. An integer userId stands for its digits."""
    body = without_mark(body)
    try:
        _raw.decode(body)  # what is not JSON is a 400, whatever is wrong with its fields
        value = _object.decode(body)
        given = {name: _text(raw) for name, raw in value.items() if name in ("userId", "channel")}
        if (digits := bytes(value.get("userId", b"")).strip()) and _INTEGER.fullmatch(digits):
            given["userId"] = digits.decode()
    except msgspec.ValidationError:
        raise invalid([FieldError("", "must be an object with userId and channel")]) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise malformed(error) from None
    user, channel = given.get("userId"), given.get("channel")
    errors = []
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


def channel_body(body: bytes) -> str:
    """Parse ``{"channel"}``."""
    body = without_mark(body)
    try:
        _raw.decode(body)
        value = _object.decode(body)
    except msgspec.ValidationError:
        raise invalid([FieldError("", "must be an object with a channel")]) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise malformed(error) from None
    channel = _text(value["channel"]) if "channel" in value else None
    fault = "must be a string" if channel is None else channel_fault(channel)
    errors = [FieldError("channel", fault)] if fault else []
    errors += [FieldError(name, "unknown field") for name in value if name != "channel"]
    if errors or channel is None:
        raise invalid(errors)
    return channel
