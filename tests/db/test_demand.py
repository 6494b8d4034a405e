"""Who needs the database, and when a server may let go of it."""

from __future__ import annotations

import asyncio

import pytest

from sse_pg.db.demand import Demand
from sse_pg.errors import BusUnavailable

AT_ONCE_S = 1e-9


async def test_a_server_that_never_lets_go() -> None:
    demand = Demand()
    assert demand.rests_in_s is None
    assert not demand.begin_rest()
    await demand.until_here(0)


async def test_nobody_lets_go_while_somebody_needs_the_database() -> None:
    streams = 1
    demand = Demand(AT_ONCE_S, lambda: streams)
    assert not demand.begin_rest()
    streams = 0
    with demand.hold():
        assert not demand.begin_rest()
        assert demand.idle_s == 0.0
    with demand.upkeep():
        assert not demand.begin_rest()
    assert not demand.is_away
    assert demand.begin_rest()
    assert demand.is_away


async def test_the_time_begins_with_the_end_of_the_last_need() -> None:
    streams = 1
    demand = Demand(3600.0, lambda: streams)
    demand._needed_at -= 7200.0  # two hours ago
    assert demand.rests_in_s == 3600.0
    streams = 0
    assert 3599.0 < (demand.rests_in_s or 0) <= 3600.0, "the stream was open until now"
    demand._needed_at -= 7200.0
    with demand.upkeep():
        pass
    assert demand.rests_in_s == 0.0, "upkeep does not prolong the time"
    with demand.hold():
        pass
    assert (demand.rests_in_s or 0) > 3599.0


async def test_upkeep_does_not_end_a_rest_and_a_need_does() -> None:
    demand = Demand(AT_ONCE_S)
    assert demand.begin_rest()
    with pytest.raises(BusUnavailable, match="let go"), demand.upkeep():
        pass
    waiting = asyncio.create_task(demand.until_needed())
    await asyncio.sleep(0)
    assert not waiting.done()
    with demand.hold():
        await waiting
        with demand.upkeep():  # the tail comes back, and with it the rest of the server
            pass
        with pytest.raises(BusUnavailable, match="after a rest"):
            await demand.until_here(0.001)
        demand.end_rest()
        await demand.until_here(0.001)
    assert demand.begin_rest()
    waiting = asyncio.create_task(demand.until_needed())
    await asyncio.sleep(0)
    assert not waiting.done(), "the need before this rest does not end it"
    waiting.cancel()
