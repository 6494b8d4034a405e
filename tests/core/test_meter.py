"""What the meter counts."""

from __future__ import annotations

import tracemalloc

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import POSTGRES_EPOCH_S, Event
from sse_pg.core.meter import DELAY_BOUNDS_S, HISTORY_S, MAX_CHANNELS, RATE_WINDOW_S, Meter


def batch(*events: tuple[str, float]) -> list[tuple[Event, Cursor]]:
    """Events of (channel, Unix time of creation), ids from 1."""
    return [
        (Event(number, channel, "T", "{}", round((at - POSTGRES_EPOCH_S) * 1_000_000)), Cursor(number))
        for number, (channel, at) in enumerate(events, 1)
    ]


def test_totals_grow_and_seconds_are_apart() -> None:
    meter = Meter()
    meter.batch(batch(("a", 1000.0), ("a", 1000.25), ("b", 1000.5)), 7, 1000.5)
    meter.batch(batch(("b", 1001.0)), 0, 1001.004)
    assert (meter.events, meter.deliveries, sum(meter.delays)) == (4, 7, 4)
    assert round(meter.delay_sum, 5) == 0.5 + 0.25 + 0 + 0.004
    assert [(s.at, s.events, s.deliveries) for s in meter.recent] == [(1000, 3, 7), (1001, 1, 0)]


def test_a_delay_lies_in_its_bucket() -> None:
    meter = Meter()
    meter.batch(batch(*[("a", 0.0)] * 99), 0, 0.004)
    meter.batch(batch(("a", 0.0)), 0, 0.9)
    (second,) = meter.recent
    p50, p999 = second.delay(0.5), second.delay(0.999)
    assert p50 is not None
    assert 0.0025 < p50 <= 0.005
    assert p999 is not None
    assert 0.5 < p999 <= 1.0
    meter.batch(batch(("a", 0.0)), 0, 1000.0)
    assert meter.recent[-1].delay(0.5) == DELAY_BOUNDS_S[-1]


def test_a_clock_that_is_behind_makes_no_negative_delay() -> None:
    meter = Meter()
    meter.batch(batch(("a", 5.0)), 0, 4.0)
    assert meter.delay_sum == 0
    assert meter.delays[0] == 1


def test_rates_rise_and_fall() -> None:
    meter = Meter()
    for second in range(100):
        meter.batch(batch(*[("a", float(second))] * 20), 0, float(second))
    channel = meter.channels["a"]
    assert 19 < channel.rate(99.5) < 22
    assert channel.rate(99 + 10 * RATE_WINDOW_S) < 0.01
    assert (channel.events, channel.last.id) == (2000, 20)


def test_memory_is_bounded() -> None:
    meter = Meter()
    for number in range(MAX_CHANNELS + 10):
        meter.batch(batch((f"c{number}", 0.0)), 0, float(number))
    assert len(meter.channels) == MAX_CHANNELS
    assert next(iter(meter.channels)) == "c10"
    assert len(meter.recent) == HISTORY_S


def test_a_channel_does_not_keep_the_payload_of_its_last_event() -> None:
    meter = Meter()
    tracemalloc.start()
    try:
        for number in range(20):
            meter.batch([(Event(number, f"c{number}", "T", "x" * 100_000, 0), Cursor(number))], 1, 0.0)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
    assert meter.channels["c7"].last == (7, "T", 0)
