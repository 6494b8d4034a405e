"""The wire form, read by a parser that was written from the standard and uses nothing of the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.event_source import Dispatched, browser

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import WHOLE, CloudEvent, Envelope
from sse_pg.core.event import Event
from sse_pg.core.ranges import Ranges

WHEN = (datetime(2024, 5, 6, 7, 8, 9, 123456) - datetime(2000, 1, 1)) // timedelta(microseconds=1)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1, max_size=40).filter(
    lambda name: name != "sse-pg.end"
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PAYLOADS = st.builds(json.dumps, VALUES, ensure_ascii=st.booleans()).filter(
    lambda text: not any("\ud800" <= char <= "\udfff" for char in text)
)
IDS = st.integers(1, 2**63 - 1)
ENVELOPES: list[Envelope | None] = [None, WHOLE, CloudEvent("urn:x")]


HEADERS = st.none() | st.dictionaries(st.text(max_size=8), VALUES, max_size=4).map(json.dumps)


def event(
    number: int = 7, channel: str = "news", name: str = "message", payload: str = "{}", headers: str | None = None
) -> Event:
    return Event(number, channel, name, payload, WHEN, headers)


@given(IDS, NAMES, NAMES, PAYLOADS)
def test_plain(number: int, channel: str, name: str, payload: str) -> None:
    cursor = Cursor(number)
    ((seen,), retry) = browser(wire.frame(event(number, channel, name, payload), cursor))
    assert seen == Dispatched(name, payload, str(number))
    assert retry is None


@pytest.mark.parametrize("envelope", ENVELOPES)
def test_the_end_of_a_channel_has_its_name_in_every_form(envelope: Envelope | None) -> None:
    ((seen,), _) = browser(wire.frame(event(7, "a", "sse-pg.end", '{"channel": "a"}'), Cursor(7), envelope=envelope))
    assert seen == Dispatched("sse-pg.end", '{"channel": "a"}', "7")


@given(IDS, NAMES, NAMES, PAYLOADS, HEADERS)
def test_envelope(number: int, channel: str, name: str, payload: str, headers: str | None) -> None:
    ((seen,), _) = browser(wire.frame(event(number, channel, name, payload, headers), Cursor(number), envelope=WHOLE))
    assert (seen.type, seen.last_event_id) == ("message", str(number))
    assert json.loads(seen.data) == {
        "id": number,
        "channel": channel,
        "eventType": name,
        "payload": json.loads(payload),
        **({} if headers is None else {"headers": json.loads(headers)}),
        "createdAt": "2024-05-06T07:08:09.123456Z",
    }
    assert payload in seen.data, "the payload goes through as the text it is"
    assert (headers or "") in seen.data


@given(st.lists(st.tuples(IDS, NAMES, PAYLOADS, st.sampled_from(ENVELOPES)), max_size=6))
def test_blocks_follow_each_other(several: list[tuple[int, str, str, Envelope | None]]) -> None:
    stream = b"".join(
        wire.frame(event(number, "c", name, payload), Cursor(number), envelope=envelope)
        for number, name, payload, envelope in several
    )
    seen, _ = browser(stream)
    assert [one.last_event_id for one in seen] == [str(number) for number, *_ in several]


def test_the_contract_to_the_byte() -> None:
    made = wire.frame(event(1042, "c", "SYSTEM_NOTIFICATION", '{"message": "Hello"}'), Cursor(1042))
    assert made == b'id: 1042\nevent: SYSTEM_NOTIFICATION\ndata: {"message": "Hello"}\n\n'


def test_a_cursor_with_gaps_is_the_id() -> None:
    cursor = Cursor(1042, Ranges([(1040, 1040)]))
    ((seen,), _) = browser(wire.frame(event(1042), cursor))
    assert seen.last_event_id == "1042~2"


@pytest.mark.parametrize("envelope", ENVELOPES)
def test_an_event_below_its_cursor_has_its_number(envelope: Envelope | None) -> None:
    made = wire.frame(event(1040), Cursor(1042), envelope=envelope)
    assert made.startswith(b"number: 1040\nid: 1042\n")
    ((seen,), _) = browser(made)
    assert seen.last_event_id == "1042"


def test_a_cursor_that_was_lowered_does_not_pass_for_the_number() -> None:
    high = 10**6
    cursor = Cursor(high, Ranges([(n, n) for n in range(1, high, 9000)]))
    assert cursor.text.partition("~")[0] != str(high)
    assert wire.frame(event(high), cursor).startswith(b"number: 1000000\nid: ")


@given(IDS, st.integers(0, 10**6))
def test_hello(number: int, retry_ms: int) -> None:
    ((seen,), retry) = browser(wire.hello(Cursor(number), retry_ms))
    assert seen == Dispatched("sse-pg.hello", "{}", str(number))
    assert retry == retry_ms


def test_position() -> None:
    ((seen,), retry) = browser(wire.position(Cursor(9)))
    assert seen == Dispatched("sse-pg.position", "{}", "9")
    assert retry is None


@given(st.sampled_from(["expired", "unknown"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=128), IDS)
def test_gap_says_what_lies_between(reason: str, after: str, number: int) -> None:
    ((seen,), _) = browser(wire.gap(reason, after, Cursor(number)))
    assert (seen.type, seen.last_event_id) == ("sse-pg.gap", str(number))
    assert json.loads(seen.data) == {"reason": reason, "after": after, "before": str(number)}


def test_heartbeat_is_no_event() -> None:
    assert browser(wire.HEARTBEAT) == ([], None)
    between = wire.position(Cursor(1)) + wire.HEARTBEAT + wire.position(Cursor(2))
    assert [one.last_event_id for one in browser(between)[0]] == ["1", "2"]


@pytest.mark.parametrize("bad", ["\r", "\n", "\0"])
@pytest.mark.parametrize(
    "make",
    [
        lambda bad: wire.frame(event(name=f"a{bad}data: forged"), Cursor(7)),
        lambda bad: wire.frame(event(payload=f'{{{bad}"a":1}}'), Cursor(7)),
        lambda bad: wire.frame(event(payload=f'{{{bad}"a":1}}'), Cursor(7), envelope=WHOLE),
        lambda bad: wire.block(f"a{bad}", "{}", Cursor(7)),
        lambda bad: wire.block("a", f"{{}}{bad}", Cursor(7)),
    ],
)
def test_breaks_are_refused(make: Callable[[str], bytes], bad: str) -> None:
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        make(bad)


@pytest.mark.parametrize("bad", ["\r", "\n", "\0"])
def test_breaks_in_json_strings_are_escaped_in_the_envelope(bad: str) -> None:
    ((seen,), _) = browser(wire.frame(event(name=f"a{bad}b", channel=f"c{bad}d"), Cursor(7), envelope=WHOLE))
    assert json.loads(seen.data)["eventType"] == f"a{bad}b"


@pytest.mark.parametrize(
    ("moment", "printed"),
    [
        (WHEN, "2024-05-06T07:08:09.123456Z"),
        (WHEN - 123456, "2024-05-06T07:08:09.000000Z"),
        (-1, "1999-12-31T23:59:59.999999Z"),
        (2**63 - 1, "9999-12-31T23:59:59.775807Z"),  # PostgreSQL's infinity
        (-(2**63), "0001-01-01T00:00:00.224192Z"),
    ],
)
def test_moments_are_printed_in_rfc_3339(moment: int, printed: str) -> None:
    ((seen,), _) = browser(wire.frame(Event(1, "c", "t", "1", moment), Cursor(1), envelope=WHOLE))
    assert json.loads(seen.data)["createdAt"] == printed
