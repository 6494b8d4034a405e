"""The progress bar of ``sse-pg publish``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.console
import rich.progress


@contextmanager
def progress(total_bytes: int | None, *, typed: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that takes the events published and the bytes read so far. Without a terminal it does nothing.

    ``typed``: the lines are typed on a terminal, so a bar would be drawn into them.
    """
    console = rich.console.Console(stderr=True)
    if typed or not console.is_terminal:
        yield lambda _events, _bytes: None
        return
    columns = (
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[events]}"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
    )
    # The ids go to standard output. If that is the same terminal, they have to be printed above the bar.
    with rich.progress.Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as shown:
        task = shown.add_task("publish", total=total_bytes, events="", rate="")

        def advance(events: int, bytes_read: int) -> None:
            elapsed = shown.tasks[0].elapsed or 0.0
            rate = f"{events / elapsed:,.0f}/s" if elapsed else ""
            counted = f"{events:,} {'event' if events == 1 else 'events'}"
            shown.update(task, completed=bytes_read, events=counted, rate=rate)

        yield advance
