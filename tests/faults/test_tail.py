"""The tail against publishers that are slow, large, rolled back, prepared, killed."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from faults.helpers import Follower, as_in_table, connection, following, insert, running, table
from sse_pg.core.cursor import Cursor
from sse_pg.core.ranges import NONE, Ranges


async def test_a_transaction_that_stays_open(launch: Launcher, database_url: str) -> None:
    """It delays nobody. Its event comes once to every client when it commits, from wherever the client resumed."""
    server = await launch()
    async with (
        Client(server.url) as client,
        connection(database_url, autocommit=False) as slow,
        client.stream("a") as stayed,
    ):
        hidden = await insert(slow, 1)
        seen = await client.publish("a", 2)
        told = await stayed.event()
        assert told.json() == 2
        assert told.id == f"{seen}~{seen - hidden}"
        async with (
            client.stream("a", last_event_id=told.id) as came_back,
            client.stream("a", last_event_id="0") as from_nothing,
            client.stream("a", last_event_id=str(hidden - 1)) as from_before,
            client.stream("a") as from_now,
        ):
            for stream in (from_nothing, from_before):
                assert (await stream.event()).json() == 2
            await client.publish("a", 3)
            streams = (stayed, came_back, from_nothing, from_before, from_now)
            for stream in streams:
                assert (await stream.event()).json() == 3
            await slow.commit()
            for stream in streams:
                block = await stream.event()
                assert block.json() == 1
                assert block.id == str(seen + 1)
            await client.publish("a", 4)
            for stream in streams:
                assert (await stream.event()).json() == 4


async def test_rolled_back_ids_leave_no_gap(launch: Launcher, database_url: str) -> None:
    server = await launch()
    async with Client(server.url) as client, connection(database_url, autocommit=False) as other:
        for _ in range(3):
            await insert(other, 0)
        last = await client.publish("a", 1)
        await eventually(lambda: server.bus.hub.position.high == last)
        assert server.bus.hub.position.gaps == Ranges([(last - 3, last - 1)])
        await other.rollback()
        await eventually(lambda: server.bus.hub.position == Cursor(last))
        async with client.stream("a") as stream:
            assert stream.hello.id == str(last)
            await client.publish("a", 2)
            assert (await stream.event()).id == str(last + 1)


async def test_rolled_back_ids_leave_no_gap_beside_a_long_transaction(launch: Launcher, database_url: str) -> None:
    """The ids that an idle publisher may hold are known, so ids that others roll back leave no gap."""
    server = await launch()
    async with (
        Client(server.url) as client,
        connection(database_url, autocommit=False) as idle,
        connection(database_url, autocommit=False) as other,
    ):
        hidden = await insert(idle, 0)
        for n in range(10):
            await insert(other, 100 + n)
            await other.rollback()
            await client.publish("a", n)
        last = await client.publish("a", 99)
        await eventually(lambda: server.bus.hub.position == Cursor(last, Ranges([(hidden, hidden)])))
        assert (await _position(other)) == f"{last}~{last - hidden}"
        await other.rollback()
        await idle.commit()
        await eventually(lambda: server.bus.hub.position == Cursor(last))


async def test_a_publisher_of_many_statements_hides_rollbacks_until_it_ends(
    launch: Launcher, database_url: str
) -> None:
    """After nine windows a transaction may hold any later id; nothing is given up too early, and all at its end."""
    server = await launch()
    async with (
        following(server.url) as follower,
        connection(database_url) as quick,
        connection(database_url, autocommit=False) as slow,
        connection(database_url, autocommit=False) as rolled_back,
    ):
        for n in range(12):
            await insert(slow, n)
            await insert(quick, 100 + n)
            await insert(rolled_back, 200 + n)
        await rolled_back.rollback()
        last = await insert(quick, 199)
        await follower.until(lambda: follower.payloads[-1:] == [199])
        await slow.commit()
        await follower.until(lambda: len(follower.payloads) == 25)
        assert sorted(follower.payloads) == [*range(12), *range(100, 112), 199]
        await eventually(lambda: server.bus.hub.position == Cursor(last))


@pytest.mark.parametrize("statements", [9, 10])
async def test_how_many_publishing_statements_keep_cursors_short(
    launch: Launcher, database_url: str, statements: int
) -> None:
    """docs/guarantee.md, section 5: what others roll back beside an open transaction stays a gap from the tenth on."""
    server = await launch()
    async with (
        connection(database_url, autocommit=False) as slow,
        connection(database_url) as quick,
        connection(database_url, autocommit=False) as rolled_back,
    ):
        own = []
        for n in range(statements):
            own.append(await insert(slow, n))
            await insert(quick, n)
        for n in range(70):
            await insert(rolled_back, n)
            await rolled_back.rollback()
            last = await insert(quick, n)
        if statements == 9:
            held = Ranges((number, number) for number in own)
            await eventually(lambda: server.bus.hub.position == Cursor(last, held))
        else:
            await eventually(lambda: server.bus.hub.position.high == last)
            assert Cursor.parse(str(server.bus.hub.position)).high < last, "the gaps fit"
        await slow.commit()
        await eventually(lambda: server.bus.hub.position == Cursor(last))


async def test_ten_thousand_inserts_in_one_transaction(launch: Launcher, database_url: str) -> None:
    server = await launch()
    async with following(server.url) as follower, connection(database_url, autocommit=False) as conn:
        await conn.execute(
            "DO $$ BEGIN FOR n IN 1..10000 LOOP"
            " INSERT INTO sse_pg.events (channel, payload) VALUES ('a', to_jsonb(n)); END LOOP; END $$"
        )
        cursor = await conn.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        )
        (locks,) = await cursor.fetchone() or (None,)
        assert 0 < locks < 20
        await conn.commit()
        await follower.until(lambda: len(follower.payloads) >= 10000)
        assert follower.payloads == list(range(1, 10001))
        assert follower.cursor == "10000"


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside an open transaction"])
async def test_a_large_copy_comes_whole_and_in_order(launch: Launcher, database_url: str, beside: bool) -> None:
    rows = 100_000
    server = await launch()
    async with (
        following(server.url) as follower,
        connection(database_url) as conn,
        connection(database_url, autocommit=False) as idle,
    ):
        if beside:
            await insert(idle, 0)
        async with (
            conn.cursor() as cursor,
            cursor.copy("COPY sse_pg.events (channel, payload) FROM STDIN") as copy,
        ):
            for first in range(0, rows, 1000):
                await copy.write("".join(f"a\t{n}\n" for n in range(first, first + 1000)))
                if first == rows // 2:
                    # Others publish while it runs, and are not held up.
                    await insert_elsewhere(database_url, -1)
                    await follower.until(lambda: -1 in follower.payloads)
        await follower.until(lambda: len(follower.payloads) >= rows + 1)
        assert follower.payloads == [-1, *range(rows)]
        if beside:
            await idle.commit()
            await follower.until(lambda: len(follower.payloads) >= rows + 2)
            assert follower.payloads[-1] == 0
        await eventually(lambda: not server.bus.hub.position.gaps)


async def test_prepared_transactions(launch: Launcher, database_url: str) -> None:
    """They outlive their session; their events come when any session commits them."""
    server = await launch(safety_read=0.05)
    async with following(server.url) as follower, connection(database_url) as conn:
        for name in ("kept", "given_up"):
            async with connection(database_url, autocommit=False) as preparing:
                await preparing.execute("SET LOCAL sse_pg.bell = 'off'")
                await insert(preparing, 1 if name == "kept" else 2)
                await preparing.execute(f"PREPARE TRANSACTION '{name}_{conn.info.dbname}'")
        last = await insert(conn, 3)
        await follower.until(lambda: follower.payloads == [3])
        await eventually(lambda: server.bus.hub.position == Cursor(last, Ranges([(last - 2, last - 1)])))
        later = await launch(safety_read=0.05)
        async with following(later.url) as newcomer:
            await conn.execute(f"ROLLBACK PREPARED 'given_up_{conn.info.dbname}'")
            await eventually(lambda: server.bus.hub.position == Cursor(last, Ranges([(last - 2, last - 2)])))
            await conn.execute(f"COMMIT PREPARED 'kept_{conn.info.dbname}'")
            await follower.until(lambda: len(follower.payloads) == 2)
            await newcomer.until(lambda: newcomer.payloads)
            assert follower.payloads == [3, 1]
            assert newcomer.payloads == [1]
            await eventually(lambda: server.bus.hub.position == later.bus.hub.position == Cursor(last))


@pytest.mark.parametrize("how", ["after an insert", "in a copy"])
async def test_a_publisher_killed_in_the_middle(launch: Launcher, database_url: str, how: str) -> None:
    server = await launch()
    async with following(server.url) as follower, connection(database_url) as conn:
        async with connection(database_url, autocommit=False) as victim:
            if how == "in a copy":
                with pytest.raises(psycopg.OperationalError):
                    await _copy_until_killed(victim, conn)
            else:
                await insert(victim, 0)
                last = await insert(conn, 1)
                await eventually(lambda: server.bus.hub.position.high == last)
                assert server.bus.hub.position.gaps
                await conn.execute("SELECT pg_terminate_backend(%s, 5000)", (victim.info.backend_pid,))
        await insert(conn, 2)
        await follower.until(lambda: follower.payloads[-1:] == [2])
        assert 0 not in follower.payloads
        await eventually(lambda: server.bus.hub.position.gaps == NONE)


async def test_a_server_that_starts_while_publishers_are_in_flight(launch: Launcher, database_url: str) -> None:
    """Events that commit after a stream was opened come, each once."""
    stop, committed, opened = False, [[], []], 0

    async def write(base: int) -> None:
        rand = random.Random(base)
        async with connection(database_url, autocommit=False) as conn:
            number = base
            while not stop:
                mine = []
                for _ in range(rand.randint(1, 3)):
                    number += 1
                    await insert(conn, number)
                    mine.append(number)
                    await asyncio.sleep(rand.uniform(0, 0.02))
                when = opened
                if rand.random() < 0.2:
                    await conn.rollback()
                else:
                    await conn.commit()
                    committed[when] += mine

    writers = [asyncio.create_task(write(base * 100_000)) for base in range(1, 9)]
    async with connection(database_url, autocommit=False) as slow:
        await insert(slow, 1)
        await asyncio.to_thread(_wait_for_rows, database_url, 50)
        server = await launch()
        async with following(server.url) as follower:
            opened = 1
            await eventually(lambda: len(committed[1]) > 100)
            stop = True
            await asyncio.gather(*writers)
            await slow.commit()
            wanted = {1, *committed[1]}
            await follower.until(lambda: wanted <= set(follower.payloads))
            await insert(slow, 2)
            await slow.commit()
            await follower.until(lambda: 2 in follower.payloads)
            assert len(follower.payloads) == len(set(follower.payloads))
            assert set(follower.payloads) <= set(await table(database_url))


async def test_a_flood_wakes_the_tail_and_calm_lets_it_sleep(launch: Launcher, database_url: str) -> None:
    """While it polls, publishers do not ring; nothing is lost over the changes. No safety read helps."""
    server = await launch(safety_read=60.0)
    bells = 0

    async def listen() -> None:
        nonlocal bells
        async with connection(database_url) as conn:
            await conn.execute("LISTEN sse_pg")
            async for _ in conn.notifies():
                bells += 1

    async def write(base: int) -> None:
        async with connection(database_url) as conn:
            for number in range(base, base + 400):
                await insert(conn, number)

    async with following(server.url) as follower, running(listen()):
        for wave in range(3):
            bases = range(wave * 10_000, wave * 10_000 + 4000, 1000)
            writing = asyncio.gather(*(write(base) for base in bases))
            await eventually(lambda: server.bus.tail.awake)
            await writing
            await eventually(lambda: not server.bus.tail.awake)
            await as_in_table(follower, database_url)
    assert 0 < bells < 4800 // 2


async def test_always_rings_when_told_to(launch: Launcher, database_url: str) -> None:
    server = await launch(safety_read=60.0, bell="always")
    async with following(server.url) as follower, connection(database_url) as conn:
        for number in range(300):
            await insert(conn, number)
        await follower.until(lambda: len(follower.payloads) == 300)
        assert not server.bus.tail.awake


async def test_two_tails_awake_and_asleep_by_turns(launch: Launcher, database_url: str) -> None:
    """One tail that polls must not silence the bell for another that sleeps."""
    busy, lazy = await launch(safety_read=60.0, poll=0.05), await launch(safety_read=60.0, bell="always")
    followers = [Follower(server.url) for server in (busy, lazy)]
    async with running(*(follower.run() for follower in followers)), connection(database_url) as conn:
        for follower in followers:
            await follower.opened.wait()
        number = 0
        while not busy.bus.tail.awake:
            number += 1
            await insert(conn, number)
        for _ in range(20):
            number += 1
            await insert(conn, number)
            for follower in followers:
                await follower.until(lambda f=follower, n=number: f.payloads[-1:] == [n])
        assert followers[0].payloads == followers[1].payloads == list(range(1, number + 1))


# ------------------------------------------------------------------ helpers


async def insert_elsewhere(database_url: str, payload: int) -> None:
    async with connection(database_url) as conn:
        await insert(conn, payload)


async def _position(conn: psycopg.AsyncConnection[Any]) -> str:
    row = await (await conn.execute("SELECT sse_pg.position()")).fetchone()
    assert row is not None
    return str(row[0])


async def _copy_until_killed(victim: psycopg.AsyncConnection[Any], other: psycopg.AsyncConnection[Any]) -> None:
    """Copy until some ids are drawn; then the backend is ended."""
    pid = victim.info.backend_pid
    async with victim.cursor() as cursor, cursor.copy("COPY sse_pg.events (channel, payload) FROM STDIN") as copy:
        while True:
            await copy.write("a\t0\n" * 1000)
            row = await (await other.execute("SELECT sse_pg.last_id()")).fetchone()
            if row is not None and row[0] > 1000:
                await other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def _wait_for_rows(database_url: str, count: int) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        while conn.execute("SELECT count(*) FROM sse_pg.events").fetchone()[0] < count:  # type: ignore[index]
            pass
