"""Tasks of a server that fail are logged, started again and shown; they do not keep the server from stopping."""

from __future__ import annotations

import asyncio

import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg import watched_task
from sse_pg.bus import Bus
from sse_pg.config import Settings
from sse_pg.delivery.heartbeat import Heartbeat
from sse_pg.watched_task import WatchedTask, end_all


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_task, "MAX_RESTART_PAUSE_S", 0.01)


async def test_a_task_that_fails_runs_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    runs = 0

    async def part() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError("first")
        if runs > 2:
            await asyncio.Event().wait()

    watched = WatchedTask("part", part)
    assert watched.failure is None
    watched.start()
    await eventually(lambda: runs == 3)
    assert watched.failures == 2  # to return is a failure, too
    assert watched.failure == "the part failed and is started again; the server's log has the error"
    assert "ValueError: first" in caplog.text
    monkeypatch.setattr(watched_task, "STABLE_S", 0.0)
    assert watched.failure is None
    await end_all([watched])
    assert runs == 3


async def test_tasks_that_were_not_started_or_lose_a_cancellation_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_task, "CANCEL_RETRY_S", 0.01)
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while lost < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
        await asyncio.Event().wait()

    watched = WatchedTask("deaf", deaf)
    watched.start()
    await asyncio.sleep(0)
    await end_all([watched, WatchedTask("never", deaf)])
    assert lost == 3


async def test_a_part_that_fails_is_shown(launch: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    run, repaired = Heartbeat.run, asyncio.Event()

    async def broken(heartbeat: Heartbeat) -> None:
        if not repaired.is_set():
            raise RuntimeError("broken")
        await run(heartbeat)

    monkeypatch.setattr(Heartbeat, "run", broken)
    server = await launch()
    async with Client(server.url) as client:
        await eventually(lambda: "the heartbeat failed" in (server.bus.why_not_ready() or ""))
        status, problem = await client.get("/readyz")
        assert status == 503
        assert "the heartbeat failed" in problem["detail"]
        repaired.set()
        monkeypatch.setattr(watched_task, "STABLE_S", 0.0)
        await eventually(lambda: server.bus.why_not_ready() is None)
        async with client.session.get(f"{server.url}/metrics") as response:
            text = await response.text()
    assert 'sse_pg_task_failures_total{task="tail"} 0.0' in text
    assert 'sse_pg_task_failures_total{task="heartbeat"} 0.0' not in text


async def test_a_step_of_the_shutdown_that_fails_leaves_out_no_other(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Bus(Settings(database_url=database_url))
    await bus.start()
    await eventually(bus.tail.listening.is_set)

    async def broken() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(bus.publisher, "close", broken)
    monkeypatch.setattr(bus.access, "close", broken)
    with pytest.raises(RuntimeError, match="broken"):
        await bus.stop()
    assert bus.pool.closed
    assert bus.tail_pool.closed
    assert not bus.tail.listening.is_set()
