"""Every error this package raises on purpose.

    SsePgError
    ├── SettingError        a setting has an invalid value
    │   └── CannotListen    ... or the address to listen on cannot be used
    ├── EmbeddedError       the embedded PostgreSQL cannot be found, started or reached
    ├── MigrationError      the schema cannot be brought up to date
    ├── WorkerError         a worker process cannot start
    ├── CursorError         a text is not a cursor
    ├── BusUnavailable      the database is unavailable
    │   ├── KeyHeld         ... for this event: another transaction holds its idempotency key
    │   └── OutcomeUnknown  ... since the middle of a commit
    ├── LogUnreadable       the tail cannot read the log, or cannot read past one event
    ├── TokenRefused        a token is invalid
    ├── KeysUnavailable     the keys that verify tokens are unavailable
    ├── RuleFailed          sse_pg.authorize() made no decision
    ├── EventRefused        an event violates a rule, so it was not published
    │   ├── PayloadTooLarge
    │   └── KeyReused
    ├── TooManySubscriptions  a user has as many subscriptions as are allowed
    ├── ClientGone          the client closed its connection before it got a response
    └── ClientError         a server refused a request, or its response is not what the protocol says

Each message is one line that says what to do; the command line prints it unchanged.
"""

import errno
import os
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


def fresh(error: E) -> E:
    """Return an error like this one, for one of many tasks that it concerns.

    If all of them raised the same instance, its traceback would contain parts of each, and keep all of their
    frames in memory.
    """
    kind = type(error)
    another = kind.__new__(kind, *error.args)
    another.__dict__.update(error.__dict__)
    another.__cause__ = error
    return another


def system_text(error: OSError) -> str:
    """Return the operating system's text of an error. asyncio adds a text of its own, which repeats the address."""
    number = error.errno or 0
    return (
        os.strerror(number) if number > 0 else error.strerror or str(error)
    )  # errors of name resolution have numbers below 0


def one_line(error: BaseException) -> str:
    """Return the text of an error on one line, or the name of its class if it has none."""
    return "; ".join(" ".join(line.split()) for line in str(error).splitlines() if line.strip()) or type(error).__name__


class SsePgError(Exception):
    """Base class of all errors that this package raises on purpose."""


class SettingError(SsePgError):
    """A setting has an invalid value; the message names the setting, the value and what is allowed."""


class EmbeddedError(SsePgError):
    """The embedded PostgreSQL cannot be found, started or reached."""


class MigrationError(SsePgError):
    """The schema of the database cannot be brought up to date."""


class WorkerError(SsePgError):
    """A worker process cannot start."""


class CursorError(SsePgError, ValueError):
    """A text that a client sent is not a cursor."""


class BusUnavailable(SsePgError):
    """The database is unavailable; nothing was published."""


class KeyHeld(BusUnavailable):
    """Another open transaction has published with the same idempotency key; nothing was published."""


class OutcomeUnknown(BusUnavailable):
    """The connection was lost during the commit; the event may or may not be published."""


class LogUnreadable(SsePgError):
    """The tail cannot read the log, or cannot read past one event; it delivers nothing until this changes."""


class TokenRefused(SsePgError):
    """A token is invalid; the message says why, and contains no part of the token."""


class KeysUnavailable(SsePgError):
    """The keys that verify tokens are unavailable for now."""


class RuleFailed(SsePgError):
    """sse_pg.authorize() made no decision, so nothing is allowed. ``late``: it took longer than it may."""

    def __init__(self, message: str, *, late: bool) -> None:
        super().__init__(message)
        self.late = late


class EventRefused(SsePgError):
    """The database refused an event; nothing of its request was published.

    ``index`` is the index of the event in its request, if it is known.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class PayloadTooLarge(EventRefused):
    """The payload is larger than the table accepts."""


class KeyReused(EventRefused):
    """The idempotency key was used before for another event."""

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class CannotListen(SettingError):
    """The address to listen on cannot be used."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        """Make the message of the operating system's error, with a hint if there is one."""
        hint = "; use another --port (0 picks a free one)" if error.errno == errno.EADDRINUSE else ""
        super().__init__(f"cannot listen on {host}:{port}: {system_text(error)}{hint}")


class TooManySubscriptions(SsePgError):
    """A user has as many subscriptions as the table allows."""


class ClientGone(SsePgError):
    """The connection of the request is closed, by the client or by this server, so no response can be sent."""


class ClientError(SsePgError):
    """A server refused a request, or its response cannot be used. ``status`` is None if there was no response."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
