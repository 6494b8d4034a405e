"""The client with small servers that send streams, cut them, refuse requests and stop responding."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpServer

from sse_pg.client import (
    Backoff,
    Denied,
    Event,
    Gap,
    Published,
    Reconnect,
    Snapshot,
    Subscription,
    publish,
    retry_after,
    subscribe,
)
from sse_pg.errors import BusUnavailable, ClientError, OutcomeUnknown

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
HELLO = "retry: 1\nid: 100\nevent: sse-pg.hello\ndata: {}\n\n"


def block(cursor: int | str, data: str = "{}", event: str = "order") -> str:
    return f"id: {cursor}\nevent: {event}\ndata: {data}\n\n"


class Bus:
    """A server that answers the n-th request with the n-th of ``answers``, and the rest with 204."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[Answer] = []
        self.requests: list[web.Request] = []
        self.bodies: list[Any] = []
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()  # a client has gone from an open stream
        self.over = asyncio.Event()  # the test is at its end

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        self.arrived.set()
        number = len(self.requests)
        if number > len(self.answers):
            return web.Response(status=204)
        return await self.answers[number - 1](request)

    def resumed_from(self) -> list[str | None]:
        return [request.headers.get("Last-Event-ID") for request in self.requests]

    def stream(self, *texts: str, cut: asyncio.Event | None = None, stay: bool = False) -> Answer:
        """Answer with a stream of these writes; then end it, cut it when the event is set, or keep it open."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for text in texts:
                await response.write(text.encode())
            if cut is not None:
                await cut.wait()
                assert request.transport is not None
                request.transport.abort()
            elif stay:
                try:
                    await self.over.wait()
                except asyncio.CancelledError:
                    self.left.set()
                    raise
            return response

        return answer


def refusal(status: int, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        problem = {
            "type": "about:blank",
            "title": "Refused",
            "status": status,
            "detail": "not subscribed to: audit",
        }
        return web.json_response(
            problem,
            status=status,
            content_type="application/problem+json",
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    return answer


def json_answer(body: Any, status: int = 201) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status)

    return answer


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


class Impatient(Backoff):
    """Records the requested delays and never waits."""

    def __init__(self) -> None:
        super().__init__(random=lambda: 0.0)
        self.asked: list[float] = []
        self.resets = 0

    def next_delay(self, at_least: float = 0.0) -> float:
        self.asked.append(at_least)
        super().next_delay(at_least)
        return 0.0

    def reset(self) -> None:
        self.resets += 1
        super().reset()


@pytest.fixture
async def bus(aiohttp_server: AiohttpServer) -> AsyncIterator[Bus]:
    bus = Bus()
    app = web.Application()
    app.router.add_get("/api/events/stream", bus.handle)
    app.router.add_post("/api/events/publish", bus.handle)
    server = await aiohttp_server(app)
    bus.url = str(server.make_url("/"))
    before = asyncio.all_tasks()
    yield bus
    bus.over.set()
    ours = {task for task in asyncio.all_tasks() - before if "sse_pg" in repr(task.get_coro())}
    assert not ours
    gc.collect()  # what was left open warns now, and a warning is an error


def follow(bus: Bus, **options: Any) -> Subscription:
    options.setdefault("backoff", Impatient())
    options.setdefault("on_reconnect", lambda lost: None)
    return subscribe(bus.url, ["orders"], **options)


# The stream


async def test_events_come_with_their_cursor_and_own_blocks_do_not(bus: Bus) -> None:
    bus.answers = [
        bus.stream(
            HELLO,
            ": beat\n\n",
            block("101~1", '{"n": 1}'),
            block(102, '"x"', "sse-pg.new"),
            block(103, "[1]", "sum"),
        )
    ]
    async with follow(bus) as events:
        first = await anext(events)
        assert (first, events.cursor) == (Event("101~1", "order", '{"n": 1}', 101), "101~1")
        assert first.json() == {"n": 1}
        second = await anext(events)
        assert second == Event("103", "sum", "[1]", 103)
        assert second.json(list[int]) == [1]
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    assert bus.requests[0].query == {"channels": "orders"}
    assert bus.requests[0].headers["Accept"] == "text/event-stream"


async def test_what_the_client_requests(bus: Bus) -> None:
    headers = {"Authorization": "Bearer t"}
    options: dict[str, Any] = {"user_id": 7, "cursor": 0, "envelope": True, "headers": headers}
    assert [event async for event in subscribe(bus.url, ["a", "b&c"], **options)] == []
    assert [event async for event in subscribe(bus.url, "orders")] == []
    assert [event async for event in subscribe(bus.url, user_id="u", latest=20)] == []
    queries = [dict(request.query) for request in bus.requests]
    assert queries == [
        {"channels": "a,b&c", "userId": "7", "envelope": "true"},
        {"channels": "orders"},
        {"userId": "u", "latest": "20"},
    ]
    assert bus.resumed_from() == ["0", None, None]
    assert bus.requests[0].headers["Authorization"] == "Bearer t"


@pytest.mark.parametrize(
    ("channels", "options"),
    [([], {}), (["a,b"], {}), ([""], {}), (["a"], {"max_silence": 0})],
)
async def test_arguments_that_cannot_be_used(channels: list[str], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"channel|max_silence"):
        subscribe("http://127.0.0.1:1", channels, **options)


async def test_204_ends_the_iteration_for_good(bus: Bus) -> None:
    events = follow(bus)
    assert [event async for event in events] == []
    assert [event async for event in events] == []
    assert len(bus.requests) == 1


# Resuming


async def test_a_cut_inside_a_block_resumes_after_the_event_before(bus: Bus) -> None:
    cut = asyncio.Event()
    bus.answers = [
        bus.stream(HELLO + block(101) + "id: 102\nevent: order\ndata: {", cut=cut),
        bus.stream(HELLO.replace("100", "101") + block(102, '{"whole": true}')),
    ]
    async with follow(bus) as events:
        assert (await anext(events)).id == "101"
        cut.set()
        assert await anext(events) == Event("102", "order", '{"whole": true}', 102)
    assert bus.resumed_from() == [None, "101"]


async def test_a_block_without_its_blank_line_is_not_an_event(bus: Bus) -> None:
    bus.answers = [bus.stream(HELLO + block(101) + block(102).removesuffix("\n")), bus.stream(block(102))]
    assert [event.id async for event in follow(bus)] == ["101", "102"]
    assert bus.resumed_from() == [None, "101", "102"]


async def test_hello_and_position_move_the_cursor(bus: Bus) -> None:
    bus.answers = [bus.stream(HELLO), bus.stream(HELLO, block("250", "{}", "sse-pg.position"))]
    events = follow(bus, cursor=17)
    assert [event async for event in events] == []
    assert bus.resumed_from() == ["17", "100", "250"]
    assert events.cursor == "250"


async def test_an_event_without_an_id_keeps_the_cursor(bus: Bus) -> None:
    bus.answers = [bus.stream("data: 1\n\n")]
    events = follow(bus, cursor="17")
    assert [event async for event in events] == [Event("17", "message", "1", 17)]
    assert bus.resumed_from() == ["17", "17"]


async def test_a_denied_channel_is_passed_on_and_asked_for_like_that(bus: Bus) -> None:
    said = block(100, '{"channels":["b","c"]}', "sse-pg.denied")
    bus.answers = [bus.stream(HELLO + said + block(101))]
    denied: list[Denied] = []
    found = [event async for event in follow(bus, on_denied=denied.append)]
    assert [event.id for event in found] == ["101"]
    assert denied == [Denied(["b", "c"])]
    assert bus.requests[0].query["denied"] == "skip"
    bus.requests.clear()
    bus.answers = [bus.stream(HELLO)]
    assert [event async for event in follow(bus)] == []
    assert "denied" not in bus.requests[-1].query


async def test_a_gap_is_reported_and_moves_the_cursor(bus: Bus) -> None:
    gap = block(90, '{"reason": "expired", "after": "5", "before": "90"}', "sse-pg.gap")
    bus.answers = [bus.stream(HELLO + gap + block(91))]
    told: list[Gap] = []

    async def on_gap(gap: Gap) -> None:
        told.append(gap)
        if len(told) == 1:
            raise LookupError

    async with follow(bus, cursor=5, on_gap=on_gap) as events:
        with pytest.raises(LookupError):
            await anext(events)
        assert events.cursor == "100"
        assert (await anext(events)).id == "91"
    assert told == [Gap("expired", "5", "90")] * 2  # told again, as the first telling failed


async def test_gap_and_loss_are_logged_by_default(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    bus.answers = [bus.stream(block(90, '{"reason": "unknown", "after": "5", "before": "90"}', "sse-pg.gap"))]
    with caplog.at_level(logging.WARNING, "sse_pg.client"):
        assert [event async for event in follow(bus, on_reconnect=None)] == []
    assert [record.getMessage() for record in caplog.records] == [
        "the events after 5 and up to 90 are lost: unknown",
        "the stream was lost (the server ended the stream); the next attempt is in 0.0 s",
    ]


async def test_a_gap_that_cannot_be_read_is_an_error(bus: Bus) -> None:
    bus.answers = [bus.stream(block(90, '{"reason": 1}', "sse-pg.gap"))]
    with pytest.raises(ClientError, match="gap"):
        await anext(follow(bus))


# Reconnecting


async def test_reconnects_whatever_the_server_does(bus: Bus) -> None:
    bus.answers = [
        hang_up,
        hang_up,  # aiohttp itself asks a second time after the first
        refusal(500),
        refusal(503, Retry_After="7"),
        refusal(429, Retry_After="2"),
        refusal(408),
        bus.stream(HELLO + block(101)),
    ]
    backoff = Impatient()
    lost: list[Reconnect] = []
    events = follow(bus, cursor=100, backoff=backoff, on_reconnect=lost.append)
    assert [event.id async for event in events] == ["101"]
    assert backoff.asked[-5:] == [0, 7, 2, 0, 0]
    assert bus.resumed_from() == ["100"] * 7 + ["101"]
    assert [loss.cursor for loss in lost[-2:]] == ["100", "101"]
    assert "503 Refused: not subscribed to: audit" in lost[-4].reason
    assert all(loss.reason for loss in lost)


async def test_only_a_hello_resets_the_backoff_and_retry_sets_its_base(bus: Bus) -> None:
    backoff = Impatient()
    bus.answers = [bus.stream(block(101)), bus.stream(HELLO), bus.stream("retry: 2500\n" + block(102))]
    bases, resets = [], []

    def on_reconnect(_: Reconnect) -> None:
        bases.append(backoff.base)
        resets.append(backoff.resets)

    assert [event.id async for event in follow(bus, backoff=backoff, on_reconnect=on_reconnect)] == [
        "101",
        "102",
    ]
    assert resets == [0, 1, 1]
    assert bases == [1.0, 0.05, 2.5]  # never below 50 ms


async def test_an_unreachable_server_is_tried_again(bus: Bus) -> None:
    with socket.socket() as reserved:  # bound and not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        lost: list[Reconnect] = []
        events = subscribe(f"http://127.0.0.1:{reserved.getsockname()[1]}", ["a"], backoff=Impatient())

        async def on_reconnect(loss: Reconnect) -> None:
            lost.append(loss)
            if len(lost) == 3:
                await events.close()

        events._on_reconnect = on_reconnect
        assert [event async for event in events] == []
        assert len(lost) == 3


async def test_silence_counts_as_a_loss(bus: Bus) -> None:
    bus.answers = [bus.stream(HELLO, stay=True), bus.stream(HELLO + block(101))]
    lost: list[Reconnect] = []
    async with follow(bus, max_silence=0.2, on_reconnect=lost.append) as events:
        assert (await anext(events)).id == "101"
    assert [loss.reason for loss in lost] == ["nothing arrived for 0.2 s"]
    assert bus.resumed_from() == [None, "100"]


async def test_a_server_that_never_answers_counts_as_silent(bus: Bus) -> None:
    async def silent(_: web.Request) -> web.StreamResponse:
        await bus.over.wait()
        return web.Response()

    bus.answers = [silent, bus.stream(HELLO + block(101))]
    async with follow(bus, max_silence=0.2) as events:
        assert (await anext(events)).id == "101"


async def test_heartbeats_count_as_life(bus: Bus) -> None:
    async def beating(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(HELLO.encode())
        for _ in range(13):
            await asyncio.sleep(0.1)
            await response.write(b":\n\n")
        await response.write(block(101).encode())
        return response

    bus.answers = [beating]
    async with follow(bus, max_silence=1.0) as events:
        assert (await anext(events)).id == "101"
    assert len(bus.requests) == 1


BROKEN = {
    "closed at once": (b"", "Server disconnected"),
    "closed within the head": (b"HTTP/1.1 200 OK\r\n", "within the head of the response"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", "not valid HTTP: Bad status line"),
    "an endless header": (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", "not valid HTTP: Got more than"),
    "a bad chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "not valid HTTP: Invalid character",
    ),
    "a short body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ndata: 1\n\n", "ended early"),
    "broken compression": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
        "compression is broken",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_response_is_one_line(case: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also when it is logged, and there is no traceback."""
    response, says = BROKEN[case]
    head = b"Content-Type: text/event-stream\r\n"
    response = response.replace(b"OK\r\n", b"OK\r\n" + head, 1) if b"\r\n\r\n" in response else response

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(response)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        lost: list[Reconnect] = []
        events = subscribe(url, ["a"], backoff=Impatient())

        async def on_reconnect(loss: Reconnect) -> None:
            lost.append(loss)
            await events.close()

        events._on_reconnect = on_reconnect
        assert [event.data async for event in events] in ([], ["1"])
        assert says in lost[0].reason
        assert "\n" not in lost[0].reason
        with pytest.raises((ClientError, OutcomeUnknown)) as caught:
            await publish(url, "a", 1)
        assert "\n" not in str(caught.value)
    assert not caplog.records


# Refusals


async def test_a_refusal_raises_with_the_detail_and_ends_the_iteration(bus: Bus) -> None:
    bus.answers = [refusal(403)]
    events = follow(bus)
    with pytest.raises(ClientError, match="responds with 403 Refused: not subscribed to: audit"):
        await anext(events)
    assert [event async for event in events] == []
    assert len(bus.requests) == 1


async def test_another_content_type_is_an_error(bus: Bus) -> None:
    bus.answers = [json_answer({}, 200)]
    with pytest.raises(ClientError, match="application/json, not an event stream"):
        await anext(follow(bus))


async def test_a_refusal_without_a_problem_document(bus: Bus) -> None:
    async def proxy(_: web.Request) -> web.StreamResponse:
        return web.Response(status=404, body=b"<html>\xff")

    bus.answers = [proxy]
    with pytest.raises(ClientError, match=r"responds with 404 Not Found$"):
        await anext(follow(bus))


async def test_an_invalid_url_is_an_error() -> None:
    with pytest.raises(ClientError, match="cannot be used"):
        await anext(subscribe("ftp://127.0.0.1", ["a"]))
    with pytest.raises(ClientError, match="cannot be used"):
        await publish("127.0.0.1:80", "a", {})


async def test_an_event_that_is_too_long_is_an_error_after_those_before(bus: Bus) -> None:
    bus.answers = [bus.stream(HELLO + block(101) + block(102, "x" * 1000), stay=True)]
    events = follow(bus, max_block=500)
    assert (await anext(events)).id == "101"
    with pytest.raises(ClientError, match="longer than 500 bytes"):
        await anext(events)


# Closing


async def test_close_wakes_a_waiting_iteration(bus: Bus) -> None:
    bus.answers = [bus.stream(HELLO, block(101), stay=True)]
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def consume(events: Subscription) -> None:
        async for event in events:
            seen.set_result(event.id)

    events = follow(bus)
    consumer = asyncio.create_task(consume(events))
    assert await seen == "101"
    await events.close()
    await events.close()
    await consumer
    await bus.left.wait()


async def test_close_wakes_an_iteration_that_waits_for_a_response(bus: Bus) -> None:
    async def silent(_: web.Request) -> web.StreamResponse:
        try:
            await bus.over.wait()
        finally:
            bus.left.set()
        return web.Response()

    bus.answers = [silent]
    events = follow(bus)
    consumer = asyncio.create_task(anext(events, None))
    await bus.arrived.wait()
    await events.close()
    assert await consumer is None
    await bus.left.wait()


async def test_close_wakes_an_iteration_that_waits_for_the_next_attempt(bus: Bus) -> None:
    bus.answers = [refusal(503, Retry_After="3600")]
    lost: asyncio.Future[Reconnect] = asyncio.get_running_loop().create_future()
    events = follow(bus, backoff=Backoff(), on_reconnect=lost.set_result)
    consumer = asyncio.create_task(anext(events, None))
    assert (await lost).delay >= 3600
    await events.close()
    assert await consumer is None
    assert len(bus.requests) == 1


async def test_aclosing_and_break_leave_nothing_open(bus: Bus) -> None:
    bus.answers = [bus.stream(HELLO + block(101), stay=True)] * 2
    async with contextlib.aclosing(follow(bus)) as events:
        async for _ in events:
            break
    await bus.left.wait()
    bus.left.clear()
    async for _ in follow(bus):
        break
    await bus.left.wait()


async def test_a_given_session_is_used_and_left_open(bus: Bus) -> None:
    bus.answers = [bus.stream(HELLO + block(101), stay=True), json_answer(ANSWER)]
    async with aiohttp.ClientSession(headers={"X-Mine": "1"}) as session:
        async with follow(bus, session=session) as events:
            await anext(events)
        await bus.left.wait()
        await publish(bus.url, "orders", 1, session=session)
        assert not session.closed
    assert [request.headers["X-Mine"] for request in bus.requests] == ["1", "1"]


async def test_a_cancelled_wait_loses_nothing(bus: Bus) -> None:
    more = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write((HELLO + block(101) + "id: 102\n").encode())
        await more.wait()
        await response.write(b"data: 2\n\n")
        await bus.over.wait()
        return response

    bus.answers = [answer]
    async with follow(bus) as events:
        assert (await anext(events)).id == "101"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 0.05)
        more.set()
        assert await anext(events) == Event("102", "message", "2", 102)
    assert len(bus.requests) == 1


async def test_two_tasks_cannot_iterate_at_once(bus: Bus) -> None:
    bus.answers = [bus.stream(HELLO, stay=True)]
    async with follow(bus) as events:
        consumer = asyncio.create_task(anext(events, None))
        await bus.arrived.wait()
        with pytest.raises(RuntimeError, match="one task"):
            await anext(events)
        await events.close()
        assert await consumer is None


# Backoff and Retry-After


def test_backoff_doubles_to_its_cap_and_begins_again() -> None:
    backoff = Backoff(base=1.0, cap=10.0, random=lambda: 0.5)
    assert [backoff.next_delay() for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]
    assert backoff.next_delay(at_least=60) == 65
    backoff.reset()
    assert backoff.next_delay(at_least=3) == 3.5
    backoff.base = 40.0  # above the cap
    assert backoff.next_delay() == 20
    assert max(backoff.next_delay() for _ in range(5000)) == 20


def test_backoff_is_spread_over_the_whole_range() -> None:
    draws = iter([0.0, 0.25, 0.999])
    backoff = Backoff(base=8.0, cap=8.0, random=lambda: next(draws))
    assert [backoff.next_delay() for _ in range(3)] == [0.0, 2.0, 7.992]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("120", 120),
        (" 3 ", 3),
        ("9" * 500, 86400),
        ("Wed, 01 Jan 2025 00:00:30 GMT", 30),
        ("Wed, 01 Jan 2025 00:00:30 -0000", 30),
        ("Tue, 31 Dec 2024 23:59:00 GMT", 0),
        ("Fri, 01 Jan 2027 00:00:00 GMT", 86400),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    assert retry_after(value, datetime(2025, 1, 1, tzinfo=UTC)) == seconds


# Publishing

ANSWER = {"id": 5, "channel": "orders", "eventType": "created", "createdAt": "2025-01-01T00:00:00.000000Z"}
PUBLISHED = Published(5, "orders", "created", "2025-01-01T00:00:00.000000Z")


async def test_publish(bus: Bus) -> None:
    bus.answers = [json_answer(ANSWER), json_answer(ANSWER)]
    assert await publish(bus.url, "orders", {"n": 1}, event_type="created") == PUBLISHED
    assert (
        await publish(bus.url, "orders", msgspec.Raw(b'{"n": 1.00}'), headers={"Authorization": "Bearer t"})
        == PUBLISHED
    )
    assert [msgspec.json.decode(body) for body in bus.bodies] == [
        {"channel": "orders", "eventType": "created", "payload": {"n": 1}},
        {"channel": "orders", "eventType": "message", "payload": {"n": 1}},
    ]
    assert b"1.00" in bus.bodies[1]
    assert bus.requests[1].headers["Authorization"] == "Bearer t"
    assert bus.requests[1].content_type == "application/json"


async def test_publish_with_a_key_survives_lost_connections(bus: Bus) -> None:
    backoff = Impatient()
    bus.answers = [hang_up, refusal(503, Retry_After="2"), json_answer(ANSWER)]
    assert await publish(bus.url, "orders", 1, idempotency_key="k", backoff=backoff) == PUBLISHED
    assert backoff.asked == [0, 2]
    assert len(set(bus.bodies)) == 1
    assert msgspec.json.decode(bus.bodies[0])["idempotencyKey"] == "k"


async def test_publish_gives_up_in_the_end(bus: Bus) -> None:
    bus.answers = [hang_up] * 9
    with pytest.raises(OutcomeUnknown):
        await publish(bus.url, "orders", 1, idempotency_key="k", attempts=3, backoff=Impatient())
    assert len(bus.requests) == 3


async def test_publish_does_not_wait_longer_than_its_timeout(bus: Bus) -> None:
    bus.answers = [refusal(503, Retry_After="3600")]
    with pytest.raises(ClientError, match="503"):
        await publish(bus.url, "orders", 1, idempotency_key="k")


async def test_publish_without_a_key_is_sent_once(bus: Bus) -> None:
    bus.answers = [hang_up, refusal(503)]
    with pytest.raises(OutcomeUnknown, match="unknown whether"):
        await publish(bus.url, "orders", 1)
    with pytest.raises(ClientError, match="503"):
        await publish(bus.url, "orders", 1)
    assert len(bus.requests) == 2


async def test_publish_that_is_not_answered_in_time(bus: Bus) -> None:
    bus.answers = [bus.stream(stay=True)]
    with pytest.raises(OutcomeUnknown):
        await publish(bus.url, "orders", 1, timeout=0.1)


async def test_publish_without_a_server() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with pytest.raises(BusUnavailable, match="nothing was published") as caught:
            await publish(f"http://127.0.0.1:{reserved.getsockname()[1]}", "orders", 1)
    assert not isinstance(caught.value, OutcomeUnknown)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_publish_does_not_follow_a_redirect(bus: Bus, status: int) -> None:
    """After a redirect the POST could become a GET, whose response could be mistaken for that of a publish."""
    bus.answers = [refusal(status, Location="https://elsewhere.example/api/events/publish"), json_answer(ANSWER)]
    with pytest.raises(ClientError, match=rf"{status} .* the URL is now https://elsewhere.example/"):
        await publish(bus.url, "orders", 1, idempotency_key="k")
    assert len(bus.requests) == 1


async def test_publish_refused_or_with_an_invalid_response(bus: Bus) -> None:
    bus.answers = [refusal(422), json_answer({"id": "x"})]
    with pytest.raises(ClientError, match="422 Refused"):
        await publish(bus.url, "orders", 1, idempotency_key="k")
    with pytest.raises(ClientError, match="cannot be decoded"):
        await publish(bus.url, "orders", 1, idempotency_key="k")


async def test_publish_with_a_response_that_is_not_utf8(bus: Bus) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=201, body=b'{"id": 1, "channel": "\xff"}')

    bus.answers = [answer]
    with pytest.raises(ClientError, match="cannot be decoded"):
        await publish(bus.url, "orders", 1)


# Snapshots

GAP = block(200, '{"reason": "expired", "after": "101", "before": "200"}', "sse-pg.gap")


class Table:
    """A source of snapshots: each answer is a position, or an error to raise. The state is the number of the call."""

    def __init__(self, *answers: str | int | Exception) -> None:
        self.answers = list(answers)
        self.calls = 0

    async def __call__(self) -> tuple[int, str | int]:
        self.calls += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return self.calls, answer


async def test_a_snapshot_comes_first_and_the_stream_goes_on_from_its_position(bus: Bus) -> None:
    bus.answers = [bus.stream(HELLO, block(101)), bus.stream(HELLO, block(102))]
    events = [event async for event in follow(bus, snapshot=Table("100~2"))]
    assert [(event.type, event.id) for event in events] == [
        ("sse-pg.snapshot", "100~2"),
        ("order", "101"),
        ("order", "102"),
    ]
    assert isinstance(events[0], Snapshot)
    assert events[0].state == 1
    assert bus.resumed_from() == ["100~2", "101", "102"]


async def test_after_a_gap_there_is_another_snapshot(bus: Bus) -> None:
    """What follows the gap is part of it, though it has arrived already."""
    bus.answers = [bus.stream(HELLO, block(101) + GAP + block(201), stay=True), bus.stream(HELLO, block(301))]
    gaps: list[Gap] = []
    found = [event async for event in follow(bus, snapshot=Table(100, 300), on_gap=gaps.append)]
    assert [(event.id, getattr(event, "state", None)) for event in found] == [
        ("100", 1),
        ("101", None),
        ("300", 2),
        ("301", None),
    ]
    assert gaps == [Gap("expired", "101", "200")]
    assert bus.resumed_from() == ["100", "300", "301"]
    await bus.left.wait()


async def test_a_gap_is_no_loss_and_is_not_logged(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    bus.answers = [bus.stream(HELLO, GAP), bus.stream(HELLO, block(301))]
    found = [event.id async for event in follow(bus, snapshot=Table(100, 300))]
    assert found == ["100", "300", "301"]
    assert not caplog.records


async def test_a_position_that_gets_a_gap_at_once_waits(bus: Bus) -> None:
    """An endless loop otherwise, if the snapshots come from a cache. After an event the next one may come at once."""
    backoff = Impatient()
    bus.answers = [bus.stream(HELLO, GAP), bus.stream(HELLO, GAP), bus.stream(HELLO, block(102), GAP)]
    found = [event.id async for event in follow(bus, snapshot=Table(100, 100, 101, 300), backoff=backoff)]
    assert found == ["100", "100", "101", "102", "300"]
    assert len(backoff.asked) == 2


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(), TimeoutError(), aiohttp.ServerDisconnectedError(), BusUnavailable("away")]
)
async def test_a_snapshot_that_cannot_be_reached_is_taken_later(bus: Bus, error: Exception) -> None:
    lost: list[Reconnect] = []
    table = Table(error, error, 100)
    bus.answers = [bus.stream(HELLO, block(101))]
    found = [event.id async for event in follow(bus, snapshot=table, on_reconnect=lost.append)]
    assert (found, table.calls) == (["100", "101"], 3)
    assert [one.cursor for one in lost[:2]] == [None, None]


async def test_another_error_of_a_snapshot_is_raised(bus: Bus) -> None:
    table = Table(KeyError("orders"), 100)
    bus.answers = [bus.stream(HELLO, block(101))]
    async with follow(bus, snapshot=table) as events:
        with pytest.raises(KeyError, match="orders"):
            await anext(events)
        assert (await anext(events)).id == "100", "the iteration can continue"


async def test_close_ends_a_snapshot(bus: Bus) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def never() -> tuple[None, str]:
        begun.set()
        try:
            await bus.over.wait()
        finally:
            ended.set()
        return None, "1"

    events = follow(bus, snapshot=never)
    consumer = asyncio.create_task(anext(events, None))
    await begun.wait()
    await events.close()
    assert await consumer is None
    assert ended.is_set()
    assert bus.requests == []


def test_a_snapshot_has_a_position_of_its_own() -> None:
    with pytest.raises(ValueError, match="snapshot"):
        subscribe("http://127.0.0.1:1", ["orders"], cursor=7, snapshot=Table(1))
