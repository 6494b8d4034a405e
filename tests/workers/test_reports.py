"""The pipe from a worker to its supervisor."""

from __future__ import annotations

import asyncio
import os

from support.waiting import TIMEOUT_S

from sse_pg.workers.messages import Report
from sse_pg.workers.reports import MAX_UNREAD_BYTES, Reports

NUMBERS = Report(numbers={"sse_pg_streams": {f"label{n}": float(n) for n in range(1000)}})


def read_all(descriptor: int) -> list[Report]:
    """Read until the pipe ends."""
    data = b""
    while piece := os.read(descriptor, 65536):
        data += piece
    return [Report.read(line) for line in data.splitlines()]


async def test_a_supervisor_that_does_not_read_holds_up_nothing() -> None:
    ours, theirs = os.pipe()
    reports = Reports(theirs)
    reports.send(Report(url="before the loop"))
    await reports.start()
    count = 10 * MAX_UNREAD_BYTES // len(NUMBERS.line())
    async with asyncio.timeout(TIMEOUT_S):
        for _ in range(count):
            reports.send(NUMBERS)  # would wait for ever in a pipe that is full
        reports.send(Report(ready=True))
        reading = asyncio.create_task(asyncio.to_thread(read_all, ours))
        await reports.close()
        reports.send(Report(failed="after the loop"))
        os.close(theirs)
        first, *numbers, ready, failed = await reading
    assert (first.url, ready.ready, failed.failed) == ("before the loop", True, "after the loop")
    assert all(report == NUMBERS for report in numbers)
    assert MAX_UNREAD_BYTES / len(NUMBERS.line()) < len(numbers) < count
    os.close(ours)


async def test_a_supervisor_that_is_gone_is_no_error() -> None:
    ours, theirs = os.pipe()
    reports = Reports(theirs)
    await reports.start()
    os.close(ours)
    reports.send(NUMBERS)
    reports.send(NUMBERS)
    await reports.close()
    reports.send(Report(failed="nobody hears this"))
    os.close(theirs)


async def test_a_supervisor_that_never_reads_does_not_keep_a_worker_from_ending() -> None:
    ours, theirs = os.pipe()
    reports = Reports(theirs)
    await reports.start()
    for _ in range(100):
        reports.send(NUMBERS)
    async with asyncio.timeout(TIMEOUT_S):
        await reports.close()
    reports.send(NUMBERS)
    os.close(ours)
    os.close(theirs)
