"""Query parameters that an endpoint does not have."""

from __future__ import annotations

import pytest
from support import openapi
from support.client import Client

ENDPOINTS = [
    (method.upper(), path, [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"])
    for path, item in openapi.document()["paths"].items()
    if path.startswith("/api/events/")
    for method, operation in item.items()
]


def test_there_are_endpoints() -> None:
    assert len(ENDPOINTS) >= 10


@pytest.mark.parametrize(("method", "path", "known"), ENDPOINTS)
async def test_an_unknown_parameter(kit_client: Client, method: str, path: str, known: list[str]) -> None:
    body = {"channel": "a", "payload": 1} if path.endswith("publish") else {"channel": "a", "userId": "u"}
    status, answer, _ = await kit_client.request(
        method, f"{path}?since=1&_=2", json=body if path.endswith(("publish", "subscribe")) else None
    )
    assert status == 422, answer
    assert [error["field"] for error in answer["errors"]] == ["since", "_"]
    for name in known:
        assert name in answer["errors"][0]["detail"]
    if not known:
        assert "has none" in answer["detail"]
    if path.endswith(("publish", "/subscribe")):
        assert (await kit_client.get("/api/events/history", params={"channel": "a"}))[1]["events"] == []
        assert (await kit_client.get("/api/events/channels", params={"userId": "u"}))[1]["channels"] == []


@pytest.mark.parametrize("name", ["since", "from", "cursor", "type", "channel", "lasteventid", "", "x" * 500])
async def test_a_stream_with_a_parameter_that_looks_like_another(kit_client: Client, name: str) -> None:
    status, answer = await kit_client.get("/api/events/stream", params={"channels": "a", name: "0"})
    assert (status, answer["errors"][0]["field"]) == (422, name[:100] or "(no name)")


@pytest.mark.parametrize("name", ["lastEventId", "lastEventID", "last_event_id"])
async def test_each_spelling_of_the_cursor(kit_client: Client, name: str) -> None:
    number = await kit_client.publish("a", 1)
    async with kit_client.stream("a", **{name: "0"}) as stream:
        assert (await stream.event()).id == str(number)


async def test_a_query_that_is_empty(kit_client: Client) -> None:
    assert (await kit_client.get("/api/events/history?&channel=a&"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        (method, path, name)
        for method, path, known in ENDPOINTS
        for name in known
        if name not in ("channel", "channels")
    ],
)
async def test_a_parameter_that_is_repeated(kit_client: Client, method: str, path: str, name: str) -> None:
    status, answer, _ = await kit_client.request(method, f"{path}?{name}=1&{name}=1")
    assert (status, answer["errors"]) == (422, [{"field": name, "detail": "given more than once"}])


async def test_channels_may_be_repeated(kit_client: Client) -> None:
    for channel in ("a", "b", "c"):
        await kit_client.publish(channel, channel)
    status, page = await kit_client.get("/api/events/history?channel=a&channel=b,c")
    assert (status, [event["payload"] for event in page["events"]]) == (200, ["a", "b", "c"])
    response = await kit_client.session.get(f"{kit_client.url}/api/events/stream?channels=a&channels=b,c&lastEventId=0")
    text = ""
    while 'data: "c"' not in text:
        text += (await response.content.readline()).decode()
    assert 'data: "a"' in text
    assert 'data: "b"' in text
    response.close()
