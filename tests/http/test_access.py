"""Tokens over HTTP: what each endpoint asks for, cookies and the pages that use them, CORS, and when streams end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from support.client import Client
from support.server import Launcher, Server
from support.tokens import SECRET, bearer, token
from support.waiting import eventually

from sse_pg.app import create_app
from sse_pg.config import Settings
from sse_pg.http.origin import is_own

PAGE = "https://app.example"
As = Callable[..., Client]


@pytest.fixture
async def server(launch: Launcher) -> Server:
    return await launch(token_secret=SECRET, cors_origins=f"{PAGE}, http://127.0.0.1:1")


@pytest.fixture
async def as_user(server: Server) -> AsyncIterator[As]:
    """Return a client with a token of these rights."""
    made: list[Client] = []

    def make(user: str = "42", **rights: Any) -> Client:
        made.append(Client(server.url, bearer(token(user, **rights))))
        return made[-1]

    yield make
    for each in made:
        await each.session.close()


@pytest.fixture
async def nobody(server: Server) -> AsyncIterator[Client]:
    async with Client(server.url) as client:
        yield client


REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "/api/events/publish", {"channel": "a", "payload": 1}),
    ("GET", "/api/events/stream?channels=a", None),
    ("GET", "/api/events/history?channel=a", None),
    ("POST", "/api/events/channels/subscribe", {"userId": "42", "channel": "a"}),
    ("POST", "/api/events/channels/unsubscribe", {"userId": "42", "channel": "a"}),
    ("GET", "/api/events/channels?userId=42", None),
    ("GET", "/api/events/active-connections", None),
    ("GET", "/api/events/stats", None),
    ("GET", "/api/events/session", None),
    ("POST", "/api/events/session", None),
]
EVERY = pytest.mark.parametrize(("method", "path", "body"), REQUESTS, ids=[f"{m} {p}" for m, p, _ in REQUESTS])


# ---------------------------------------------------------------- 401


@EVERY
async def test_without_a_token_nothing_is_done(nobody: Client, method: str, path: str, body: Any) -> None:
    status, answer, response = await nobody.request(method, path, json=body)
    assert status == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="sse-pg"'
    assert "token" in answer["detail"]


@EVERY
async def test_an_expired_token_is_none(nobody: Client, method: str, path: str, body: Any) -> None:
    text = token(ttl=-1)
    status, answer, response = await nobody.request(method, path, json=body, headers=bearer(text))
    assert status == 401
    assert 'error="invalid_token", error_description="the token has expired"' in response.headers["WWW-Authenticate"]
    assert text not in str(answer) + str(response.headers)


@pytest.mark.parametrize("name", ["token", "access_token"])
async def test_a_token_in_the_url_is_refused(as_user: As, name: str) -> None:
    status, answer = await as_user(subscribe=["*"]).get(
        f"/api/events/history?channel=a&{name}={token(subscribe=['*'])}"
    )
    assert status == 401
    assert "URL" in answer["detail"]


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "bearer x", "Basic dTpw", "", "Bearer a b"])
async def test_what_is_no_bearer_token(nobody: Client, value: str) -> None:
    status, _ = await nobody.get("/api/events/history?channel=a", headers={"Authorization": value})
    assert status == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
async def test_health_and_description_ask_for_none(nobody: Client, path: str) -> None:
    assert (await nobody.get(path))[0] == 200


async def test_the_scheme_may_be_written_in_any_case(nobody: Client) -> None:
    headers = {"Authorization": f"bEARER  {token(subscribe=['a'])}"}
    assert (await nobody.get("/api/events/history?channel=a", headers=headers))[0] == 200


# ---------------------------------------------------------------- what a token allows


async def test_publish(as_user: As) -> None:
    client = as_user(publish=["orders.*"])
    assert await client.publish("orders.7", 1)
    status, answer = await client.post("/api/events/publish", {"channel": "news", "payload": 1})
    assert (status, answer["errors"]) == (403, [{"field": "channel", "detail": "news"}])
    status, answer = await client.post(
        "/api/events/publish", [{"channel": each, "payload": 1} for each in ("orders.8", "news", "x", "news")]
    )
    assert status == 403
    assert {each["detail"] for each in answer["errors"]} == {"news", "x"}
    assert (await as_user(subscribe=["*"]).get("/api/events/history?channel=orders.8,news"))[1]["events"] == []


async def test_history_and_stream(as_user: As) -> None:
    client = as_user(subscribe=["orders.*"], publish=["*"])
    assert (await client.get("/api/events/history?channel=orders.7"))[0] == 200
    for path in ("/api/events/history?channel=orders.7,news", "/api/events/stream?channels=orders.7,news"):
        status, answer = await client.get(path)
        assert status == 403
        assert "read news" in answer["detail"]
    async with client.stream("orders.7") as stream:
        await client.publish("orders.7", "seen")
        assert (await stream.event()).json() == "seen"


async def test_the_user_is_the_token_s(as_user: As) -> None:
    client = as_user("42", subscribe=["*"], actFor=["guest-*"])
    for user, status in (("42", 201), ("guest-1", 201), ("43", 403), ("guest", 403)):
        body = {"userId": user, "channel": "a"}
        assert (await client.post("/api/events/channels/subscribe", body))[0] == status
        listed, answer = await client.get(f"/api/events/channels?userId={user}")
        assert listed == (403 if status == 403 else 200)
        if status == 403:
            assert answer["errors"] == [{"field": "userId", "detail": user}]
        assert (await client.post("/api/events/channels/unsubscribe", body))[0] == (403 if status == 403 else 200)
    assert (await client.get("/api/events/stream?userId=43"))[0] == 403


async def test_subscribing_takes_the_right_and_leaving_does_not(as_user: As) -> None:
    body = {"userId": "42", "channel": "a"}
    assert (await as_user(subscribe=["a"]).post("/api/events/channels/subscribe", body))[0] == 201
    poor = as_user(subscribe=["b"])
    assert (await poor.post("/api/events/channels/subscribe", body))[0] == 403
    assert (await poor.post("/api/events/channels/unsubscribe", body))[0] == 200


async def test_a_stream_of_a_user_carries_what_the_token_allows(as_user: As) -> None:
    rich = as_user(subscribe=["*"], publish=["*"])
    for channel in ("a", "b"):
        await rich.post("/api/events/channels/subscribe", {"userId": "42", "channel": channel})
    async with as_user(subscribe=["b", "c"]).stream(userId="42") as stream:
        await rich.publish("a", "hidden")
        await rich.publish("b", "seen")
        assert (await stream.event()).json() == "seen"
        await rich.post("/api/events/channels/subscribe", {"userId": "42", "channel": "c"})
        await rich.post("/api/events/channels/subscribe", {"userId": "42", "channel": "d"})
        await rich.publish("d", "hidden")
        await rich.publish("c", "seen too")
        assert (await stream.event()).json() == "seen too"


async def test_user_and_channels_take_subscription_and_right(as_user: As) -> None:
    client = as_user(subscribe=["a", "b"])
    await client.post("/api/events/channels/subscribe", {"userId": "42", "channel": "a"})
    async with client.stream("a", userId="42"):
        pass
    assert (await client.get("/api/events/stream?userId=42&channels=b"))[0] == 403
    assert (await as_user(subscribe=["b"]).get("/api/events/stream?userId=42&channels=a"))[0] == 403


async def test_observers_see_the_whole_server(as_user: As) -> None:
    for observe, status in ((True, 200), (False, 403)):
        client = as_user(observe=observe)
        assert (await client.get("/api/events/active-connections"))[0] == status
        assert (await client.get("/api/events/channels?userId=somebody"))[0] == status


# ---------------------------------------------------------------- expiry


async def test_a_stream_ends_when_its_token_expires(server: Server, nobody: Client) -> None:
    expires = time.time() + 1.5
    headers = bearer(token(subscribe=["a"], claims={"exp": expires}))
    async with Client(server.url, headers) as client, client.stream("a") as stream:
        await stream.ended()
        assert int(expires) <= time.time()
        assert (await client.get("/api/events/stream?channels=a"))[0] == 401
    await eventually(lambda: not server.bus.hub.streams)


@pytest.mark.parametrize("user", [42, -7, 10**200])
async def test_an_integer_sub_stands_for_its_digits(nobody: Client, user: int) -> None:
    _, body = await nobody.get("/api/events/session", headers=bearer(token(user)))
    assert body["userId"] == str(user)


@pytest.mark.parametrize("user", [True, 1.5, [1], 10**255])
async def test_another_sub_is_refused(nobody: Client, user: object) -> None:
    status, body = await nobody.get("/api/events/session", headers=bearer(token(user)))
    assert (status, "claim sub" in body["detail"]) == (401, True)


@pytest.mark.parametrize("expires", ["9" * 400, float("inf"), 10**300])
async def test_a_time_that_is_none_makes_no_session(nobody: Client, expires: object) -> None:
    headers = bearer(token(subscribe=["a"], claims={"exp": expires}))
    for method in ("GET", "POST"):
        assert (await nobody.request(method, "/api/events/session", headers=headers))[0] == 401
    assert (await nobody.get("/api/events/stream?channels=a", headers=headers))[0] == 401


# ---------------------------------------------------------------- cookies


async def test_a_token_becomes_a_cookie_and_goes(server: Server) -> None:
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(server.url, cookie_jar=jar) as browser:
        text = token(subscribe=["a"])
        async with browser.post("/api/events/session", headers=bearer(text)) as answer:
            assert answer.status == 200
            shown = await answer.json()
            assert (shown["userId"], shown["subscribe"], shown["open"]) == ("42", ["a"], False)
            assert 590 < shown["expiresIn"] <= 600
            cookie = answer.headers["Set-Cookie"]
            assert text not in str(shown)
        for part in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="):
            assert part in cookie
        assert "Secure" not in cookie
        async with browser.get("/api/events/history?channel=a") as answer:
            assert answer.status == 200
        async with browser.get("/api/events/session") as answer:
            assert (await answer.json())["userId"] == "42"
        async with browser.delete("/api/events/session") as answer:
            assert await answer.json() == {"ended": True}
        async with browser.get("/api/events/history?channel=a") as answer:
            assert answer.status == 401


async def test_a_session_begins_with_the_header_alone(nobody: Client) -> None:
    headers = {"Cookie": f"sse_pg_token={token()}"}
    assert (await nobody.request("POST", "/api/events/session", headers=headers))[0] == 401


async def test_behind_tls_the_cookie_is_secure(nobody: Client) -> None:
    headers = {**bearer(token()), "X-Forwarded-Proto": "https"}
    _, _, response = await nobody.request("POST", "/api/events/session", headers=headers)
    assert "Secure" in response.headers["Set-Cookie"]


async def test_the_header_goes_before_the_cookie(nobody: Client) -> None:
    headers = {"Cookie": f"sse_pg_token={token(subscribe=['a'])}", **bearer(token(ttl=-1))}
    assert (await nobody.get("/api/events/history?channel=a", headers=headers))[0] == 401


@pytest.mark.parametrize(
    ("headers", "read", "write"),
    [
        ({}, 200, 403),
        ({"Origin": "{own}"}, 200, 201),
        ({"Origin": PAGE}, 200, 201),
        ({"Origin": PAGE + ":443"}, 200, 201),
        ({"Origin": "https://evil.example"}, 403, 403),
        ({"Origin": "https://app.example.evil.example"}, 403, 403),
        ({"Origin": PAGE + ":444"}, 403, 403),
        ({"Origin": "null"}, 403, 403),
        ({"Origin": ""}, 403, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200, 201),
        ({"Sec-Fetch-Site": "cross-site"}, 403, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403, 403),
    ],
    ids=str,
)
async def test_the_origin_of_who_uses_a_cookie(nobody: Client, headers: dict[str, str], read: int, write: int) -> None:
    sent = {name: value.replace("{own}", nobody.url) for name, value in headers.items()}
    sent["Cookie"] = f"sse_pg_token={token(subscribe=['a'], publish=['a'])}"
    assert (await nobody.get("/api/events/history?channel=a", headers=sent))[0] == read
    status, _ = await nobody.post("/api/events/publish", {"channel": "a", "payload": 1}, headers=sent)
    assert status == write
    # A header is not sent by itself, so any page that has the token may use it.
    del sent["Cookie"]
    sent.update(bearer(token(subscribe=["a"])))
    assert (await nobody.get("/api/events/history?channel=a", headers=sent))[0] == 200


# ---------------------------------------------------------------- CORS


async def preflight(url: str, origin: str, method: str = "POST") -> aiohttp.ClientResponse:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type, last-event-id",
    }
    async with aiohttp.ClientSession() as session, session.options(url, headers=headers) as answer:
        await answer.read()
        return answer


@EVERY
async def test_preflights(nobody: Client, method: str, path: str, body: Any) -> None:
    answer = await preflight(nobody.url + path, PAGE, method)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, PAGE)
    assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "content-type", "last-event-id", "cache-control"} <= set(allowed)
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert "Origin" in answer.headers.getall("Vary")


@pytest.mark.parametrize("setting", ["https://app.example:443", "https://app.example"])
@pytest.mark.parametrize("origin", ["https://app.example:443", "https://app.example"])
async def test_the_default_port_is_no_part_of_an_origin(launch: Launcher, setting: str, origin: str) -> None:
    server = await launch(cors_origins=setting)
    answer = await preflight(server.url + "/api/events/publish", origin)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, origin)
    for other in ("http://app.example:443", "http://app.example", "https://app.example:80"):
        assert (await preflight(server.url + "/api/events/publish", other)).status == 403


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("https://bus.example", "bus.example", True),
        ("https://bus.example", "bus.example:443", True),
        ("http://bus.example", "bus.example:80", True),
        ("http://bus.example:8080", "bus.example:8080", True),
        ("https://BUS.example", "bus.EXAMPLE", True),
        ("https://bus.example", "bus.example:8443", False),
        ("http://bus.example", "bus.example:443", False),
        ("https://bus.example:8443", "bus.example", False),
        ("null", "", False),
        ("https://[", "[", False),
    ],
)
def test_the_own_origin(origin: str, host: str, own: bool) -> None:
    assert is_own(origin, host) is own


async def test_a_page_may_send_the_headers_it_asks_for(nobody: Client) -> None:
    headers = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-request-id, Baggage, traceparent, not a name, ",
    }
    async with nobody.session.options(nobody.url + "/api/events/publish", headers=headers) as answer:
        allowed = answer.headers["Access-Control-Allow-Headers"].split(", ")
        assert {"traceparent", "tracestate", "x-request-id", "Baggage", "Content-Type"} <= set(allowed)
        assert len(allowed) == len({name.lower() for name in allowed})
        assert "not a name" not in allowed


@pytest.mark.parametrize(
    ("origin", "path", "status"), [("https://evil.example", "publish", 403), (PAGE, "nowhere", 404)]
)
async def test_other_preflights(nobody: Client, origin: str, path: str, status: int) -> None:
    answer = await preflight(f"{nobody.url}/api/events/{path}", origin)
    assert answer.status == status
    assert "Access-Control-Allow-Methods" not in answer.headers


@EVERY
async def test_every_answer_names_the_origin(as_user: As, method: str, path: str, body: Any) -> None:
    client = as_user(subscribe=["*"], publish=["*"], observe=True)
    url = client.url + path
    for authorization in ({}, {"Authorization": "Bearer x"}):
        for origin, named in ((PAGE, PAGE), ("https://evil.example", None), (None, None)):
            headers = {**authorization, **({"Origin": origin} if origin else {})}
            async with client.session.request(method, url, json=body, headers=headers) as answer:
                assert answer.status in ((401,) if authorization else (200, 201))
                assert answer.headers.get("Access-Control-Allow-Origin") == named
                assert answer.headers.get("Access-Control-Allow-Credentials") == ("true" if named else None)
                assert "Origin" in answer.headers.getall("Vary")
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                stream = "stream" in path and answer.status == 200
                assert answer.headers["Cache-Control"] == ("no-cache, no-transform" if stream else "no-store")
                if named:
                    assert "Link" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("path", ["/nowhere", "/api/events/publish", "/api/events/history?channel=%00"])
async def test_errors_have_the_headers_too(as_user: As, path: str) -> None:
    client = as_user()
    async with client.session.get(client.url + path, headers={"Origin": PAGE}) as answer:
        assert answer.status in (404, 405, 422)
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert answer.headers["Cache-Control"] == "no-store"


async def test_by_default_no_page_of_another_origin_may(kit_client: Client) -> None:
    assert (await preflight(f"{kit_client.url}/api/events/publish", PAGE)).status == 403
    async with kit_client.session.get(f"{kit_client.url}/healthz", headers={"Origin": PAGE}) as answer:
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
        assert "Vary" not in answer.headers


# ---------------------------------------------------------------- elsewhere


async def test_an_open_server_shows_that_it_is(kit_client: Client) -> None:
    for method in ("GET", "POST"):
        status, answer, response = await kit_client.request(method, "/api/events/session", headers=bearer(token()))
        assert (status, answer["open"], answer["userId"]) == (200, True, None)
        assert "Set-Cookie" not in response.headers


async def test_mounted_in_another_application(database_url: str) -> None:
    inner = create_app(Settings(database_url=database_url, token_secret=SECRET, cors_origins=PAGE, drain=0.0))
    outer = web.Application()
    outer.add_subapp("/bus/", inner)
    runner = web.AppRunner(outer, handler_cancellation=True, shutdown_timeout=5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = "http://{}:{}/bus".format(*runner.addresses[0][:2])
        async with aiohttp.ClientSession(headers={"Origin": PAGE}) as session:
            async with session.get(f"{url}/api/events/history?channel=a") as answer:
                assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (401, PAGE)
            headers = bearer(token(subscribe=["a"]))
            async with session.get(f"{url}/api/events/history?channel=a", headers=headers) as answer:
                assert answer.status == 200
            async with session.post(f"{url}/api/events/session", headers=headers) as answer:
                assert "Path=/bus/" in answer.headers["Set-Cookie"]
        assert (await preflight(f"{url}/api/events/publish", PAGE)).status == 204
    finally:
        await runner.cleanup()


# ------------------------------------------------------------------ open servers and the names of others


@EVERY
async def test_an_open_server_answers_to_no_foreign_name(launch: Launcher, method: str, path: str, body: Any) -> None:
    """A page whose name was made to point to loopback is of the server's own origin to the browser."""
    server = await launch()
    async with (
        Client(server.url) as client,
        client.session.request(method, server.url + path, json=body, headers={"Host": "evil.example:8080"}) as response,
    ):
        assert response.status == 403
        assert "evil.example" in (await response.json())["detail"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "10.0.0.7", "a.localhost:2"]
)
async def test_names_of_the_own_machine(launch: Launcher, host: str) -> None:
    server = await launch()
    async with (
        Client(server.url) as client,
        client.session.get(f"{server.url}/api/events/active-connections", headers={"Host": host}) as response,
    ):
        assert response.status == 200


async def test_an_open_server_that_says_so_answers_to_any_name(launch: Launcher) -> None:
    server = await launch(open=True)
    async with (
        Client(server.url) as client,
        client.session.get(f"{server.url}/api/events/active-connections", headers={"Host": "bus.example"}) as response,
    ):
        assert response.status == 200
