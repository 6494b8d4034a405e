"""The hub and its streams over a transport that keeps what is written; two servers on one log in random schedules."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from support.log_model import EPOCH, FOREVER, ORDER_WAIT_S, SUPPRESSED_CHECKS, Log
from support.streams import Block, parse_block
from support.waiting import eventually

from sse_pg.core import wire
from sse_pg.core.cursor import START, Cursor
from sse_pg.core.envelope import WHOLE, CloudEvent, Envelope
from sse_pg.core.epoch import Epoch
from sse_pg.core.event import Event, Unfollowed
from sse_pg.core.followed import FORGET_PAUSE_S, LINGER_S, passes
from sse_pg.core.framing import Framing
from sse_pg.core.frontier import Frontier
from sse_pg.core.ranges import Ranges
from sse_pg.core.ring import Entry, Ring
from sse_pg.db.store import Page, Store
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.fan_out import FanOut
from sse_pg.delivery.heartbeat import Heartbeat
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.replay import Replay
from sse_pg.delivery.stream import Stream

LIMIT = 1000
ENVELOPES: list[Envelope | None] = [None, WHOLE, CloudEvent("urn:x")]


@dataclass(eq=False)
class Wire:
    """The transport of a stream; it keeps what is written."""

    writes: list[bytes] = field(default_factory=list)
    unread: int = 0
    closing: bool = False
    aborted: bool = False

    def write(self, data: bytes) -> None:
        assert not self.closing, "written to after the end"
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def blocks(self) -> list[Block]:
        text = b"".join(self.writes).decode()
        assert text == "" or text.endswith("\n\n")
        return [parse_block(part) for part in text.split("\n\n")[:-1]]

    def ids(self) -> list[str | None]:
        return [block.id for block in self.blocks()]


def opened(
    hub: Hub, *channels: str, at: Cursor = START, envelope: Envelope | None = None, framing: Framing = Framing.PLAIN
) -> tuple[Stream, Wire]:
    transport = Wire()
    stream = Stream(
        cast("asyncio.Transport", transport),
        hub.leave,
        channels=frozenset(channels),
        cursor=at,
        envelope=envelope,
        framing=framing,
        buffer_limit=LIMIT,
        now=0.0,
    )
    stream.log = hub.log
    hub.add(stream)
    return stream, transport


def live(hub: Hub, *channels: str, **options: Any) -> tuple[Stream, Wire]:
    stream, transport = opened(hub, *channels, at=hub.position, **options)
    assert hub.join(stream) == "joined"
    return stream, transport


def event(number: int, channel: str = "a", payload: str = "{}") -> Event:
    return Event(number, channel, "t", payload, EPOCH)


def deliver(hub: Hub, *events: Event) -> None:
    hub.deliver([(one, Cursor(one.id)) for one in events], Cursor(events[-1].id))


def sweep(hub: Hub) -> None:
    for _ in hub.sweeper.slices():
        pass


@pytest.fixture
def hub() -> Hub:
    made = Hub(100, 10**6)
    made.begin(Cursor(10))
    return made


# ------------------------------------------------------------------ live


async def test_one_write_for_a_batch(hub: Hub) -> None:
    _, one = live(hub, "a", "b")
    _, other = live(hub, "b", "a")
    _, only_b = live(hub, "b")
    _, none = live(hub, "c")
    deliver(hub, event(11), event(12, "b"), event(13))
    expected = b"".join(wire.frame(event(n, c), Cursor(n)) for n, c in [(11, "a"), (12, "b"), (13, "a")])
    assert one.writes == other.writes == [expected]
    assert only_b.writes == [wire.frame(event(12, "b"), Cursor(12))]
    assert none.writes == []
    deliver(hub, event(14))
    assert len(one.writes) == 2
    assert one.ids() == ["11", "12", "13", "14"]


@pytest.mark.parametrize("max_direct", [0, 100], ids=["swept", "at once"])
async def test_what_was_delivered_is_no_circle(max_direct: int) -> None:
    """It would wait for the garbage collector, which may be long: of a large transaction, hundreds of megabytes."""
    hub = Hub(0, 0)
    hub.begin(Cursor(10))
    hub.fan_out.max_direct = max_direct
    for channels in ("a", "b", "ab", "abc"):
        live(hub, *channels)
        live(hub, *channels, framing=Framing.CHUNKED)
    gc.collect()
    gc.disable()
    try:
        for number in (11, 13, 15):
            deliver(hub, event(number), event(number + 1, "b"))
            sweep(hub)
        deliver(hub, event(17))
        deliver(hub, event(18, "b"))
        sweep(hub)
        assert gc.collect() == 0
    finally:
        gc.enable()


async def test_chunked_and_envelope(hub: Hub) -> None:
    _, chunked = live(hub, "a", framing=Framing.CHUNKED)
    _, envelope = live(hub, "a", envelope=WHOLE)
    _, both = live(hub, "a", envelope=WHOLE, framing=Framing.CHUNKED)
    deliver(hub, event(11), event(12))
    plain = wire.frame(event(11), Cursor(11)) + wire.frame(event(12), Cursor(12))
    assert chunked.writes == [Framing.CHUNKED.batch(plain)]
    wrapped = b"".join(wire.frame(event(n), Cursor(n), envelope=WHOLE) for n in (11, 12))
    assert envelope.writes == [wrapped]
    assert both.writes == [Framing.CHUNKED.batch(wrapped)]
    assert [json.loads(block.data)["channel"] for block in envelope.blocks()] == ["a", "a"]


async def test_a_quiet_batch_moves_the_position_and_writes_nothing(hub: Hub) -> None:
    stream, transport = live(hub, "a")
    hub.deliver([], Cursor(20))
    assert hub.position == Cursor(20)
    assert transport.writes == []
    assert stream.mark.position == Cursor(10)
    deliver(hub, event(21))
    assert stream.mark.position == Cursor(21)


async def test_a_slow_client_is_cut_off_and_the_others_are_not(hub: Hub) -> None:
    slow, transport = live(hub, "a")
    fine, other = live(hub, "a")
    transport.unread = LIMIT
    slow.pause_writing()
    deliver(hub, event(11))
    assert slow.reason is None
    transport.unread = LIMIT + 1
    deliver(hub, event(12))
    assert slow.reason is EndReason.SLOW
    assert transport.ids() == ["11"]
    deliver(hub, event(13))
    assert other.ids() == ["11", "12", "13"]
    assert fine.reason is None
    await asyncio.sleep(0)
    assert transport.aborted
    assert slow not in hub.streams
    deliver(hub, event(14))
    assert other.ids()[-1] == "14"


async def test_an_ended_stream_is_left_alone(hub: Hub) -> None:
    stream, transport = live(hub, "a")
    stream.connection_lost(None)
    deliver(hub, event(11))
    assert transport.writes == []
    assert stream.reason is EndReason.CLIENT
    await asyncio.sleep(0)
    assert stream not in hub.streams


async def test_an_answer_ends_in_order_unless_the_stream_failed(hub: Hub) -> None:
    (whole, one), (plain, two), (failed, three) = (
        live(hub, "a", framing=Framing.CHUNKED),
        live(hub, "a"),
        live(hub, "a"),
    )
    whole.end(EndReason.DRAIN)
    whole.end("later")
    plain.end(EndReason.DRAIN)
    failed.end(EndReason.ERROR)
    assert not one.closing, "whoever ends it may be going through the streams"
    await asyncio.sleep(0)
    assert one.writes == [b"0\r\n\r\n"]
    assert one.closing
    assert not one.aborted
    assert two.writes == []
    assert two.closing
    assert three.aborted
    assert whole.reason is EndReason.DRAIN
    assert not hub.streams


async def test_who_left_gets_nothing(hub: Hub) -> None:
    stream, transport = live(hub, "a")
    _, stays = live(hub, "a")
    hub.leave(stream)
    deliver(hub, event(11))
    assert transport.writes == []
    assert stays.ids() == ["11"]
    assert stream not in hub.streams


async def test_nothing_is_kept_of_streams_that_left(hub: Hub) -> None:
    streams = [live(hub, "a", f"c{number}", envelope=ENVELOPES[number % 3])[0] for number in range(6)]
    waiting, _ = opened(hub, "a")
    for stream in [*streams, waiting]:
        hub.leave(stream)
    assert not hub.streams
    assert not hub.fan_out._groups
    assert not hub.fan_out._by_channel


async def test_changed_channels(hub: Hub) -> None:
    stream, transport = live(hub, "a")
    _, other = live(hub, "a")
    hub.change_channels(stream, frozenset({"b", "c"}))
    deliver(hub, event(11), event(12, "b"))
    assert transport.ids() == ["12"]
    assert other.ids() == ["11"]
    hub.change_channels(stream, frozenset())
    deliver(hub, event(13, "b"), event(14))
    assert transport.ids() == ["12"]
    hub.change_channels(stream, frozenset({"a"}))
    deliver(hub, event(15))
    assert transport.ids() == ["12", "15"]


async def test_channels_change_while_it_catches_up(hub: Hub) -> None:
    stream, transport = opened(hub, "a", at=Cursor(10))
    deliver(hub, event(11), event(12, "b"))
    hub.change_channels(stream, frozenset({"b"}))
    assert hub.join(stream) == "joined"
    deliver(hub, event(13), event(14, "b"))
    assert transport.ids() == ["12", "14"]


# ------------------------------------------------------------------ joining


async def test_joined_from_the_ring(hub: Hub) -> None:
    deliver(hub, event(11), event(12, "b"), event(13))
    stream, transport = opened(hub, "a", at=Cursor(11))
    assert hub.join(stream) == "joined"
    assert stream.live
    assert stream.mark.position == hub.position
    assert transport.writes == [wire.frame(event(13), Cursor(13))]
    deliver(hub, event(14))
    assert transport.ids() == ["13", "14"]


async def test_the_same_catch_up_is_made_once_until_the_position_moves(hub: Hub) -> None:
    deliver(hub, event(11), event(12))
    several = [opened(hub, "a", at=Cursor(10)) for _ in range(3)]
    for stream, _ in several:
        assert hub.join(stream) == "joined"
    first = several[0][1].writes[0]
    assert all(transport.writes[0] is first for _, transport in several)
    deliver(hub, event(13))
    late, transport = opened(hub, "a", at=Cursor(10))
    assert hub.join(late) == "joined"
    assert transport.ids() == ["11", "12", "13"]
    chunked, framed = opened(hub, "a", at=Cursor(10), framing=Framing.CHUNKED)
    assert hub.join(chunked) == "joined"
    assert framed.writes == [Framing.CHUNKED.batch(transport.writes[0])]


async def test_behind_the_ring() -> None:
    hub = Hub(2, 10**6)
    hub.begin(START)
    deliver(hub, event(1), event(2), event(3))
    stream, transport = opened(hub, "a", at=START)
    assert hub.join(stream) == "behind"
    assert not stream.live
    assert transport.writes == []
    stream.cursor = Cursor(1)
    assert hub.join(stream) == "joined"
    assert transport.ids() == ["2", "3"]


async def test_behind_where_this_server_began(hub: Hub) -> None:
    stream, _ = opened(hub, "a", at=Cursor(9))
    assert hub.join(stream) == "behind"


async def test_ahead_of_this_server(hub: Hub) -> None:
    stream, transport = opened(hub, "a", at=Cursor(12))
    assert hub.join(stream) == "ahead"
    assert not stream.live
    deliver(hub, event(11))
    assert hub.join(stream) == "ahead"
    deliver(hub, event(12))
    assert hub.join(stream) == "joined"
    assert transport.writes == []
    deliver(hub, event(13))
    assert transport.ids() == ["13"]


async def test_ahead_in_a_gap(hub: Hub) -> None:
    """The client was offered 11 by another server; here it is still missing."""
    hub.deliver([(event(12), Cursor(12, Ranges([(11, 11)])))], Cursor(12, Ranges([(11, 11)])))
    stream, transport = opened(hub, "a", at=Cursor(11))
    assert hub.join(stream) == "ahead"
    hub.deliver([(event(11), Cursor(12))], Cursor(12))
    assert hub.join(stream) == "joined"
    assert transport.ids() == ["12"], "and not the id with the gap, at which 11 would come again"


async def test_a_batch_that_is_too_large_for_one_write_is_read_from_the_ring(hub: Hub) -> None:
    hub.fan_out.max_write = 300
    behind: list[Stream] = []
    hub.bring_up = behind.append
    stream, transport = live(hub, "a")
    other, quiet = live(hub, "b")
    deliver(hub, *[event(number, payload='"' + "x" * 90 + '"') for number in range(11, 17)])
    sweep(hub)
    assert behind == [stream]
    assert (stream.live, stream.cursor, transport.writes) == (False, Cursor(10), [])
    assert (other.live, quiet.writes) == (True, [])
    deliver(hub, event(17), event(18, "b"))
    assert transport.writes == [], "it is read from the ring, with what came before"
    steps = []
    while not stream.live:
        steps.append(hub.join(stream))
    assert steps == ["more", "more", "joined"]
    assert max(map(len, transport.writes)) <= 300
    deliver(hub, event(19))
    assert transport.ids() == [str(number) for number in (*range(11, 18), 19)]
    assert quiet.ids() == ["18"]
    assert stream.replayed == 7


async def test_an_event_larger_than_a_write_goes_out_live(hub: Hub) -> None:
    hub.fan_out.max_write = 100
    hub.bring_up = pytest.fail  # type: ignore[assignment]
    stream, transport = live(hub, "a")
    deliver(hub, event(11, payload='"' + "x" * 500 + '"'))
    assert stream.live
    assert transport.ids() == ["11"]


# ------------------------------------------------------------------ events whose payload was not read


def passed(number: int, channel: str = "a") -> tuple[Unfollowed, Cursor]:
    return Unfollowed(number, channel, "t", EPOCH), Cursor(number)


async def test_a_live_stream_leaves_before_an_event_without_its_payload(hub: Hub) -> None:
    """It joined, or got the channel, while a read was under way that had begun before."""
    behind: list[Stream] = []
    hub.bring_up = behind.append
    stream, transport = live(hub, "a", "c")
    other, quiet = live(hub, "b")
    hub.deliver([(event(11), Cursor(11)), passed(12), (event(13, "b"), Cursor(13))], Cursor(13))
    assert behind == [stream]
    assert (stream.live, stream.cursor, transport.writes) == (False, Cursor(10), [])
    assert (other.live, quiet.ids()) == (True, ["13"])
    assert hub.join(stream) == "behind"
    stream.cursor = Cursor(12)
    assert hub.join(stream) == "joined"
    assert hub.meter.events == 3


async def test_what_a_sweep_owes_a_stream_comes_from_the_table_too(hub: Hub, slices: Iterator[float]) -> None:
    hub.bring_up = lambda _: None
    crowd = [live(hub, "a") for _ in range(3)]
    deliver(hub, event(11))
    next(slices)
    next(slices)
    hub.deliver([passed(12)], Cursor(12))
    assert sorted(str(stream.cursor) for stream, _ in crowd) == ["10", "10", "11"]


async def test_a_delivery_that_fails_leaves_no_stream_behind(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    behind: list[Stream] = []
    hub.bring_up = behind.append
    stream, _ = live(hub, "a")
    live(hub, "b")
    monkeypatch.setattr(Entry, "frame", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.deliver([passed(11), (event(12, "b"), Cursor(12))], Cursor(12))
    hub.abandon(Cursor(12))
    assert behind == [stream]
    assert (stream.reason, hub.join(stream)) == (None, "behind")


async def test_the_hub_knows_who_follows_what(hub: Hub) -> None:
    followed = hub.followed
    (one, _), (two, _), (three, _) = live(hub, "a", "b"), opened(hub, "a", "b"), live(hub, "b")
    hub.change_channels(three, frozenset("c"))
    hub.leave(one)
    hub.leave(one)
    late = time.monotonic() + LINGER_S + FORGET_PAUSE_S
    followed.filter(late)
    assert [channel in followed for channel in "abc"] == [True, True, True]
    hub.leave(two)
    not_open = opened(hub, "x")[0]
    hub.leave(not_open)
    hub.change_channels(not_open, frozenset("y"))
    followed.filter(late + LINGER_S + 2 * FORGET_PAUSE_S)
    assert [channel in followed for channel in "abcxy"] == [False, False, True, False, False]


# ------------------------------------------------------------------ sweeps


@pytest.fixture
def slices(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """A sweep of this hub that pauses before each stream but the first."""
    monkeypatch.setattr("sse_pg.delivery.fan_out.SLICE_S", 0.0)
    monkeypatch.setattr("sse_pg.delivery.fan_out.STREAMS_PER_CLOCK_READ", 1)
    hub.fan_out.max_direct = 0
    return hub.sweeper.slices()


async def test_a_sweep_joins_the_batches_that_come_meanwhile(hub: Hub, slices: Iterator[float]) -> None:
    crowd = [live(hub, "a") for _ in range(4)]
    deliver(hub, event(11))
    next(slices)
    assert not any(wire.writes for _, wire in crowd), "it pauses before each stream"
    next(slices)
    assert sorted(len(wire.writes) for _, wire in crowd) == [0, 0, 0, 1]
    deliver(hub, event(12))
    deliver(hub, event(13))
    for _ in slices:
        pass
    writes = sorted([block.id for block in wire.blocks()] for _, wire in crowd)
    assert writes == [["11", "12", "13"]] * 4
    assert sorted(len(wire.writes) for _, wire in crowd) == [1, 1, 1, 2], "one write for all that a stream lacks"
    assert not hub.fan_out._pending, "no stream needs them any more"
    assert hub.meter.events == 3
    assert hub.meter.deliveries == 12


async def test_an_event_that_is_erased_during_a_sweep(hub: Hub, slices: Iterator[float]) -> None:
    """Streams that have not been reached get the rest from the ring."""
    behind: list[Stream] = []
    hub.bring_up = behind.append
    wires = [live(hub, "a")[1] for _ in range(4)]
    deliver(hub, event(11), event(12, payload='"secret"'), event(13))
    next(slices)
    next(slices)
    hub.erase({12})
    for _ in slices:
        pass
    assert len(behind) == 3
    for stream in behind:
        assert hub.join(stream) == "joined"
    assert sorted(transport.ids() for transport in wires) == [
        ["11", "12", "13"],
        ["11", "13"],
        ["11", "13"],
        ["11", "13"],
    ]
    deliver(hub, event(14))
    sweep(hub)
    assert {transport.ids()[-1] for transport in wires} == {"14"}


async def test_who_comes_and_goes_during_a_sweep(hub: Hub, slices: Iterator[float]) -> None:
    crowd = [live(hub, "a") for _ in range(3)]
    deliver(hub, event(11))
    next(slices)
    next(slices)
    new, joined = opened(hub, "a", at=Cursor(10))
    assert hub.join(new) == "joined"
    assert joined.ids() == ["11"], "out of the ring"
    gone, silent = next((stream, wire) for stream, wire in crowd if not wire.writes)
    hub.leave(gone)
    assert gone.events == 0
    for _ in slices:
        pass
    assert joined.ids() == ["11"]
    assert silent.writes == []
    assert sum(len(wire.writes) for _, wire in crowd) == 2
    assert [stream.events for stream, _ in crowd if stream is not gone] == [1, 1]
    hub.leave(new)
    assert (new.events, new.replayed) == (0, 1)


async def test_a_stream_that_a_sweep_has_not_reached_is_given_no_later_position(
    hub: Hub, slices: Iterator[float]
) -> None:
    heartbeat = Heartbeat(hub, 10**6, 0.0)
    stream, transport = live(hub, "a")
    deliver(hub, event(11))
    hub.deliver([], Cursor(20))
    heartbeat._check(stream, 1.0)
    assert transport.writes == []
    for _ in slices:
        pass
    assert stream.mark.position == Cursor(11)
    heartbeat._check(stream, time.monotonic() + 1.0)
    assert transport.ids() == ["11", "20"]


async def test_other_channels_begin_after_what_a_sweep_still_owes(hub: Hub, slices: Iterator[float]) -> None:
    stream, transport = live(hub, "a")
    deliver(hub, event(11), event(12, "b"))
    hub.change_channels(stream, frozenset("b"))
    assert transport.ids() == ["11"]
    deliver(hub, event(13), event(14, "b"))
    for _ in slices:
        pass
    assert transport.ids() == ["11", "14"]


async def test_a_new_log_begins_after_what_a_sweep_still_owes(hub: Hub, slices: Iterator[float]) -> None:
    stream, transport = live(hub, "a")
    stream.greeted = True
    deliver(hub, event(11))
    hub.restart(Cursor(5))
    deliver(hub, event(6))
    held, other = live(hub, "a")
    Heartbeat(hub, 10**6, 0.0)._check(stream, time.monotonic() + 1.0)
    for _ in slices:
        pass
    assert transport.ids() == ["11", "5", "6"]
    assert transport.blocks()[1].json() == {"reason": "unknown", "after": "11", "before": "5"}
    assert other.writes == [], "it began in the new log"
    assert hub.gap_notices["unknown"] == 1
    hub.restart(Cursor(3))
    hub.restart(Cursor(2))
    hub.suspend(held)
    assert hub.join(held) == "joined"
    sweep(hub)
    assert [block.json()["after"] for block in other.blocks()] == ["6"], "one gap event for two logs"
    assert (other.ids(), transport.ids()) == (["2"], ["11", "5", "6", "3", "2"])


async def test_what_was_purged_comes_after_what_a_sweep_still_owes(hub: Hub, slices: Iterator[float]) -> None:
    _, transport = live(hub, "a")
    held, silent = live(hub, "a")
    deliver(hub, event(11))
    hub.expire(Cursor(20))
    hub.suspend(held)
    assert (held.cursor, hub.join(held)) == (Cursor(10), "behind"), "the table says what was purged"
    for _ in slices:
        pass
    assert transport.ids() == ["11", "20"]
    assert transport.blocks()[1].json() == {"reason": "expired", "after": "11", "before": "20"}
    assert silent.writes == []
    assert hub.gap_notices["expired"] == 1


async def test_many_groups_are_swept_and_each_gets_its_own(hub: Hub, slices: Iterator[float]) -> None:
    crowd = [live(hub, "a", f"own{number}", envelope=WHOLE if number == 3 else None) for number in range(4)]
    deliver(hub, event(11))
    deliver(hub, event(12, "own2"), event(13), event(14, "own2"))
    late, new = live(hub, "own2")
    next(slices)
    next(slices)
    hub.change_channels(crowd[0][0], frozenset(["own2"]))
    for stream, _ in crowd[1:]:
        assert hub.lacks(stream) == (not stream.transport.writes)  # type: ignore[attr-defined]
    deliver(hub, event(15, "own2"))
    for _ in slices:
        pass
    got = [wire.ids() for _, wire in crowd]
    assert got == [["11", "13", "15"], ["11", "13"], ["11", "12", "13", "14", "15"], ["11", "13"]]
    assert new.ids() == ["15"]
    assert not hub.fan_out._pending
    assert [stream.mark.position for stream, _ in crowd] == [Cursor(15), Cursor(14), Cursor(15), Cursor(14)]
    assert hub.meter.deliveries == 13
    for stream, _ in [*crowd, (late, new)]:
        hub.leave(stream)
    assert [stream.events for stream, _ in crowd] == [3, 2, 5, 2]
    assert late.events == 1


async def test_a_long_sweep_is_followed_by_a_pause(
    hub: Hub, slices: Iterator[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_pg.delivery.fan_out.MIN_SWEEP_S", 0.0)
    crowd = [live(hub, "a") for _ in range(2)]
    deliver(hub, event(11))
    pauses = [next(slices) for _ in range(3)]
    assert pauses[:2] == [0.0, 0.0]
    assert pauses[2] > 0.0
    deliver(hub, event(12))
    deliver(hub, event(13))
    for _ in slices:
        pass
    assert [wire.ids() for _, wire in crowd] == [["11", "12", "13"]] * 2
    assert [len(wire.writes) for _, wire in crowd] == [2, 2]


async def test_the_bytes_of_all_streams_are_counted_as_they_are_sent(hub: Hub, slices: Iterator[float]) -> None:
    crowd = [live(hub, "a", framing=Framing.CHUNKED if number == 1 else Framing.PLAIN) for number in range(3)]
    deliver(hub, event(11))
    for _ in slices:
        pass
    gone, _ = crowd[0]
    gone.write(b":\n", 0.0)
    hub.leave(gone)
    hub.fan_out.max_direct = 10
    deliver(hub, event(12))
    sent = [sum(map(len, wire.writes)) for _, wire in crowd]
    assert [stream.sent_bytes for stream, _ in crowd] == sent
    assert hub.ledger.sent_bytes == sum(sent)


async def test_many_streams_end_in_slices(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse_pg.delivery.ledger.SLICE_S", 0.0)
    crowd = [live(hub, "a") for _ in range(5)]
    for stream, _ in crowd:
        stream.end(EndReason.DRAIN)
    for ended in range(1, 6):
        await asyncio.sleep(0)
        assert len(hub.streams) == 5 - ended
    late, _ = live(hub, "a")
    late.end(EndReason.DRAIN)
    await asyncio.sleep(0)
    assert not hub.streams


async def test_more_than_should_be_buffered_at_once(hub: Hub) -> None:
    hub.fan_out.max_write = 100
    deliver(hub, *[event(number, payload='"' + "x" * 90 + '"') for number in range(11, 15)])
    stream, transport = opened(hub, "a", at=Cursor(10))
    steps = []
    while not stream.live:
        steps.append(hub.join(stream))
        assert len(transport.ids()) == len(steps)
    assert steps == ["more", "more", "more", "joined"]
    assert transport.ids() == ["11", "12", "13", "14"]


async def test_ids_on_the_way_resume_where_they_say(hub: Hub) -> None:
    """A client comes from a server that had read further: each id that it gets here covers what it had there."""
    gap = Ranges([(11, 11)])
    hub.deliver([(event(12), Cursor(12, gap)), (event(13), Cursor(13, gap))], Cursor(13, gap))
    hub.deliver([(event(11), Cursor(13)), (event(14), Cursor(14))], Cursor(14))
    stream, transport = opened(hub, "a", at=Cursor(11))
    assert hub.join(stream) == "joined"
    assert transport.ids() == ["12", "13", "14"]
    other, plain = opened(hub, "a", at=Cursor(10))
    assert hub.join(other) == "joined"
    assert plain.ids() == ["12~1", "13~2", "13", "14"]


# ------------------------------------------------------------------ a new log


async def test_restart_tells_every_stream(hub: Hub) -> None:
    deliver(hub, event(11))
    stream, transport = live(hub, "a")
    waiting, second = opened(hub, "a", at=Cursor(99))
    _, silent = opened(hub, "a")
    stream.greeted = waiting.greeted = True
    assert hub.join(waiting) == "ahead"
    hub.restart(Cursor(5))
    assert second.writes == []
    assert hub.join(waiting) == "joined"
    assert silent.writes == []  # its hello will follow, and say where it begins
    for written in (transport, second):
        (block,) = written.blocks()
        assert (block.event, block.id) == ("sse-pg.gap", "5")
        assert block.json() == {"reason": "unknown", "after": "11", "before": "5"}
    assert stream.mark.position == Cursor(5)
    deliver(hub, event(6))
    assert transport.ids() == second.ids() == ["5", "6"]


async def test_a_purge_is_told_to_live_streams_and_hidden_by_no_ring(hub: Hub) -> None:
    deliver(hub, event(11), event(12))
    _, live_one = live(hub, "a")
    behind, catching_up = opened(hub, "a", at=Cursor(11))
    behind.greeted = True
    hub.expire(Cursor(20))
    (block,) = live_one.blocks()
    assert (block.event, block.id) == ("sse-pg.gap", "20")
    assert block.json() == {"reason": "expired", "after": "12", "before": "20"}
    assert catching_up.writes == []
    assert behind.cursor == Cursor(11)
    deliver(hub, event(21))
    assert hub.join(behind) == "behind"  # the table says what was purged
    assert live_one.ids() == ["20", "21"]


async def test_nothing_of_the_old_log_is_served(hub: Hub) -> None:
    deliver(hub, event(11), event(12))
    known, _ = opened(hub, "a", at=Cursor(11))
    assert hub.join(known) == "joined"
    hub.restart(Cursor(11))
    stream, transport = opened(hub, "a", at=Cursor(11))
    assert hub.join(stream) == "joined"
    assert transport.writes == []


async def test_a_log_that_lost_something_is_announced_to_streams_that_were_given_it(hub: Hub) -> None:
    deliver(hub, event(11), event(12), event(13))
    _, alive = live(hub, "a")
    behind, catching_up = opened(hub, "a", at=Cursor(11))
    given, told = opened(hub, "a", at=Cursor(12))
    behind.greeted = given.greeted = True
    hub.go_back(Cursor.parse("13~1"))
    deliver(hub, event(21))
    assert alive.ids() == ["13~1", "21"]
    assert alive.blocks()[0].json() == {"reason": "unknown", "after": "13", "before": "13~1"}
    assert hub.join(behind) == "behind"
    assert (behind.cursor, catching_up.writes) == (Cursor(11), []), "it was not given what is lost, and lacks nothing"
    assert hub.join(given) == "behind"
    assert (given.cursor, told.ids()) == (Cursor(11), ["11"])
    assert told.blocks()[0].json() == {"reason": "unknown", "after": "12", "before": "11"}
    assert hub.gap_notices["unknown"] == 2
    hub.go_back(Cursor(13))
    hub.restart(Cursor(5))
    assert hub.join(behind) == "joined"
    assert catching_up.blocks()[0].json() == {"reason": "unknown", "after": "11", "before": "5"}


@pytest.mark.parametrize(
    ("asked", "certain"),
    [
        ("10~4", "10~4"),
        ("10", "10~4"),
        ("15", "10~4"),
        ("15~2,4", "10~2,1"),
        ("15~5", "9~3"),
        ("5", "5"),
        ("6", "5"),
        ("20", "20"),
        ("25~1", "25~1"),
    ],
)
def test_a_cursor_of_a_log_that_was_lost_is_certain_up_to_what_was_settled(hub: Hub, asked: str, certain: str) -> None:
    hub.epochs = [Epoch(Cursor.parse("10~4"), 20)]
    assert str(hub.last_certain(Cursor.parse(asked))) == certain


async def test_who_does_not_read_the_end_is_cut_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse_pg.delivery.stream.END_TIMEOUT_S", 0.01)
    (reads, one), (deaf, two) = live(hub, "a"), live(hub, "a")
    two.unread = 1
    reads.end(EndReason.DRAIN)
    deaf.end(EndReason.DRAIN)
    await eventually(lambda: two.aborted)
    assert not one.aborted


async def test_drained_waits_for_the_client(hub: Hub) -> None:
    stream, transport = opened(hub, "a")
    await stream.drained()  # nothing to wait for
    stream.pause_writing()
    waiting = asyncio.ensure_future(stream.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    stream.resume_writing()
    await asyncio.wait_for(waiting, 10)
    stream.pause_writing()
    stream.task = asyncio.ensure_future(stream.drained())
    waiting = stream.task
    await asyncio.sleep(0)
    stream.end(EndReason.CLIENT)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 10)
    assert not transport.aborted


# ------------------------------------------------------------------ two servers, one log


class Table(Store):
    """The part of a store that a replay uses; its pages come from a log in memory."""

    def __init__(self, log: Log) -> None:
        self.log = log

    async def page(self, channels: Sequence[str], wanted: Ranges, limit: int, **_: object) -> Page:
        ids = [n for n in sorted(self.log.committed) if n in wanted and self.log.channel_of[n] in channels]
        events = [self.log.committed[number] for number in ids[:limit]]
        return Page(events, 0, len(events) == limit)

    async def last_id(self) -> int:
        return self.log.last


class Reader:
    """One server: its frontier, its hub, and the clock of both."""

    def __init__(self, log: Log, clock: Callable[[float], float], ring: int) -> None:
        self.log = log
        self.clock = clock
        start = log.start()
        self.frontier = Frontier(start, ORDER_WAIT_S)
        self.hub = Hub(ring, 10**9, 60)
        self.hub.begin(start)
        self.behind: list[Stream] = []
        self.hub.bring_up = self.behind.append
        self.filter_time = time.monotonic()
        self.followed = self.hub.followed.filter(self.filter_time)
        self.hub.fan_out.max_direct = 1
        self.sweep = iter(())
        self.replay = Replay(self.hub, cast("Any", Table(log)), cast("Any", self), 3)

    def read(self, limit: int = FOREVER, *, is_late: bool = False, forgets: bool = True) -> None:
        """Read. ``is_late``: the read began, with its filter, before what has happened since the one before it."""
        last, alive = self.log.last, self.log.alive()
        rows = self.log.rows(self.frontier.open, self.frontier.seen, limit)
        if forgets:
            self.filter_time += LINGER_S + FORGET_PAUSE_S
        followed = self.hub.followed.filter(self.filter_time)
        if is_late:
            followed, self.followed = self.followed, followed
        else:
            self.followed = followed
        now = self.clock(0)
        self.frontier.feed(
            [
                row
                if followed is None or passes(followed, row.channel)
                else Unfollowed(row.id, row.channel, row.event_type, row.created_at)
                for row in rows
            ],
            now,
        )
        if len(rows) < limit:
            self.frontier.settle(last, alive)
        self.hub.deliver(self.frontier.release(now), self.frontier.position)

    def advance(self, slices: int) -> None:
        """Go on with the sweep by some slices, or begin one."""
        for _ in range(slices):
            if next(self.sweep, self) is self:
                self.sweep = self.hub.sweeper.slices()

    async def bring_up(self) -> None:
        """Bring up the streams that fell behind at a large batch, unless they have ended since."""
        streams, self.behind[:] = list(self.behind), []
        for stream in streams:
            if stream in self.hub.streams:
                await asyncio.wait_for(self.replay.catch_up(stream), 20)

    async def catch_up(self, _: Cursor) -> None:
        await self.fresh()

    async def fresh(self) -> None:
        self.read()
        while self.frontier.holding:  # as Tail.fresh: until what the read found is handed on
            self.clock(ORDER_WAIT_S)
            self.read()


@dataclass(eq=False)
class Reading:
    """A client: its channels, where it began, what it got, and the id from which it resumes."""

    channels: frozenset[str]
    began: Cursor
    last_id: str
    envelope: Envelope | None
    got: list[int] = field(default_factory=list)
    longest_id: int = 0
    stream: Stream | None = None
    server: Reader | None = None
    transport: Wire = field(default_factory=Wire)


class TwoServers(RuleBasedStateMachine):
    """Clients wander between two servers and lose connections in the middle of what was sent."""

    ring = 3

    @initialize(last=st.sampled_from([0, 2**32 - 3]), before=st.text("cro", max_size=3))
    def start(self, last: int, before: str) -> None:
        self.runner = asyncio.Runner()
        self.now = 0.0
        self.log = Log(last)
        self.log.weave(before, "ab")
        self.servers = [Reader(self.log, self.clock, self.ring) for _ in range(2)]
        self.clients: list[Reading] = []
        self.sound = True

    def clock(self, seconds: float) -> float:
        self.now += seconds
        return self.now

    # ------------------------------------------------------------ the log

    @rule(fates=st.text("cro", min_size=1, max_size=8))
    def weave(self, fates: str) -> None:
        self.log.weave(fates, "ab")

    @rule(count=st.integers(1, 6), channel=st.sampled_from("ab"))
    def publishes(self, count: int, channel: str) -> None:
        self.log.publish(count, channel)

    @rule(which=st.integers(0, 9), commits=st.sampled_from([True, True, False]))
    def ends(self, which: int, commits: bool) -> None:
        if self.log.running:
            tx = self.log.running[which % len(self.log.running)]
            (self.log.commit if commits else self.log.roll_back)(tx)

    @rule()
    def begins(self) -> None:
        """A publisher has read its bound, and takes its lock before or after the next read."""
        self.log.begin()

    @rule(which=st.integers(0, 9))
    def draws(self, which: int) -> None:
        if self.log.running:
            tx = self.log.running[which % len(self.log.running)]
            if not tx.publishing and tx.bound >= 0:
                self.log.lock(tx)
            if tx.publishing:
                self.log.draw(tx, 1, "b")

    # ------------------------------------------------------------ the servers and the clients

    @rule(
        which=st.integers(0, 1),
        seconds=st.sampled_from([0.0, ORDER_WAIT_S / 2, ORDER_WAIT_S]),
        limit=st.sampled_from([FOREVER, FOREVER, 2]),
        is_late=st.booleans(),
        forgets=st.booleans(),
    )
    def reads(self, which: int, seconds: float, limit: int, is_late: bool, forgets: bool) -> None:
        self.sound = False
        self.runner.run(self.servers[which].bring_up())
        self.sound = True
        self.servers[which].read(limit, is_late=is_late, forgets=forgets)
        self.now += seconds

    @rule(who=st.integers(0, 3))
    def is_held(self, who: int) -> None:
        """A stream receives nothing until its server reads again: a right may have been withdrawn."""
        if self.clients:
            client = self.clients[who % len(self.clients)]
            if client.stream is not None and client.server is not None and client.stream.live:
                client.server.hub.suspend(client.stream)
                client.server.behind.append(client.stream)

    @rule(who=st.integers(0, 3))
    def hears_a_heartbeat(self, who: int) -> None:
        """A stream is given a newer position, unless it lacks something."""
        if self.clients:
            client = self.clients[who % len(self.clients)]
            if client.stream is not None and client.server is not None:
                Heartbeat(client.server.hub, 10**9, 0.0)._check(client.stream, time.monotonic() + 1.0)

    @rule(which=st.integers(0, 1), slices=st.integers(1, 5))
    def sweeps(self, which: int, slices: int) -> None:
        self.servers[which].advance(slices)

    @rule(which=st.integers(0, 1), channels=st.sampled_from(["a", "b", "ab"]), envelope=st.sampled_from(ENVELOPES))
    def connects(self, which: int, channels: str, envelope: Envelope | None) -> None:
        if len(self.clients) < 4:
            position = self.servers[which].hub.position
            client = Reading(frozenset(channels), Cursor.parse(position.text), position.text, envelope)
            self.clients.append(client)
            self.connect(client, self.servers[which])

    @rule(who=st.integers(0, 3), keep=st.integers(0, 8), server=st.sampled_from([0, 1, None]))
    def loses_its_connection(self, who: int, keep: int, server: int | None) -> None:
        """Only the first blocks arrived; the client comes back here or there, at once or later."""
        if self.clients:
            client = self.clients[who % len(self.clients)]
            self.take(client, keep)
            if server is not None:
                self.connect(client, self.servers[server])

    @rule(who=st.integers(0, 3))
    def leaves_a_channel_and_comes_back(self, who: int) -> None:
        """It had no other event to get in between; the server may have read one without its payload since."""
        if self.clients:
            client = self.clients[who % len(self.clients)]
            if client.stream is not None and client.server is not None and client.stream.live:
                client.server.hub.change_channels(client.stream, frozenset("c"))
                client.server.hub.change_channels(client.stream, client.channels)

    def connect(self, client: Reading, server: Reader) -> None:
        self.sound = False
        if client.stream is None:
            self.runner.run(self._connect(client, server))
        self.sound = True

    async def _connect(self, client: Reading, server: Reader) -> None:
        client.server = server
        cursor = Cursor.parse(client.last_id)
        stream, client.transport = opened(server.hub, *client.channels, at=cursor, envelope=client.envelope)
        client.stream = stream
        await asyncio.wait_for(server.replay.catch_up(stream), 20)
        assert stream.live

    def take(self, client: Reading, keep: int) -> None:
        """End a connection of which the first ``keep`` blocks arrived."""
        if client.stream is None or client.server is None:
            return
        self.sound = False
        for block in client.transport.blocks()[:keep]:
            assert block.id is not None
            client.last_id = block.id
            if block.event == "sse-pg.position":
                continue
            assert not block.event.startswith("sse-pg."), block
            client.longest_id = max(client.longest_id, len(block.id))
            data = block.json()
            client.got.append(int(data["id"]) if client.envelope else data)
        client.server.hub.leave(client.stream)
        client.stream = None
        self.sound = True

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            if self.sound:
                self.end()
        finally:
            self.runner.close()

    def end(self) -> None:
        self.log.end_all([True, False, True, True] * 50)
        for server in self.servers:
            server.read()
            self.now += ORDER_WAIT_S
            server.read()
            server.advance(10**3)
            assert server.hub.position == Cursor(self.log.last)
        for place, client in enumerate(self.clients):
            self.take(client, 10**6)
            self.connect(client, self.servers[place % 2])
            self.take(client, 10**6)
            due = [n for n in self.log.committed if self.log.channel_of[n] in client.channels]
            expected = Counter(number for number in due if not client.began.offered(number))
            got = Counter(client.got)
            assert set(got) == set(expected), "lost or invented"
            assert got == expected or client.longest_id > 100, "doubled"


SCHEDULES = settings(max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=SUPPRESSED_CHECKS)


def schedules(ring: int, options: settings) -> None:
    run_state_machine_as_test(type("Wandering", (TwoServers,), {"ring": ring}), settings=options)


@pytest.mark.parametrize("ring", [0, 3, 1000])
def test_no_event_is_lost_or_doubled_between_two_servers(ring: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sweep pauses after each stream."""
    monkeypatch.setattr("sse_pg.delivery.fan_out.SLICE_S", 0.0)
    monkeypatch.setattr("sse_pg.delivery.fan_out.STREAMS_PER_CLOCK_READ", 1)
    schedules(ring, SCHEDULES)


# ------------------------------------------------------------------ the schedules have teeth


def made_without_gaps(made: Callable[..., bytes]) -> Callable[..., bytes]:
    return lambda event, cursor, *, envelope=None: made(event, Cursor(cursor.high), envelope=envelope)


def since_by_high(self: Ring, cursor: Cursor, channels: frozenset[str]) -> list[Entry]:
    return [entry for entry in self._all if entry.event.id > cursor.high and entry.event.channel in channels]


@pytest.mark.parametrize(
    ("where", "name", "broken", "complaint"),
    [
        (wire, "frame", made_without_gaps(wire.frame), "lost or invented"),
        (Ring, "since", since_by_high, "lost or invented"),
        (Ring, "pass_over", lambda *_: None, "lost or invented"),
        (FanOut, "streams_of", lambda *_: [], "lost or invented"),
    ],
)
def test_a_broken_hub_is_caught(
    where: object, name: str, broken: object, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(AssertionError, match=complaint):
        schedules(
            1000, settings(SCHEDULES, max_examples=1000, derandomize=True, database=None, phases=[Phase.generate])
        )
