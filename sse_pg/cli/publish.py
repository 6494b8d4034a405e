"""``sse-pg publish``: publishes one event, or one event for each line of standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import click
import msgspec

from sse_pg.cli.database import open_pool
from sse_pg.cli.lines import BYTE_ORDER_MARK, Lines
from sse_pg.cli.progress import progress
from sse_pg.cli.signals import StopSignal
from sse_pg.config import Settings
from sse_pg.core import names
from sse_pg.db.draft import Draft, Published
from sse_pg.db.publisher import Publisher
from sse_pg.errors import BusUnavailable, EventRefused, OutcomeUnknown
from sse_pg.http.long_numbers import MAX_DIGITS, has_long_number, may_have_long_number


@dataclass(frozen=True)
class Template:
    """What all events of one run have in common."""

    channel: str
    event_type: str
    text: bool
    max_payload: int
    headers: str | None = None
    """JSON text."""

    def check(self) -> None:
        """Raise EventRefused if the channel or event type is invalid."""
        for fault in (names.channel_fault(self.channel), names.event_type_fault(self.event_type)):
            if fault:
                raise EventRefused(fault)

    def draft(self, line: bytes, key: str | None = None) -> Draft:
        """Return the draft of one payload. Raises EventRefused if it is not JSON and ``text`` is not set."""
        if len(line) > self.max_payload:
            raise EventRefused(f"the payload has {len(line)} bytes; at most {self.max_payload} are allowed")
        try:
            payload = line.decode()
            # Not decoded into numbers: PostgreSQL stores some that Python cannot represent, such as 1e309.
            msgspec.json.decode(line, type=msgspec.Raw)
        except UnicodeDecodeError:
            if not self.text:
                raise EventRefused(
                    "the payload is not UTF-8; --text publishes it as a string, with the invalid bytes replaced"
                ) from None
            payload = _as_string(line.decode(errors="replace"))
        except (msgspec.DecodeError, RecursionError) as error:
            if not self.text:
                raise EventRefused(f"the payload is not JSON: {error}; --text publishes it as a string") from None
            payload = _as_string(payload)
        if may_have_long_number(line) and has_long_number(payload):
            raise EventRefused(f"the payload contains a number with more than {MAX_DIGITS} digits")
        return Draft(self.channel, self.event_type, payload, key, self.headers)


def headers_of(given: Sequence[str]) -> str | None:
    """Return the headers that options ``NAME=VALUE`` make, as JSON text; None without any. The values are texts.

    Raises UsageError if one has no name.
    """
    if not given:
        return None
    pairs = [option.partition("=") for option in given]
    if bad := [option for option, (name, sign, _) in zip(given, pairs, strict=True) if not (name and sign)]:
        raise click.UsageError(f"--header {bad[0]!r}: a header is NAME=VALUE")
    if any(not text.isprintable() for text in given):
        raise click.UsageError("--header: a header has no control characters and is UTF-8")
    return msgspec.json.encode({name: value for name, _, value in pairs}).decode()


def _as_string(text: str) -> str:
    # A text in PostgreSQL cannot contain NUL, so it is replaced by the symbol for it.
    return msgspec.json.encode(text.replace("\0", "\u2400")).decode()


@asynccontextmanager
async def _publisher(settings: Settings) -> AsyncIterator[Publisher]:
    async with open_pool(settings, 2) as pool:
        publisher = Publisher(pool)
        try:
            yield publisher
        finally:
            await publisher.close()


async def publish_one(settings: Settings, template: Template, payload: str, key: str | None) -> None:
    """Publish one event and print its id."""
    template.check()
    if key is not None and (fault := names.key_fault(key)):
        raise EventRefused(fault)
    draft = template.draft(payload.encode(errors="surrogateescape").removeprefix(BYTE_ORDER_MARK), key)
    async with _publisher(settings) as publisher:
        _print(await publisher.publish([draft]))


async def publish_lines(settings: Settings, template: Template, descriptor: int) -> None:
    """Publish each line of a file when it arrives; print the ids. Blank lines are skipped.

    If a line is refused, the lines before it are published, and the error names it. If it is not known which line of a
    transaction is refused, nothing of the transaction is published. A signal ends the run between two transactions.
    """
    template.check()
    lines = Lines(descriptor, settings.max_payload)
    count = 0
    async with _publisher(settings) as publisher:
        stop_signal = StopSignal(lines.stop)
        typed = os.isatty(descriptor)
        if typed:
            click.echo("sse-pg: type one event per line; Ctrl-D ends the input", err=True)
        with progress(lines.total_bytes(), typed=typed) as advance:
            async for batch in lines.batches():
                drafts, refused = _drafts(template, batch)
                try:
                    if drafts:
                        count += _print(await publisher.publish(drafts))
                except EventRefused as error:
                    refused = _refused(error, batch[: len(drafts)])
                    if error.index:
                        count += _print(await publisher.publish(drafts[: error.index]))
                except BusUnavailable as error:
                    kind = OutcomeUnknown if isinstance(error, OutcomeUnknown) else BusUnavailable
                    raise kind(f"at line {batch[0][0]}, after {count} events: {error}") from error
                advance(count, lines.bytes_read)
                if refused is not None:
                    raise EventRefused(f"{refused} (events published before it: {count})")
    stop_signal.check()


def _drafts(template: Template, batch: Sequence[tuple[int, bytes]]) -> tuple[list[Draft], EventRefused | None]:
    drafts = []
    for number, line in batch:
        try:
            drafts.append(template.draft(line))
        except EventRefused as error:
            return drafts, EventRefused(f"line {number}: {error}")
    return drafts, None


def _refused(error: EventRefused, batch: Sequence[tuple[int, bytes]]) -> EventRefused:
    """Return the error that names the line, or all lines of the transaction if it is not known which one it is."""
    if error.index is not None:
        return EventRefused(f"line {batch[error.index][0]}: {error}")
    return EventRefused(f"one of the lines {batch[0][0]} to {batch[-1][0]}, or several of them together: {error}")


def _print(published: Sequence[Published]) -> int:
    sys.stdout.write("".join(f"{number}\n" for number, _ in published))
    sys.stdout.flush()
    return len(published)
