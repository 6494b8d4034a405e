"""consume(): batches in transactions, waiting for the bell, several takers, lost connections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.database_proxy import Proxy
from support.pgbouncer import needs_pgbouncer, poolers
from support.server import Launcher
from support.waiting import TIMEOUT_S, eventually

from sse_pg.client import Backoff, Consumer, Gap, Reconnect, consume
from sse_pg.client import consuming as module
from sse_pg.errors import ClientError

pytestmark = pytest.mark.oldest
Connection = psycopg.Connection[Any]
LOCKS = (
    "SELECT objid::integer FROM pg_locks WHERE locktype = 'advisory' AND classid = sse_pg.lock_class('tail')"
    "   AND granted"
    "   AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND mode = 'ShareLock'"
)


STATE = (
    "SELECT state FROM pg_stat_activity WHERE application_name = 'sse-pg consumer' AND backend_xmin IS NULL"
    "   AND datname = current_database()"
)
OPEN = (
    "SELECT FROM pg_stat_activity WHERE application_name = 'sse-pg consumer' AND xact_start IS NOT NULL"
    "   AND datname = current_database()"
)


@pytest.fixture
def done(db: Connection) -> Connection:
    """The table that a consumer writes to: what comes twice is an error."""
    db.execute("CREATE TABLE done (id bigint PRIMARY KEY, payload jsonb, place bigint GENERATED ALWAYS AS IDENTITY)")
    return db


def publish(db: Connection, count: int = 1, channel: str = "a") -> None:
    db.execute("SELECT sse_pg.publish(%s, 't', to_jsonb(n)) FROM generate_series(1, %s) n", [channel, count])


def ids(db: Connection) -> list[int]:
    return [number for (number,) in db.execute("SELECT id FROM done ORDER BY place")]


def consumer(url: str, name: str = "mail", channels: tuple[str, ...] = ("a",), **options: Any) -> Consumer:
    return consume(url, name, channels, backoff=Backoff(0.01, 0.05), **options)


async def write(batch: list[Any], conn: Any) -> None:
    for event in batch:
        await conn.execute("INSERT INTO done (id, payload) VALUES (%s, %s)", [event.id, str(event.payload)])


@contextlib.asynccontextmanager
async def running(url: str, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """A worker beside the test."""

    async def work() -> None:
        async for batch, conn in consumer(url, **options):
            await write(batch, conn)

    task = asyncio.create_task(work())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def caught_up(db: Connection, count: int) -> None:
    await eventually(lambda: len(ids(db)) == count, timeout_s=TIMEOUT_S)


async def asleep(db: Connection, key: int = 1) -> None:
    await eventually(lambda: db.execute(LOCKS).fetchall() == [(key,)])


async def test_batches_commit_when_the_body_ends(database_url: str, done: Connection) -> None:
    publish(done, 5)
    seen = []
    async with asyncio.timeout(TIMEOUT_S):
        async for batch, conn in consumer(database_url, most=2):
            assert ids(done) == [number for number, *_ in seen]
            seen += batch
            await write(batch, conn)
            if len(seen) == 5:
                await conn.commit()
                break
    assert [len(batch) for batch in (seen,)] == [5]
    event = seen[-1]
    assert (event.id, event.channel, event.event_type, event.payload, event.headers, event.cursor) == (
        5, "a", "t", 5, None, "5",
    )  # fmt: skip
    assert event.created_at == done.execute("SELECT created_at FROM sse_pg.events WHERE id = 5").fetchone()[0]
    assert ids(done) == [1, 2, 3, 4, 5]
    assert done.execute("SELECT cursor, lag FROM sse_pg.consumers").fetchall() == [("5", 0)]


async def test_an_error_of_the_body_rolls_back(database_url: str, done: Connection) -> None:
    publish(done, 3)

    async def fail() -> None:
        async for batch, conn in consumer(database_url, most=2):
            await write(batch, conn)
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await fail()
        with psycopg.connect(database_url) as other:  # it does not hold its name until it is collected
            other.execute("SET lock_timeout = '10s'")
            assert other.execute("SELECT id FROM sse_pg.consume('mail', '{a}')").fetchall() == [(1,), (2,), (3,)]
            other.rollback()
    assert ids(done) == []


async def test_an_error_of_the_body_unlocks_the_batch_after_a_failed_attempt_to_connect(
    database_url: str, done: Connection
) -> None:
    """Such an attempt leaves a cycle that refers to whatever called it."""
    publish(done, 3)
    there = conninfo_to_dict(database_url)
    proxy = Proxy(f"{there['host']}/.s.PGSQL.{there.get('port', 5432)}")
    url = make_conninfo(database_url, host="127.0.0.1", port=await proxy.start())
    proxy.refusing = True

    def accept(_: Reconnect) -> None:
        proxy.refusing = False

    async def fail() -> None:
        batches = consumer(url, on_reconnect=accept)
        async for batch, conn in batches:
            await write(batch, conn)
            raise ZeroDivisionError

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            await fail()
        await eventually(lambda: not done.execute(OPEN).fetchall())
    finally:
        gc.enable()
        await proxy.close()
    assert ids(done) == []


@pytest.mark.parametrize("failed", [False, True])
async def test_as_a_context_manager(database_url: str, done: Connection, failed: bool) -> None:
    publish(done, 3)
    with contextlib.suppress(ZeroDivisionError):
        async with consumer(database_url) as batches:
            async for batch, conn in batches:
                await write(batch, conn)
                if failed:
                    raise ZeroDivisionError
                break
    assert ids(done) == ([] if failed else [1, 2, 3])
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_a_body_that_goes_on_after_a_failed_statement(database_url: str, done: Connection) -> None:
    publish(done)

    async def go_on() -> None:
        async for batch, conn in consumer(database_url):
            await write(batch, conn)
            with contextlib.suppress(psycopg.Error):
                await conn.execute("SELECT 1 / 0")

    with pytest.raises(ClientError, match="the batch was rolled back"):
        await go_on()
    assert ids(done) == []


async def test_a_body_may_roll_back_by_itself(database_url: str, done: Connection) -> None:
    publish(done)
    tries = 0
    async for batch, conn in consumer(database_url):
        tries += 1
        await write(batch, conn)
        if tries == 2:
            await conn.commit()
            break
        await conn.rollback()
    assert ids(done) == [1]


async def test_the_statements_of_the_body_have_their_own_timeouts(database_url: str, done: Connection) -> None:
    publish(done)
    url = make_conninfo(database_url, options="-c lock_timeout=123ms -c default_transaction_isolation=serializable")
    async for _, conn in consumer(url):
        rows = await (await conn.execute("SELECT current_setting('lock_timeout')")).fetchall()
        rows += await (await conn.execute("SELECT current_setting('transaction_isolation')")).fetchall()
        assert rows == [("123ms",), ("read committed",)]
        break


async def test_waiting_takes_no_transaction_and_hears_the_bell(
    database_url: str, done: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAFETY_READ_S", 3600.0)
    async with running(database_url):
        await asleep(done)
        for number in range(1, 4):
            await eventually(lambda: done.execute(STATE).fetchall() == [("idle",)])
            publish(done)
            await caught_up(done, number)


async def test_an_awake_server_does_not_mask_the_bell(
    database_url: str, done: Connection, launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAFETY_READ_S", 3600.0)
    await launch()
    async with running(database_url):
        await eventually(lambda: sorted(done.execute(LOCKS).fetchall()) == [(1,), (1,)])
        with psycopg.connect(database_url) as tail:
            tail.execute("SELECT pg_advisory_lock_shared(sse_pg.lock_class('tail'), 2)")  # as an awake server shows
            tail.commit()
            publish(done)
            await caught_up(done, 1)


async def test_a_publisher_that_asked_before_is_polled_for(
    database_url: str, done: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw an awake server and no sleeper, so it does not ring."""
    monkeypatch.setattr(module, "SAFETY_READ_S", 3600.0)
    with psycopg.connect(database_url) as tail, psycopg.connect(database_url) as publisher:
        tail.execute("SELECT pg_advisory_lock_shared(sse_pg.lock_class('tail'), 2)")
        tail.commit()
        publisher.execute("SELECT sse_pg.publish('a', 't', '1')")
        async with running(database_url):
            await eventually(lambda: sorted(done.execute(LOCKS).fetchall()) == [(1,), (2,)])
            publisher.commit()
            await caught_up(done, 1)


async def test_a_busy_log_is_polled(database_url: str, done: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAFETY_READ_S", 3600.0)
    async with running(database_url):
        await asleep(done)
        count = 0
        while done.execute(LOCKS).fetchall() != [(2,)]:
            publish(done)
            publish(done, channel="b")
            count += 1
            await asyncio.sleep(0)
        for _ in range(2 * module.POLLS_TO_SLEEP):  # the log is busy with what it does not read
            publish(done, channel="b")
            await asyncio.sleep(module.POLL_S)
            assert done.execute(LOCKS).fetchall() == [(2,)]
        publish(done)  # polled for, without a bell
        await caught_up(done, count + 1)
        await asleep(done)
        publish(done)
        await caught_up(done, count + 2)


async def test_asleep_that_cannot_be_shown(
    database_url: str, done: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SLEEP_RETRY_S", 0.01)
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(sse_pg.lock_class('tail'), 1)")
        async with running(database_url):
            await asleep(done, 2)
            publish(done)
            await caught_up(done, 1)
            other.execute("SELECT pg_advisory_unlock(sse_pg.lock_class('tail'), 1)")
            await asleep(done)
    assert "another session holds the advisory lock" in caplog.text


async def test_several_takers_of_one_name(database_url: str, done: Connection) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(running(database_url, most=3))
        for _ in range(10):
            publish(done, 7)
            await asyncio.sleep(0.01)
        await caught_up(done, 70)
    assert sorted(ids(done)) == list(range(1, 71))


async def test_a_taker_that_waits_for_long_tries_again(
    database_url: str, done: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_pg.db.consumer_session.TAKE_LOCK_TIMEOUT", "10ms")
    publish(done, 2)
    with psycopg.connect(database_url) as first:
        assert len(first.execute("SELECT FROM sse_pg.consume('mail', '{a}', 1)").fetchall()) == 1
        async with running(database_url) as worker:
            await eventually(lambda: done.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall())
            await asyncio.sleep(0.05)
            assert not worker.done()
            first.commit()
            await caught_up(done, 1)
    assert ids(done) == [2]


async def test_a_lost_connection_is_replaced(
    database_url: str, done: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sse-pg consumer'"
        "   AND datname = current_database()"
    )
    lost: list[Reconnect] = []
    async with running(database_url, on_reconnect=lost.append):
        await asleep(done)
        done.execute(end)
        await eventually(lambda: lost)
        publish(done)
        await caught_up(done, 1)
    await eventually(lambda: not done.execute(STATE).fetchall())
    async with running(database_url):
        await asleep(done)
        done.execute(end)
        publish(done)
        await caught_up(done, 2)
    assert "the consumer's connection was lost" in caplog.text
    assert lost[0].cursor is None


async def test_a_connection_lost_during_the_body(database_url: str, done: Connection) -> None:
    """The body has no error, and its commit fails: the events come again."""
    publish(done)
    tries = 0
    async for batch, conn in consumer(database_url, on_reconnect=lambda _: None):
        tries += 1
        await write(batch, conn)
        if tries == 2:
            await conn.commit()
            break
        done.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
    assert ids(done) == [1]


async def test_no_database_yet(database_url: str, done: Connection) -> None:
    (name,) = done.execute("SELECT current_database()").fetchone() or ("",)
    lost: list[Reconnect] = []
    async with running(make_conninfo(database_url, port="1"), on_reconnect=lost.append) as worker:
        await eventually(lambda: len(lost) > 2)
        assert not worker.done()
    assert name


async def test_cancelled_while_it_waits(database_url: str, done: Connection) -> None:
    batches = consumer(database_url)
    for _ in range(3):
        waiting = asyncio.ensure_future(anext(batches))
        await asleep(done)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    publish(done)
    with psycopg.connect(database_url) as first:
        first.execute("SELECT FROM sse_pg.consume('mail', '{a}')")
        waiting = asyncio.ensure_future(anext(batches))
        await eventually(lambda: done.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall())
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        first.rollback()
    batch, conn = await anext(batches)
    await write(batch, conn)
    await conn.commit()
    await batches.aclose()
    assert ids(done) == [1]


async def test_gaps(database_url: str, done: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """The callback writes in the transaction of the batch."""
    done.execute("SELECT sse_pg.make_partitions(2, 10)")
    publish(done, 5)
    done.execute("SELECT FROM sse_pg.consume('mail', '{a}')")
    done.execute("SELECT FROM sse_pg.consume('search', '{a}')")
    publish(done, 20)
    done.execute("SELECT FROM sse_pg.make_partitions(2, 10)")
    assert done.execute("SELECT state FROM sse_pg.purge(1)").fetchone() == ("done",)
    gaps: list[Gap] = []

    async def note(gap: Gap, conn: Any) -> None:
        gaps.append(gap)
        await conn.execute("INSERT INTO done (id) VALUES (0)")

    async with running(database_url, on_gap=note):
        await caught_up(done, 7)
    assert gaps == [Gap("expired", "5", "19")]
    assert ids(done) == [0, *range(20, 26)]
    done.execute("TRUNCATE done")
    async with running(database_url, name="search"):
        await caught_up(done, 6)
    assert "the events after 5 and up to 19 were not consumed: expired" in caplog.text
    assert [record.levelno for record in caplog.records if record.name == "sse_pg.client"] == [logging.WARNING]


async def test_a_gap_alone_is_noted_once(database_url: str, done: Connection) -> None:
    publish(done, 5)
    done.execute("SELECT FROM sse_pg.consume('mail', '{a}')")
    done.execute("SELECT sse_pg.begin_epoch()")
    gaps: list[Gap] = []
    async with running(database_url, on_gap=lambda gap, _: gaps.append(gap)):
        await asleep(done)
        publish(done)
        await caught_up(done, 1)
    assert gaps == [Gap("unknown", "5", "5")]


async def test_an_error_of_the_callback_is_raised(database_url: str, done: Connection) -> None:
    done.execute("SELECT FROM sse_pg.consume('mail', '{a}')")
    done.execute("SELECT sse_pg.begin_epoch()")

    def fail(*_: object) -> None:
        raise ConnectionError("the mail server is down")

    for _ in range(2):
        with pytest.raises(ConnectionError):
            await anext(consumer(database_url, on_gap=fail))


async def test_what_the_database_refuses_is_raised(database_url: str, done: Connection) -> None:
    done.execute("SELECT FROM sse_pg.consume('mail', '{b}')")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="has the channels"):
        await anext(consumer(database_url))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="at least one channel"):
        await anext(consumer(database_url, channels=()))


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[str]:
    """The way to the database through a PgBouncer that takes its backends in turn."""
    with poolers(database_url) as start:
        yield start("transaction", min_pool_size="3", default_pool_size="5", server_round_robin="1")


@needs_pgbouncer
async def test_a_transaction_pooler_is_refused_by_a_loop_that_listens(pooled_url: str) -> None:
    with pytest.raises(ClientError, match=r"transaction pooler.*listen=False"):
        await anext(consumer(pooled_url))


@needs_pgbouncer
async def test_behind_a_transaction_pooler(pooled_url: str, done: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """Several takers, more statements than psycopg would prepare one for, and errors: each event once, in order."""
    publish(done, 10)

    async def fail() -> None:
        async for batch, conn in consumer(pooled_url, listen=False):
            await write(batch, conn)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(running(pooled_url, listen=False, most=3))
        for _ in range(10):
            publish(done, 7)
            publish(done, channel="b")
            await asyncio.sleep(0.01)
        await caught_up(done, 80)
    found = done.execute("SELECT d.id FROM done d JOIN sse_pg.events e USING (id) WHERE e.channel = 'a' ORDER BY place")
    assert [number for (number,) in found] == sorted(ids(done))
    assert "connection was lost" not in caplog.text


LEFT_BEHIND = (
    "SELECT current_setting('lock_timeout'), current_setting('idle_session_timeout'),"
    "       (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_prepared_statements),"
    "       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
)


@needs_pgbouncer
async def test_nothing_is_left_behind_in_a_pooler(database_url: str, done: Connection) -> None:
    """The backends belong to others as soon as a transaction has ended."""
    with poolers(database_url) as start:
        url = start("transaction", default_pool_size="1", server_check_query="select 1")
        async with consumer(url, listen=False, most=1) as batches:
            publish(done, 20)
            for number in range(1, 21):
                batch, conn = await anext(batches)
                await write(batch, conn)
                rows = await (await conn.execute("SELECT current_setting('lock_timeout')")).fetchall()
                assert ([event.id for event in batch], rows) == ([number], [("0",)])
            await conn.commit()
            with psycopg.connect(url, autocommit=True, prepare_threshold=None) as other:
                assert other.execute(LEFT_BEHIND).fetchone() == ("0", "0", 0, 0, 0)
    assert ids(done) == list(range(1, 21))


@needs_pgbouncer
async def test_the_backend_of_a_pooler_ends_during_the_body(pooled_url: str, done: Connection) -> None:
    """The batch was not committed, so it comes again."""
    publish(done)
    tries = 0
    async for batch, conn in consumer(pooled_url, listen=False, on_reconnect=lambda _: None):
        tries += 1
        await write(batch, conn)
        if tries == 2:
            await conn.commit()
            break
        rows = await (await conn.execute("SELECT pg_backend_pid()")).fetchall()
        done.execute("SELECT pg_terminate_backend(%s)", rows[0])
    assert ids(done) == [1]


async def test_one_task_at_a_time(database_url: str, done: Connection) -> None:
    batches = consumer(database_url)
    waiting = asyncio.ensure_future(anext(batches))
    await asleep(done)
    with pytest.raises(RuntimeError, match="one task"):
        await anext(batches)
    publish(done)
    assert len((await waiting)[0]) == 1
    await batches.aclose()


def test_no_database_driver_before_it_connects() -> None:
    program = (
        "import sys, sse_pg.client; sse_pg.client.consume('', 'n', ['a']); "
        "sys.exit('psycopg' in sys.modules or 'sse_pg.db' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
