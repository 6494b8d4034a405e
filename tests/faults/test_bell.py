"""Every interleaving of a tail that goes to sleep or wakes up with a publisher: no event waits for the safety read.

The publisher runs the trigger of the schema with places to stop put into it; the tail stops before its statements.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import TIMEOUT_S

from faults.helpers import connection, following, insert
from sse_pg.db.connection import ADAPTERS
from sse_pg.db.queries import query
from sse_pg.delivery import listening_tail
from sse_pg.delivery.bell import Bell

#: Seconds; far beyond the patience of a test, so a wake-up that is lost fails it.
NEVER = 60.0

STOP = 424242
#: The publisher's own steps, by what has just happened at the end of each.
PUBLISHER = ("bound read", "lock taken", "bell looked at", "inserted", "committed")
#: Statements of the tail from the first of a change on: the change itself, and a look and a read after it.
TAIL_STEPS = {"sleep_begin": 5, "wake_begin": 4}


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait for a condition that holds very soon."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.0002)


class SteppedTail:
    """Lets the statements of a tail pass one by one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._names = {
            query(name): name for name in ("sleep_begin", "sleep_end", "wake_begin", "wake_end", "publishers")
        } | {query("tail_read"): "read", query("tail_read_above"): "read"}
        self.stop_at: str | None = None
        self.meanwhile_of: str | None = ""
        """A statement during which ``meanwhile`` happens: after its snapshot, before its answer is in."""
        self.meanwhile: Callable[[], Awaitable[Any]] = lambda: asyncio.sleep(0)
        self.at: str | None = None
        """The statement before which it stands."""
        self.resting = False
        """Whether it waits for the bell."""
        self._stepping = False
        self._go = asyncio.Event()
        stepped = self

        class Connection(psycopg.AsyncConnection[Any]):
            async def execute(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
                name = stepped._names.get(statement)
                await stepped._before(name)
                result = await super().execute(statement, params, **kwargs)
                if name == stepped.meanwhile_of:
                    stepped.meanwhile_of = None
                    await stepped.meanwhile()
                    await super().execute("SELECT 1")
                return result

        async def connect(url: str | None, _hosts: Any) -> Any:
            return await Connection.connect(url or "", autocommit=True, context=ADAPTERS)

        pause = Bell.pause

        async def resting(bell: Bell, seconds: float) -> bool:
            stepped.resting = seconds == NEVER
            woken = await pause(bell, seconds)
            stepped.resting = False
            return woken

        monkeypatch.setattr(listening_tail, "connect_listener", connect)
        monkeypatch.setattr(Bell, "pause", resting)
        # One bell wakes it, one poll without a find puts it to sleep.
        monkeypatch.setattr(listening_tail, "BELLS_TO_WAKE", 1)
        monkeypatch.setattr(listening_tail, "POLLS_TO_SLEEP", 1)

    async def _before(self, name: str | None) -> None:
        if name is None:
            return
        if name == self.stop_at:
            self._stepping, self.stop_at = True, None
        if self._stepping:
            self.at = name
            await self._go.wait()
            self._go.clear()

    async def step(self) -> str:
        """Let it run the statement before which it stands; return when it stands before another one, or rests."""
        done, self.at = self.at, None
        if done is None:
            return "rests"
        self._go.set()
        await eventually(lambda: self.at is not None or self.resting)
        return done

    def let_go(self) -> None:
        """Let it run."""
        self._stepping = False
        if self.at is not None:
            self.at = None
            self._go.set()


class SteppedPublisher:
    """One transaction that publishes in steps."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], gate: psycopg.AsyncConnection[Any], payload: int) -> None:
        self._conn = conn
        self._gate = gate
        self._payload = payload
        self._steps = self._run()

    async def step(self) -> str:
        """Do one step; return its name."""
        async with asyncio.timeout(TIMEOUT_S):
            return await anext(self._steps)

    async def _run(self) -> AsyncIterator[str]:
        stops = (1, 2, 3)
        for stop in stops:
            await self._gate.execute("SELECT pg_advisory_lock(%s, %s)", (STOP, stop))
        inserting = asyncio.create_task(insert(self._conn, self._payload))
        for stop in stops:
            await self._stands_at(stop)
            yield PUBLISHER[stop - 1]
            await self._gate.execute("SELECT pg_advisory_unlock(%s, %s)", (STOP, stop))
        await inserting
        yield PUBLISHER[3]
        await self._conn.commit()
        yield PUBLISHER[4]

    async def _stands_at(self, stop: int) -> None:
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND classid = %s AND objid = %s AND database ="
        waiting += " (SELECT oid FROM pg_database WHERE datname = current_database())"
        while (await (await self._gate.execute(waiting, (STOP, stop))).fetchone()) is None:
            await asyncio.sleep(0)


def _with_stops(db: psycopg.Connection) -> None:
    """Put the places to stop into the trigger function."""
    (text,) = db.execute("SELECT pg_get_functiondef('sse_pg.announce'::regproc)").fetchone() or ("",)
    db.execute(
        "CREATE FUNCTION sse_pg.stop(number integer) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN"
        f" PERFORM pg_advisory_xact_lock_shared({STOP}, number); RETURN 0; END $$"  # type: ignore[arg-type]
    )
    db.execute(
        "CREATE FUNCTION sse_pg.looked(found boolean) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM sse_pg.stop(3); RETURN found; END $$"
    )
    low = "(sse_pg.lock_class('first_low'),\n                      "
    bound = "(coalesce(pg_sequence_last_value('sse_pg.events_id_seq'::regclass), 0)"
    look, awake = "OR CASE WHEN ", "ELSE false END END "
    places = {
        f"{low}{bound}": f"{low}({bound} + sse_pg.stop(1))",
        "    done := CASE WHEN current_setting": "    PERFORM sse_pg.stop(2);\n    done := CASE WHEN current_setting",
        f"{look}CASE coalesce": f"{look}sse_pg.looked(CASE coalesce",
        awake: f"{awake.strip()}) ",
    }
    for place, stopping in places.items():
        assert text.count(place) == 1, f"the trigger has changed at {place!r}"
        text = text.replace(place, stopping)
    db.execute(text)


def _interleavings(steps: int) -> Iterator[tuple[int, ...]]:
    """For each step of the tail, how many steps the publisher has done before it."""
    return itertools.combinations_with_replacement(range(len(PUBLISHER) + 1), steps)


@pytest.mark.parametrize(
    ("first", "part"), [("sleep_begin", 0), ("sleep_begin", 1), ("sleep_begin", 2), ("wake_begin", None)]
)
async def test_no_wake_up_is_lost(
    launch: Launcher,
    database_url: str,
    db: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    part: int | None,
) -> None:
    stepped = SteppedTail(monkeypatch)
    server = await launch(safety_read=NEVER)
    _with_stops(db)
    number = 0
    async with (
        following(server.url) as follower,
        connection(database_url) as starter,
        connection(database_url) as gate,
        connection(database_url, autocommit=False) as conn,
    ):
        cases = list(_interleavings(TAIL_STEPS[first]))
        for number, places in enumerate(cases if part is None else cases[part::3], 1):
            await eventually(lambda: stepped.resting)
            stepped.stop_at = first
            # The bell of this one wakes the tail; the calm after it puts it to sleep.
            await insert(starter, -number)
            await eventually(lambda: stepped.at == first)
            history: list[str] = []
            publisher = SteppedPublisher(conn, gate, number)
            done = 0
            for place in places:
                for _ in range(place - done):
                    history.append(await publisher.step())
                done = place
                history.append(f"[{await stepped.step()}]")
            stepped.let_go()
            for _ in range(len(PUBLISHER) - done):
                history.append(await publisher.step())
            try:
                await follower.until(lambda n=number: follower.payloads[-1] == n)
            except TimeoutError:
                pytest.fail(f"lost until the safety read: {', '.join(history)}")
    assert len(follower.payloads) == len(set(follower.payloads)) == 2 * number


async def test_a_bell_that_comes_with_the_answer_to_a_read(
    launch: Launcher, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL sends notifications behind the rows of a statement that did not see their events."""
    stepped = SteppedTail(monkeypatch)
    monkeypatch.setattr(listening_tail, "BELLS_TO_WAKE", 1000)
    server = await launch(safety_read=NEVER)
    async with following(server.url) as follower, connection(database_url) as conn:
        await eventually(lambda: stepped.resting)
        for number in range(0, 20, 2):
            stepped.meanwhile = lambda n=number + 1: insert(conn, n)
            stepped.meanwhile_of = "read"
            await insert(conn, number)
            await follower.until(lambda n=number: follower.payloads == [*range(n + 2)])


async def test_a_change_of_subscriptions_that_comes_with_the_answer_to_a_read(
    launch: Launcher, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = SteppedTail(monkeypatch)
    monkeypatch.setattr(listening_tail, "BELLS_TO_WAKE", 1000)
    server = await launch(safety_read=NEVER)
    async with Client(server.url) as client, connection(database_url) as conn, client.stream(userId="u"):
        (stream,) = server.bus.hub.streams
        await eventually(lambda: stepped.resting)
        stepped.meanwhile = lambda: conn.execute("SELECT sse_pg.subscribe('u', 'a')")
        stepped.meanwhile_of = "read"
        await insert(conn, 1)
        await eventually(lambda: stream.channels == {"a"})
