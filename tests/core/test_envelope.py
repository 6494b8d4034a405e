"""CloudEvents, read by their own SDK: every event is a valid one, with what is in the table."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st

from sse_pg.core.envelope import CloudEvent, source_of
from sse_pg.core.event import Event

SOURCE = source_of("7364936491/00000001/5/16384")
WHEN = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
MOMENT = (WHEN - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def made(payload: Any = 1, headers: dict[str, Any] | None = None, name: str = "PLACED", channel: str = "orders") -> Any:
    """Return an event of the bus as the SDK reads it; it raises an error if that is no CloudEvent."""
    text = CloudEvent(SOURCE).data(
        Event(1042, channel, name, json.dumps(payload), MOMENT, None if headers is None else json.dumps(headers))
    )
    return JSONFormat().read(None, text)


def test_the_attributes() -> None:
    event = made({"item": "book", "n": 1.50}, {"traceparent": TRACE, "publisher": "ann"})
    assert event.get_data() == {"item": "book", "n": 1.50}
    assert event.get_attributes() == {
        "specversion": "1.0",
        "id": "1042",
        "source": SOURCE,
        "type": "PLACED",
        "subject": "orders",
        "time": WHEN,
        "datacontenttype": "application/json",
        "traceparent": TRACE,
        "publisher": "ann",
    }


def test_a_payload_keeps_its_text() -> None:
    text = CloudEvent(SOURCE).data(Event(1, "a", "t", '{"n": 1.0000000000000000000001}', 0))
    assert '"data":{"n": 1.0000000000000000000001}' in text


@pytest.mark.parametrize(
    ("value", "attribute"),
    [
        ("ä", "ä"),
        ("", ""),
        (True, True),
        (-(2**31) + 1, -(2**31) + 1),
        (2**31 - 1, 2**31 - 1),
        (2**31, "2147483648"),
        (1.5, "1.5"),
        ([1, None], "[1, null]"),
        ({"a": "b"}, '{"a": "b"}'),
    ],
)
def test_values_that_attributes_cannot_have_are_texts(value: Any, attribute: Any) -> None:
    assert made(headers={"x": value}).get_extension("x") == attribute


@pytest.mark.parametrize("name", ["", "X", "x-tenant", "x_1", "ä", "x\n", "Publisher", "pub-lisher"])
def test_names_that_attributes_cannot_have_are_left_out(name: str) -> None:
    """None is changed to fit: it might then pass for another header, which the server writes."""
    assert set(made(headers={name: "v", "x1": "v"}).get_attributes()) - set(made().get_attributes()) == {"x1"}


@pytest.mark.parametrize(
    "name", ["id", "source", "type", "subject", "time", "specversion", "datacontenttype", "dataschema", "data"]
)
def test_a_header_replaces_no_attribute(name: str) -> None:
    event = made("payload", {name: "forged"})
    assert (event.get_attributes(), event.get_data()) == (made().get_attributes(), "payload")


def test_null_is_no_attribute() -> None:
    assert "x" not in made(headers={"x": None}).get_attributes()


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
NAMES = TEXTS | st.text("abcxyz019", min_size=1, max_size=4) | st.sampled_from(["id", "time", "data", "publisher"])


@given(TEXTS, TEXTS, st.lists(VALUES), st.none() | st.dictionaries(NAMES, VALUES | st.lists(VALUES), max_size=5))
def test_every_event_is_one(name: str, channel: str, payload: list[Any], headers: dict[str, Any] | None) -> None:
    event = made(payload, headers, name, channel)
    assert (event.get_type(), event.get_subject(), event.get_data()) == (name, channel, payload)
    assert (event.get_id(), event.get_source(), event.get_time()) == ("1042", SOURCE, WHEN)


def test_the_source_names_the_log() -> None:
    """It stays at a failover, which begins a new timeline; another database or a new table has another."""
    assert source_of("7364936491/00000002/5/16384") == SOURCE
    others = {source_of(f"{log}") for log in ("7/00000001/5/16384", "7364936491/1/6/16384", "7364936491/1/5/16385")}
    assert len(others - {SOURCE}) == 3
    assert source_of("//5/16384").startswith("urn:sse-pg:"), "the owner may not read which cluster it is"
