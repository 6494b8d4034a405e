"""Query parameters: each function returns a checked value, or raises a 422 that names the parameter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from multidict import MultiMapping

from sse_pg.core.cursor import Cursor
from sse_pg.core.names import END, channel_fault, event_type_fault, user_fault
from sse_pg.errors import CursorError
from sse_pg.http.problem import FieldError, invalid

#: What stands in a decoded query for bytes that are not UTF-8.
REPLACEMENT = "\ufffd"
#: The parameters that may be repeated: all of their values count.
REPEATABLE = ("channel", "channels")
#: Maximum number of characters of an unknown parameter's name that a response repeats.
MAX_NAME_CHARACTERS = 100


def collect(checks: Mapping[str, tuple[Callable[[str], str | None], str]]) -> None:
    """Check several fields at once. Raises a 422 that names all wrong ones."""
    errors = [FieldError(field, fault) for field, (rule, value) in checks.items() if (fault := rule(value))]
    if errors:
        raise invalid(errors)


def require_known(query: MultiMapping[str], *names: str) -> None:
    """Raise a 422 unless the query has only parameters of these names, and each once, but for lists of channels.

    What is unknown or repeated is ignored otherwise, and the response is one to another question: ``from=`` in place of
    ``lastEventId=`` opens a stream that begins now. Rejected: exceptions for what proxies and caches add, because a
    list of them never ends; the last value of several, because proxies and frameworks differ in which one they take.
    """
    unknown = [name for name in dict.fromkeys(query) if name not in names]
    if unknown:
        allowed = f"allowed: {', '.join(names)}" if names else "this endpoint has none"
        raise invalid(
            [FieldError(name[:MAX_NAME_CHARACTERS] or "(no name)", f"unknown parameter; {allowed}") for name in unknown]
        )
    repeated = [name for name in dict.fromkeys(query) if name not in REPEATABLE and len(query.getall(name)) > 1]
    if repeated:
        raise invalid([FieldError(name, "given more than once") for name in repeated])


def _utf8(text: str, name: str) -> str:
    """Return a text. Raises a 422 if its bytes were not UTF-8: different names would then look the same."""
    if REPLACEMENT in text:
        raise invalid([FieldError(name, "not valid UTF-8")])
    return text


def query_channels(query: MultiMapping[str], name: str, most: int, *, field: str | None = None) -> list[str]:
    """Return the channels of a parameter, which may be repeated and may hold several, separated by commas."""
    names = [part for text in query.getall(name, []) for part in _utf8(text, field or name).split(",")]
    if names == [""]:
        names = []
    unique = list(dict.fromkeys(names))
    for part in unique:
        if fault := channel_fault(part):
            raise invalid([FieldError(field or name, f"{part[:40]!r}: {fault}")])
    if len(unique) > most:
        raise invalid([FieldError(field or name, f"{len(unique)} channels, {most} are allowed")])
    return unique


def query_user(query: MultiMapping[str]) -> str | None:
    """Return the userId of a query, or None."""
    user = query.get("userId")
    if user is not None:
        collect({"userId": (user_fault, _utf8(user, "userId"))})
    return user


def query_event_type(query: MultiMapping[str]) -> str | None:
    """Return the eventType of a query, or None."""
    event_type = query.get("eventType")
    if event_type is not None and event_type != END:
        collect({"eventType": (event_type_fault, _utf8(event_type, "eventType"))})
    return event_type


def query_cursor(query: MultiMapping[str], name: str) -> Cursor | None:
    """Return a cursor or an id from a query, or None."""
    text = query.get(name)
    if not text:
        return None
    try:
        return Cursor.parse(text)
    except CursorError as error:
        raise invalid([FieldError(name, str(error))]) from None


def query_flag(query: MultiMapping[str], name: str, *others: str) -> bool:
    """Return a truth value from a query; the default is false. ``others`` are the values that the caller looks for."""
    text = query.get(name, "false")
    if text not in ("true", "false", "1", "0"):
        raise invalid([FieldError(name, f"must be {' or '.join(('true', 'false', *others))}")])
    return text in ("true", "1")


def query_integer(query: MultiMapping[str], name: str, default: int, low: int, high: int) -> int:
    """Return a whole number between bounds from a query."""
    text = query.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII) or not low <= int(text) <= high:
        raise invalid([FieldError(name, f"must be a whole number from {low} to {high}")])
    return int(text)


def query_choice(query: MultiMapping[str], name: str, choices: tuple[str, ...]) -> str:
    """Return one of several words from a query; the first is the default."""
    text = query.get(name, choices[0])
    if text not in choices:
        raise invalid([FieldError(name, f"must be {' or '.join(choices)}")])
    return text
