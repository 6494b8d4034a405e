"""``sse-pg tail``: prints the events of channels as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence

import click
import msgspec

from sse_pg import client
from sse_pg.core.cursor import Cursor
from sse_pg.errors import ClientError, CursorError, SettingError


class _Line(msgspec.Struct):
    """The output for one event."""

    id: str
    event: str
    data: msgspec.Raw
    channel: str | msgspec.UnsetType = msgspec.UNSET
    """If several channels are followed."""


class _Envelope(msgspec.Struct, rename="camel"):
    channel: str
    event_type: str
    payload: msgspec.Raw


async def tail(
    url: str, channels: Sequence[str], cursor: str | None, token: str | None, *, latest: int | None = None
) -> None:
    """Print a JSON line for each event, until SIGINT or SIGTERM. Gaps and reconnects are reported on standard error.

    Without a cursor, it begins with the ``latest`` last events of each channel. Each of ``channels`` may hold several
    names, separated by commas.
    Raises ClientError if the server refuses, CursorError or UsageError if an argument is invalid.
    """
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"--url {url!r}: a URL must begin with http:// or https://")
    try:
        Cursor.parse(cursor or "0")
    except CursorError as error:
        raise CursorError(f"--from: {error}") from None
    if token is not None and not (token.isascii() and token.isprintable()):
        raise SettingError("SSE_PG_TOKEN contains a character that no token contains")
    if any(not name.isprintable() for name in channels):
        raise click.UsageError(f"{' '.join(channels)!r}: a channel has no control characters and is UTF-8")
    channels = list(dict.fromkeys(name for given in channels for name in given.split(",")))
    if "" in channels:
        raise click.UsageError("the name of a channel is empty")
    several = len(channels) > 1
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    subscription = client.subscribe(
        url,
        channels,
        cursor=cursor,
        latest=latest,
        envelope=several,
        headers={"Authorization": f"Bearer {token}"} if token else None,
        on_gap=_gap,
        on_reconnect=_reconnect,
    )
    with contextlib.suppress(asyncio.CancelledError):
        try:
            async with subscription as events:
                async for event in events:
                    line = _line(event, several)
                    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
                    sys.stdout.flush()
        except ClientError as error:
            if error.status == 401:
                raise ClientError(
                    f"{error} (tail sends the token in SSE_PG_TOKEN; `sse-pg token` creates one)"
                ) from None
            raise


def _line(event: client.Event, several: bool) -> _Line:
    if not several:
        return _Line(event.id, event.type, msgspec.Raw(event.data.encode()))
    whole = event.json(_Envelope)
    return _Line(event.id, whole.event_type, whole.payload, whole.channel)


def _gap(gap: client.Gap) -> None:
    click.echo(f"sse-pg: the events after {gap.after} and up to {gap.before} are lost ({gap.reason})", err=True)


def _reconnect(lost: client.Reconnect) -> None:
    click.echo(f"sse-pg: {lost.reason}; next attempt in {lost.delay:.1f} s", err=True)
