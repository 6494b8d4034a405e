"""The rules for names that clients send: channels, event types, users, idempotency keys.

The table enforces the same rules. They are checked here first because the response can then say what is wrong.
"""

from __future__ import annotations

import re

MAX_NAME_CHARS = 255
#: The type of the event that says that its channel has ended. Only sse_pg.finish() writes it.
END = "sse-pg.end"
#: White space and control characters, the same as in sql/schema.sql, comma and star. PostgreSQL allows no NUL in text.
_NOT_IN_CHANNEL = re.compile("[\0-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000,*]")
_NOT_IN_TYPE = re.compile("[\r\n\0]")
_NOT_IN_USER = re.compile("[\0-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def channel_fault(name: str) -> str | None:
    """Return what is wrong with a channel name, or None."""
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        return f"a channel has 1 to {MAX_NAME_CHARS} characters"
    if _NOT_IN_CHANNEL.search(name) or _SURROGATE.search(name):
        return "a channel has no white space, control characters, commas or *"
    return None


def event_type_fault(name: str) -> str | None:
    """Return what is wrong with an event type, or None."""
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        return f"an event type has 1 to {MAX_NAME_CHARS} characters"
    if _NOT_IN_TYPE.search(name) or _SURROGATE.search(name):
        return "an event type has no CR, LF or NUL"
    if name == END:
        return "only sse_pg.finish(channel) can publish an event of the type sse-pg.end"
    if name.startswith("sse-pg."):
        return "event types that start with sse-pg. are the bus's own"
    return None


def user_fault(name: str) -> str | None:
    """Return what is wrong with a user id, or None."""
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        return f"a user id has 1 to {MAX_NAME_CHARS} characters"
    if _NOT_IN_USER.search(name) or _SURROGATE.search(name):
        return "a user id has no control characters"
    return None


def key_fault(name: str) -> str | None:
    """Return what is wrong with an idempotency key, or None."""
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        return f"an idempotency key has 1 to {MAX_NAME_CHARS} characters"
    if "\0" in name or _SURROGATE.search(name):
        return "an idempotency key has no NUL"
    return None
