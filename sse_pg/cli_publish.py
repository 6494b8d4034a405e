"""``sse-pg publish``: one event, or one for each line of standard input."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import msgspec
import rich.console
import rich.progress

from sse_pg import fields
from sse_pg.config import Settings
from sse_pg.database import make_pool
from sse_pg.errors import BusUnavailable, EventRefused
from sse_pg.publisher import Draft, Published, Publisher

#: Lines of one transaction, and transactions under way.
BATCH_LINES = 1000
BATCH_BYTES = 1048576
READ_BYTES = 262144


@dataclass(frozen=True)
class Template:
    """What the lines of one call have in common."""

    channel: str
    event_type: str
    text: bool
    max_payload: int

    def draft(self, line: bytes, key: str | None = None) -> Draft:
        """Make a draft of one payload. Raises EventRefused where it is not JSON, and ``text`` does not allow that."""
        for fault in (fields.channel_fault(self.channel), fields.event_type_fault(self.event_type)):
            if fault:
                raise EventRefused(fault)
        if len(line) > self.max_payload:
            raise EventRefused(f"the payload has {len(line)} bytes; at most {self.max_payload} are allowed")
        try:
            payload = line.decode()
            msgspec.json.decode(line)
        except UnicodeDecodeError:
            if not self.text:
                raise EventRefused("the payload is not UTF-8; --text publishes it with replacements") from None
            payload = _as_string(line.decode(errors="replace"))
        except (msgspec.DecodeError, RecursionError) as error:
            if not self.text:
                raise EventRefused(f"the payload is not JSON: {error}; --text publishes it as a string") from None
            payload = _as_string(payload)
        return Draft(self.channel, self.event_type, payload, key)


def _as_string(text: str) -> str:
    # NUL has no place in a text of PostgreSQL; what a terminal shows for it goes instead.
    return msgspec.json.encode(text.replace("\0", "\u2400")).decode()


@asynccontextmanager
async def _publisher(settings: Settings) -> AsyncIterator[Publisher]:
    pool = make_pool(settings.database_url, 2, settings.pool_timeout)
    await pool.open(wait=False)
    publisher = Publisher(pool)
    try:
        yield publisher
    finally:
        await publisher.close()
        await pool.close()


async def publish_one(settings: Settings, template: Template, payload: str, key: str | None) -> None:
    """Publish one event and print its id."""
    draft = template.draft(payload.encode(errors="surrogateescape"), key)
    async with _publisher(settings) as publisher:
        sys.stdout.write("".join(f"{number}\n" for number, _ in await publisher.publish([draft])))


async def publish_lines(settings: Settings, template: Template, source: BinaryIO) -> None:
    """Publish each line of a file as it comes; print the ids. Empty lines are passed over.

    What was read is published before an error in a later line ends the run; the error names the line.
    """
    lines = _Lines(source)
    count = 0
    async with _publisher(settings) as publisher:
        with _progress() as advance:
            async for batch in lines.batches():
                drafts, refused = _drafts(template, batch, count)
                if drafts:
                    advance(_print(await _attempt(publisher, drafts, count)))
                if refused is not None:
                    raise refused
                count += len(batch)


async def _attempt(publisher: Publisher, drafts: list[Draft], before: int) -> list[Published]:
    try:
        return await publisher.publish(drafts)
    except EventRefused as error:
        place = "" if error.index is None else f" around line {before + error.index + 1}"
        raise EventRefused(f"standard input{place}: {error}; {before} lines before were published") from error
    except BusUnavailable as error:
        raise BusUnavailable(f"after {before} lines: {error}") from error


def _drafts(template: Template, batch: list[bytes], before: int) -> tuple[list[Draft], EventRefused | None]:
    drafts = []
    for place, line in enumerate(batch, 1):
        if not line.strip():
            continue
        try:
            drafts.append(template.draft(line))
        except EventRefused as error:
            return drafts, EventRefused(f"line {before + place}: {error}")
    return drafts, None


def _print(published: list[Published]) -> int:
    sys.stdout.write("".join(f"{number}\n" for number, _ in published))
    sys.stdout.flush()
    return len(published)


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Give a function that counts events; on a terminal it draws how many went and how fast."""
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        yield lambda _count: None
        return
    columns = (
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.completed:,.0f} events"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
    )
    with rich.progress.Progress(*columns, console=console) as progress:
        task = progress.add_task("publish", total=None, rate="")

        def advance(count: int) -> None:
            progress.advance(task, count)
            shown = progress.tasks[0]
            rate = shown.finished_speed or shown.speed or 0.0
            progress.update(task, rate=f"{rate:,.0f}/s")

        yield advance


class _Lines:
    """Lines of a file, which may be a pipe that somebody writes to slowly: what is there is given at once."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._ready: deque[bytes] = deque()
        self._rest = b""

    async def batches(self) -> AsyncIterator[list[bytes]]:
        """Give lists of up to BATCH_LINES lines, without their line ends."""
        ended = False
        while not ended or self._ready:
            if not self._ready:
                ended = not await self._fill()
                continue
            batch: list[bytes] = []
            size = 0
            while self._ready and len(batch) < BATCH_LINES and size < BATCH_BYTES:
                line = self._ready.popleft()
                size += len(line)
                batch.append(line)
            yield batch

    async def _fill(self) -> bool:
        # read1 in a thread: it returns what a pipe holds, and a signal can end the loop meanwhile.
        data = await asyncio.to_thread(self._source.read1, READ_BYTES)  # type: ignore[attr-defined]
        if not data:
            if self._rest:
                self._ready.append(self._rest)
                self._rest = b""
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._ready.extend(line.removesuffix(b"\r") for line in lines)
        return True
