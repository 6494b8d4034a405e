"""Every error this package raises on purpose.

    SsePgError
    ├── SettingError        a setting has a value that cannot be used
    │   └── CannotListen    ... and it is the address to listen on
    ├── EmbeddedError       the embedded PostgreSQL cannot be had
    ├── MigrationError      the schema cannot be brought up to date
    ├── WorkerError         a server process of several cannot start
    ├── CursorError         a text is not a cursor
    ├── BusUnavailable      the database does not answer
    │   ├── KeyHeld         ... because another transaction holds an idempotency key
    │   └── OutcomeUnknown  ... and it went away in the middle of a commit
    ├── LogUnreadable       the tail cannot read past an event of the log, or any of it
    ├── TokenRefused        a token proves nothing here
    ├── KeysUnavailable     the keys that tokens are checked with cannot be had
    ├── RuleFailed          sse_pg.authorize() gave no answer
    ├── EventRefused        an event breaks a rule, so it was not published
    │   ├── PayloadTooLarge
    │   └── KeyReused
    ├── ClientGone          a client closed its connection before its request was answered
    └── ClientError         a server did not answer as the contract says

The message of each is one line that says what to do; the command line prints it as it is.
"""

import errno
import os


def system_words(error: OSError) -> str:
    """Return what the system says of an error. asyncio puts words of its own around it, which repeat the address."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or str(error)  # errors of names are below 0


def one_line(error: BaseException) -> str:
    """Return the text of an error on one line, or the name of its class if it has none."""
    return "; ".join(" ".join(line.split()) for line in str(error).splitlines() if line.strip()) or type(error).__name__


class SsePgError(Exception):
    """Base of everything raised on purpose."""


class SettingError(SsePgError):
    """A setting has a value that cannot be used; the message names it, the value and what is allowed."""


class EmbeddedError(SsePgError):
    """The embedded PostgreSQL cannot be found, started or reached."""


class MigrationError(SsePgError):
    """The schema of the database cannot be brought up to date."""


class WorkerError(SsePgError):
    """A process of several that serve together cannot start."""


class CursorError(SsePgError, ValueError):
    """A text that a client sent is not a cursor."""


class BusUnavailable(SsePgError):
    """The database does not answer; nothing was published."""


class KeyHeld(BusUnavailable):
    """Another transaction that is still open has published with the same idempotency key; nothing was published."""


class OutcomeUnknown(BusUnavailable):
    """The connection was lost while the commit was under way; the event may or may not be published."""


class LogUnreadable(SsePgError):
    """The tail cannot read the log, or cannot read past one event; it delivers nothing until that has changed."""


class TokenRefused(SsePgError):
    """A token that a client sent proves nothing here; the message says why, and holds nothing of the token."""


class KeysUnavailable(SsePgError):
    """The keys that tokens are checked with cannot be had now."""


class RuleFailed(SsePgError):
    """sse_pg.authorize() gave no answer, so nothing is allowed. ``late``: it took longer than it may."""

    def __init__(self, message: str, *, late: bool) -> None:
        super().__init__(message)
        self.late = late


class EventRefused(SsePgError):
    """The database refused an event; nothing of its request was published.

    ``index`` is the place of the event in its request, where it is known.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class PayloadTooLarge(EventRefused):
    """The payload is larger than the table takes."""


class KeyReused(EventRefused):
    """The idempotency key was used before, for another event."""

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class CannotListen(SettingError):
    """An address that a server should listen on cannot be had."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        """Take the system's error, and say what to do where that is plain."""
        mend = "; give another --port (0 takes a free one)" if error.errno == errno.EADDRINUSE else ""
        super().__init__(f"cannot listen on {host}:{port}: {system_words(error)}{mend}")


class ClientGone(SsePgError):
    """The client closed its connection, or this server did, so nobody is left to answer."""


class ClientError(SsePgError):
    """A server did not answer a request as the contract says. ``status`` is what it answered, None where nothing."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
