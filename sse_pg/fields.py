"""The rules of the fields that clients send. The table enforces the same ones; here they get a friendlier answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec
from aiohttp import web
from multidict import MultiMapping

from sse_pg.cursor import Cursor
from sse_pg.errors import CursorError
from sse_pg.limits import Bodies
from sse_pg.problem import FieldError, Problem, invalid

MAX_NAME = 255
#: White space and control characters as sql/schema.sql names them, comma and star; NUL cannot be in a text at all.
_NOT_IN_CHANNEL = re.compile("[\0-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000,*]")
_NOT_IN_TYPE = re.compile("[\r\n\0]")
_NOT_IN_USER = re.compile("[\0-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def channel_fault(name: str) -> str | None:
    """Say what is wrong with a channel name, or None."""
    if not 1 <= len(name) <= MAX_NAME:
        return f"a channel has 1 to {MAX_NAME} characters"
    if _NOT_IN_CHANNEL.search(name) or _SURROGATE.search(name):
        return "a channel has no white space, control characters, commas or *"
    return None


def event_type_fault(name: str) -> str | None:
    """Say what is wrong with an event type, or None."""
    if not 1 <= len(name) <= MAX_NAME:
        return f"an event type has 1 to {MAX_NAME} characters"
    if _NOT_IN_TYPE.search(name) or _SURROGATE.search(name):
        return "an event type has no CR, LF or NUL"
    if name.startswith("sse-pg."):
        return "event types that start with sse-pg. are the bus's own"
    return None


def user_fault(name: str) -> str | None:
    """Say what is wrong with a user id, or None."""
    if not 1 <= len(name) <= MAX_NAME:
        return f"a user id has 1 to {MAX_NAME} characters"
    if _NOT_IN_USER.search(name) or _SURROGATE.search(name):
        return "a user id has no control characters"
    return None


def key_fault(name: str) -> str | None:
    """Say what is wrong with an idempotency key, or None."""
    if not 1 <= len(name) <= MAX_NAME:
        return f"an idempotency key has 1 to {MAX_NAME} characters"
    if "\0" in name or _SURROGATE.search(name):
        return "an idempotency key has no NUL"
    return None


def collect(checks: Mapping[str, tuple[Callable[[str], str | None], str]]) -> None:
    """Check several fields at once; raises the problem that names all that are wrong."""
    errors = [FieldError(field, fault) for field, (rule, value) in checks.items() if (fault := rule(value))]
    if errors:
        raise invalid(errors)


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


def query_channels(query: MultiMapping[str], name: str, most: int, *, field: str | None = None) -> list[str]:
    """Return the channels of a query parameter: separated by commas, or the parameter several times."""
    names = [part for text in query.getall(name, []) for part in text.split(",")]
    if names == [""]:
        names = []
    unique = list(dict.fromkeys(names))
    for part in unique:
        if fault := channel_fault(part):
            raise invalid([FieldError(field or name, f"{part[:40]!r}: {fault}")])
    if len(unique) > most:
        raise invalid([FieldError(field or name, f"at most {most} channels")])
    return unique


def query_user(query: MultiMapping[str]) -> str | None:
    """Return the userId of a query, or None."""
    user = query.get("userId")
    if user is not None:
        collect({"userId": (user_fault, user)})
    return user


def query_cursor(query: MultiMapping[str], name: str) -> Cursor | None:
    """Return a cursor or an id from a query, or None."""
    text = query.get(name)
    if not text:
        return None
    try:
        return Cursor.parse(text)
    except CursorError as error:
        raise invalid([FieldError(name, str(error))]) from None


def query_flag(query: MultiMapping[str], name: str) -> bool:
    """Return a truth value from a query; absent is false."""
    text = query.get(name, "false")
    if text not in ("true", "false", "1", "0"):
        raise invalid([FieldError(name, "true or false")])
    return text in ("true", "1")


def query_integer(query: MultiMapping[str], name: str, default: int, low: int, high: int) -> int:
    """Return a whole number between bounds from a query."""
    text = query.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII) or not low <= int(text) <= high:
        raise invalid([FieldError(name, f"a whole number from {low} to {high}")])
    return int(text)


def query_choice(query: MultiMapping[str], name: str, choices: tuple[str, ...]) -> str:
    """Return one of several words from a query; the first is the default."""
    text = query.get(name, choices[0])
    if text not in choices:
        raise invalid([FieldError(name, " or ".join(choices))])
    return text
