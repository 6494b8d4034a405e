"""GET /metrics: read with the official parser, and every number moves as it should."""

from __future__ import annotations

import asyncio
import json
import math
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator

import aiohttp
import psycopg
import pytest
from prometheus_client import ProcessCollector
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from support.client import Client
from support.openapi import check
from support.server import Launcher, Server
from support.tokens import SECRET, token
from support.waiting import TIMEOUT_S, eventually

from sse_pg.api import process
from sse_pg.api.readings import read
from sse_pg.core.metrics import BY_NAME, METRICS, combined, counters_of, text
from sse_pg.delivery.end_reason import EndReason
from sse_pg.version import VERSION

Samples = dict[str, float]


def samples(exposed: str) -> Samples:
    """Read the text: name{label=value,...} -> number."""
    found: Samples = {}
    for family in text_string_to_metric_families(exposed):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            name = sample.name + (f"{{{labels}}}" if labels else "")
            assert name not in found, name
            found[name] = sample.value
    return found


async def raw(client: Client, **headers: str) -> tuple[int, str, str]:
    async with client.session.get(client.url + "/metrics", headers=headers) as answer:
        body = await answer.text()
        checked = json.loads(body) if answer.status > 200 else body
        check("GET", "/metrics", answer.status, answer.content_type, checked)
        return answer.status, answer.headers["Content-Type"], body


async def scrape(client: Client) -> Samples:
    status, _, body = await raw(client)
    assert status == 200
    return samples(body)


async def scraped(client: Client, name: str, value: float) -> Samples:
    """Scrape until a number is there."""
    async with asyncio.timeout(TIMEOUT_S):
        while (found := await scrape(client)).get(name) != value:
            await asyncio.sleep(0.01)
    return found


@pytest.fixture
async def server(launch: Launcher) -> Server:
    return await launch(safety_read=0.05)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with Client(server.url) as made:
        yield made


# ---- the text


async def test_every_metric_is_in_the_first_answer(client: Client) -> None:
    status, content_type, body = await raw(client)
    assert status == 200
    assert content_type.startswith("text/plain")
    families = {family.name for family in text_string_to_metric_families(body)}
    ends = {metric.name.removesuffix("_total") for metric in METRICS}
    assert families == ends
    found = samples(body)
    assert found[f"sse_pg_build_info{{python={platform.python_version()},version={VERSION}}}"] == 1
    assert (found["sse_pg_workers"], found["sse_pg_ready"], found["sse_pg_listening"]) == (1, 1, 1)
    for metric in METRICS:
        for known in metric.known:
            labels = ",".join(f"{n}={v}" for n, v in zip(metric.labels, known.split(","), strict=True))
            assert f"{metric.name}{{{labels}}}" in found


async def test_openmetrics_for_those_who_ask(client: Client) -> None:
    status, content_type, body = await raw(client, Accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert content_type.startswith("application/openmetrics-text")
    assert len(list(openmetrics.text_string_to_metric_families(body))) == len(METRICS)


async def test_promtool_finds_no_fault(client: Client) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on this machine; it comes with Debian's package prometheus")
    _, _, body = await raw(client)
    done = await asyncio.to_thread(
        subprocess.run, [program, "check", "metrics"], input=body, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_reason_has_its_name() -> None:
    assert {reason.value for reason in EndReason} == set(BY_NAME["sse_pg_streams_closed_total"].known)


# ---- the numbers


async def test_publishing_and_delivery(client: Client, db: psycopg.Connection) -> None:
    async with client.stream("a") as one, client.stream("a") as two, client.stream("b") as other:
        await scraped(client, "sse_pg_streams{state=live}", 3)
        await client.publish("a", 1)
        await client.post("/api/events/publish", {"channel": "a", "payload": 2, "idempotencyKey": "k"})
        batch = [{"channel": "a", "payload": 3}, {"channel": "b", "payload": 4, "idempotencyKey": "l"}]
        await client.post("/api/events/publish", batch)
        db.execute("SELECT sse_pg.publish('nobody', 'T', '5')")
        for stream, count in ((one, 3), (two, 3), (other, 1)):
            await stream.events(count)
        found = await scraped(client, "sse_pg_events_read_total", 5)
        published = {form: found[f"sse_pg_events_published_total{{form={form}}}"] for form in FORMS}
        assert published == {"single,keyed=no": 1, "single,keyed=yes": 1, "batch,keyed=no": 1, "batch,keyed=yes": 1}
        assert found["sse_pg_publish_commits_total"] == 3
        assert found["sse_pg_deliveries_total"] == 7
        assert found["sse_pg_delivery_delay_seconds_count"] == 4, "nobody follows the last one"
        assert found["sse_pg_delivery_delay_seconds_bucket{le=+Inf}"] == 4
        assert 0 < found["sse_pg_delivery_delay_seconds_sum"] < 5 * TIMEOUT_S
        counts = [value for name, value in found.items() if name.startswith("sse_pg_delivery_delay_seconds_bucket")]
        assert counts == sorted(counts)
        assert (found["sse_pg_groups{streams=1}"], found["sse_pg_groups{streams=2-10}"]) == (1, 1)
        assert found["sse_pg_group_streams_max"] == 2
        assert found["sse_pg_position_id"] == 5
        assert found["sse_pg_ring_events"] == 4
        assert found["sse_pg_bell_rings_total"] >= 1
        sent = found["sse_pg_sent_bytes_total"]
        assert sent > 7 * len("id: 1\nevent: message\ndata: 1\n\n")
    found = await scraped(client, "sse_pg_streams_closed_total{reason=client}", 3)
    assert found["sse_pg_streams_opened_total"] == 3
    assert found["sse_pg_sent_bytes_total"] >= sent, "closed streams still count"
    assert found["sse_pg_streams{state=live}"] == 0


FORMS = ("single,keyed=no", "single,keyed=yes", "batch,keyed=no", "batch,keyed=yes")


async def test_replays_and_cursors(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(ring_events=5)
    server.bus.hub.followed.add(frozenset("a"))
    db.execute("INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g) FROM generate_series(1, 20) g")
    await eventually(lambda: server.bus.hub.position.high == 20)
    async with Client(server.url) as client:
        for cursor, count in ((None, 0), ("17", 3), ("2", 18), ("2", 18), ("77", 1), ("nonsense", 1)):
            async with client.stream("a", last_event_id=cursor) as stream:
                await stream.events(count)
        found = await scraped(client, "sse_pg_streams_closed_total{reason=client}", 6)
        kinds = {kind: found[f"sse_pg_cursors_total{{kind={kind}}}"] for kind in ("none", "known", "lost", "malformed")}
        assert kinds == {"none": 1, "known": 3, "lost": 1, "malformed": 1}
        assert found["sse_pg_gap_notices_total{reason=unknown}"] == 2
        sources = {source: found[f"sse_pg_replays_total{{source={source}}}"] for source in ("none", "ring", "table")}
        assert sources == {"none": 3, "ring": 1, "table": 2}
        assert found["sse_pg_replayed_events_total{source=ring}"] == 3
        assert found["sse_pg_replayed_events_total{source=table}"] == 36
        assert found["sse_pg_replay_pages_total{source=read}"] == 1
        assert found["sse_pg_replay_pages_total{source=shared}"] == 1


async def test_gaps(launch: Launcher, database_url: str, db: psycopg.Connection) -> None:
    server = await launch(order_wait=0.0, safety_read=0.05)
    async with Client(server.url) as client:
        with psycopg.connect(database_url) as one, psycopg.connect(database_url) as two:
            one.execute("SELECT sse_pg.publish('a', 'LATE', '1')")
            two.execute("SELECT sse_pg.publish('a', 'NEVER', '1')")
            db.execute("SELECT sse_pg.publish('a', 'SOON', '2')")
            found = await scraped(client, "sse_pg_gaps_open_ids", 2)
            assert found["sse_pg_gap_oldest_seconds"] > 0
            assert found["sse_pg_gaps_opened_ids_total"] == 2
            one.commit()
            two.rollback()
        found = await scraped(client, "sse_pg_gaps_open_ids", 0)
        assert found["sse_pg_gaps_retired_ids_total{how=came}"] == 1
        assert found["sse_pg_gaps_retired_ids_total{how=dead}"] == 1
        assert found["sse_pg_gap_oldest_seconds"] == 0


async def test_ids_that_are_drawn_and_not_handed_on_are_lag(
    launch: Launcher, database_url: str, db: psycopg.Connection
) -> None:
    server = await launch(safety_read=0.05)
    async with Client(server.url) as client:
        with psycopg.connect(database_url) as one:
            one.execute("SELECT sse_pg.publish('a', 'LATE', '1'), sse_pg.publish('a', 'LATE', '2')")
            await scraped(client, "sse_pg_tail_lag_ids", 2)
        found = await scraped(client, "sse_pg_tail_lag_ids", 0)
        assert found["sse_pg_position_id"] == 2


async def test_a_slow_client_and_a_stop(launch: Launcher) -> None:
    server = await launch(stream_buffer=1024)
    async with Client(server.url) as client:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as silent:
            silent.sendall(f"GET /api/events/stream?channels=a HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            await eventually(lambda: any(stream.live for stream in server.bus.hub.streams))
            while server.bus.hub.closed[EndReason.SLOW] == 0:
                await client.publish("a", "x" * 500_000)
        found = await scraped(client, "sse_pg_streams_closed_total{reason=slow}", 1)
        assert found["sse_pg_streams_closed_total{reason=client}"] == 0
        async with client.stream("a") as stream:
            await server.bus.end_streams(0)
            await stream.ended()
            found = await scraped(client, "sse_pg_streams_closed_total{reason=drain}", 1)
        assert found["sse_pg_ready"] == 0


async def test_who_is_turned_away(launch: Launcher) -> None:
    server = await launch(max_streams_user=1, max_streams=2, publish_rate=1.0, max_bodies=1024, max_connections=3)
    async with Client(server.url) as client:
        await client.post("/api/events/channels/subscribe", {"userId": "u", "channel": "a"})
        async with client.stream(userId="u"):
            status, _ = await client.get("/api/events/stream?userId=u")
            assert status == 429
            async with client.stream("a"):
                assert (await client.get("/api/events/stream?channels=b"))[0] == 503
                async with Client(server.url) as another:
                    with pytest.raises(aiohttp.ClientError):  # aiohttp may see the end before the answer
                        await _refused(another)
        assert (await client.post("/api/events/publish", [{"channel": "a", "payload": n} for n in range(9)]))[0] == 201
        assert (await client.post("/api/events/publish", {"channel": "a", "payload": 1}))[0] == 429
        large = {"userId": "u" * 2000, "channel": "a"}
        assert (await client.post("/api/events/channels/subscribe", large))[0] == 503
        found = await scrape(client)
    refused = {name: value for name, value in found.items() if "refused" in name and value}
    assert refused == {
        f"sse_pg_refused_requests_total{{kind={kind}}}": 1
        for kind in ("streams_user", "streams", "connections", "publish_rate", "bodies")
    }


async def test_the_pool_says_for_how_long_its_connections_were_lent(client: Client, db: psycopg.Connection) -> None:
    lent = "sse_pg_pool_use_seconds_total{pool=requests}"
    before = (await scrape(client))[lent]
    db.execute("BEGIN")
    db.execute("LOCK TABLE sse_pg.events IN EXCLUSIVE MODE")
    publishing = asyncio.create_task(client.publish("a", 1))
    waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'sse_pg.events'::regclass)"
    await eventually(lambda: db.execute(waits).fetchone() == (True,))
    waiting = time.monotonic()
    assert not publishing.done()
    db.execute("ROLLBACK")
    waited = time.monotonic() - waiting
    await publishing
    assert (await scrape(client))[lent] - before >= waited > 0


async def _refused(client: Client) -> None:
    async with client.session.get(client.url + "/healthz") as answer:
        raise aiohttp.ClientError(str(answer.status))


async def test_without_a_database(launch: Launcher) -> None:
    server = await launch(ready=False, database_url="postgresql://nobody@127.0.0.1:1/x", pool_timeout=0.1)
    async with Client(server.url) as client:
        assert (await client.post("/api/events/publish", {"channel": "a", "payload": 1}))[0] == 503
        assert (await client.get("/api/events/stream?channels=a"))[0] == 503
        found = await scrape(client)
        assert found["sse_pg_refused_requests_total{kind=database}"] == 1
        assert found["sse_pg_refused_requests_total{kind=not_ready}"] == 1
        assert found["sse_pg_listen_failures_total"] >= 1
        assert (found["sse_pg_ready"], found["sse_pg_listening"]) == (0, 0)
        assert found["sse_pg_pool_timeouts_total{pool=requests}"] >= 1
        await eventually(lambda: server.bus.maintenance.rounds["failed"])
        assert (await scrape(client))["sse_pg_maintenance_rounds_total{result=failed}"] >= 1


async def test_a_lost_connection_is_a_reconnect(client: Client, db: psycopg.Connection) -> None:
    before = await scrape(client)
    assert before["sse_pg_listen_reconnects_total"] == 0
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'sse-pg tail' AND datname = current_database()"
    )
    after = await scraped(client, "sse_pg_listen_reconnects_total", 1)
    assert after["sse_pg_listen_failures_total"] >= 1
    assert after["sse_pg_tail_seconds_total{state=down}"] > before["sse_pg_tail_seconds_total{state=down}"]


async def test_a_safety_read_that_finds_something(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(safety_read=0.05)
    async with Client(server.url) as client:
        db.execute("UNLISTEN *")
        db.execute("ALTER TABLE sse_pg.events DISABLE TRIGGER announce")  # no trigger: no bell
        db.execute("INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1')")
        found = await scraped(client, "sse_pg_safety_reads_total{found=yes}", 1)
        assert found["sse_pg_bell_rings_total"] == 0
        assert found["sse_pg_tail_seconds_total{state=asleep}"] > 0


async def test_purging(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(partition_size=100, keep_events=200, maintenance=0.05, safety_read=0.05)
    await eventually(lambda: server.bus.maintenance.made)
    for _ in range(10):
        db.execute("INSERT INTO sse_pg.events (channel, payload) SELECT 'a', '1' FROM generate_series(1, 100)")
    async with Client(server.url) as client:
        async with asyncio.timeout(TIMEOUT_S):
            while (found := await scrape(client))["sse_pg_purged_partitions_total"] < 1:
                await asyncio.sleep(0.01)
    assert found["sse_pg_purged_to_id"] >= 100
    assert found["sse_pg_purged_bytes_total"] > 0
    assert found["sse_pg_maintenance_rounds_total{result=done}"] >= 1


async def test_the_size_of_the_log_and_the_age_of_its_oldest_event(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(maintenance=0.05)
    async with Client(server.url) as client:
        await eventually(lambda: server.bus.maintenance.log_size.bytes)
        empty = await scrape(client)
        assert empty["sse_pg_log_oldest_event_age_seconds"] == 0
        with db.transaction():
            db.execute("INSERT INTO sse_pg.events (channel, payload) SELECT 'a', '1' FROM generate_series(1, 5000)")
            db.execute("UPDATE sse_pg.events SET created_at = now() - interval '1 hour' WHERE id = 1")
        await eventually(lambda: server.bus.maintenance.log_size.oldest_at)
        found = await scrape(client)
        assert 3600 <= found["sse_pg_log_oldest_event_age_seconds"] < 7200
        assert found["sse_pg_log_bytes"] > empty["sse_pg_log_bytes"] > 0


# ---- who may read them


async def test_with_tokens_it_takes_observe(launch: Launcher) -> None:
    server = await launch(token_secret=SECRET)
    async with Client(server.url) as client:
        assert (await raw(client))[0] == 401
        assert (await raw(client, Authorization=f"Bearer {token('u', publish=['*'], subscribe=['*'])}"))[0] == 403
        status, _, body = await raw(client, Authorization=f"Bearer {token('u', observe=True)}")
        assert status == 200
        found = samples(body)
        assert found["sse_pg_authorization_failures_total{status=401}"] == 1
        assert found["sse_pg_authorization_failures_total{status=403}"] == 1


async def test_open_and_off(launch: Launcher) -> None:
    for how, status in (("open", 200), ("off", 404)):
        server = await launch(token_secret=SECRET, metrics=how)
        async with Client(server.url) as client:
            assert (await raw(client))[0] == status


# ---- several processes


async def test_histograms_add_up(server: Server, client: Client) -> None:
    async with client.stream("a") as stream:
        await client.publish("a", 1)
        await stream.event()
    await scraped(client, "sse_pg_delivery_delay_seconds_count", 1)
    numbers = read(server.bus)
    body, _ = text(combined([numbers, numbers], counters_of(numbers)), "")
    found = samples(body.decode())
    assert found["sse_pg_delivery_delay_seconds_count"] == 3
    assert math.isclose(found["sse_pg_delivery_delay_seconds_sum"], 3 * numbers["sse_pg_delivery_delay_seconds"]["sum"])
    assert found["sse_pg_workers"] == 2
    assert found["process_resident_memory_bytes"] > 0


async def test_the_failures_of_every_task_are_counted_from_the_start(launch: Launcher) -> None:
    server = await launch()
    assert set(BY_NAME["sse_pg_task_failures_total"].known) == {task.name for task in server.bus.tasks}


def test_the_numbers_of_the_process_are_those_of_the_usual_collector() -> None:
    ours = process.read()
    theirs = {
        sample.name: sample.value for each in ProcessCollector(registry=None).collect() for sample in each.samples
    }
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert math.isclose(ours[name][""], value, rel_tol=0.05, abs_tol=1.0), name
