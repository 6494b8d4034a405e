"""sse_pg.authorize(): asked wherever a channel is touched, and taken back by sse_pg.revoke()."""

from __future__ import annotations

import hashlib
import re

import psycopg
import pytest
from support.client import Client
from support.process import CHECKOUT
from support.server import Launcher
from support.tokens import SECRET, bearer, token

from sse_pg.db.migrate import migrate

PAGE = (CHECKOUT / "docs" / "authorize.md").read_text(encoding="utf-8")
EXAMPLE, MOVED = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.M | re.S)

GRANTS = """
CREATE TABLE public.grants (user_id text, action text, channel text);
CREATE OR REPLACE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM public.grants g WHERE (g.user_id, g.action, g.channel) = ($1, $2, $3)) $$;
SELECT sse_pg.revoke();
"""
TOKENS = {"token_secret": SECRET, "authorize_cache": 3600.0}


def grant(db: psycopg.Connection, user: str, action: str, *channels: str) -> None:
    for channel in channels:
        db.execute("INSERT INTO public.grants VALUES (%s, %s, %s)", (user, action, channel))
    db.execute("SELECT sse_pg.revoke(%s)", (user,))


def take(db: psycopg.Connection, user: str, channel: str) -> None:
    with db.transaction():
        db.execute("DELETE FROM public.grants g WHERE (g.user_id, g.channel) = (%s, %s)", (user, channel))
        db.execute("SELECT sse_pg.revoke(%s, %s)", (user, channel))


def rule(db: psycopg.Connection, body: str) -> None:
    db.execute(
        "CREATE OR REPLACE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean "  # type: ignore[arg-type]
        f"LANGUAGE plpgsql AS $$ BEGIN {body} END $$"
    )


def user(url: str, name: str = "42") -> Client:
    return Client(url, bearer(token(name, publish=["*"], subscribe=["*"])))


async def test_every_entrance_asks(db: psycopg.Connection, launch: Launcher) -> None:
    db.execute(GRANTS)
    server = await launch(**TOKENS)
    async with user(server.url) as client:
        asked = [
            ("POST", "/api/events/publish", {"channel": "a", "payload": 1}),
            ("GET", "/api/events/history?channel=a", None),
            ("GET", "/api/events/stream?channels=a", None),
            ("POST", "/api/events/channels/subscribe", {"userId": "42", "channel": "a"}),
        ]
        for method, path, body in asked:
            status, answer, _ = await client.request(method, path, json=body)
            assert status == 403, path
            assert "The access rule does not allow user 42 to" in answer["detail"]
            assert answer["errors"][0]["detail"] == "a"
    grant(db, "42", "publish", "a")
    grant(db, "42", "subscribe", "a")
    server = await launch(**TOKENS)
    async with user(server.url) as client, client.stream("a") as stream:
        await client.publish("a", "seen")
        assert (await stream.event()).json() == "seen"
        assert (await client.get("/api/events/history?channel=a"))[0] == 200
        assert (await client.get("/api/events/history?channel=a,b"))[0] == 403
        assert (await client.post("/api/events/channels/subscribe", {"userId": "42", "channel": "a"}))[0] == 201


async def test_a_revoked_stream_ends_before_a_later_event(db: psycopg.Connection, launch: Launcher) -> None:
    db.execute(GRANTS)
    grant(db, "42", "subscribe", "a", "b")
    grant(db, "43", "subscribe", "a")
    server = await launch(**TOKENS)
    async with (
        user(server.url) as client,
        user(server.url, "43") as other,
        client.stream("a") as a,
        client.stream("b") as b,
        other.stream("a") as others,
    ):
        take(db, "42", "a")
        db.execute("SELECT sse_pg.publish('a', 'm', '\"too late\"'), sse_pg.publish('b', 'm', '\"still\"')")
        with pytest.raises(EOFError):
            await a.event()
        assert (await b.event()).json() == "still"
        assert (await others.event()).json() == "too late"
        assert (await client.get("/api/events/stream?channels=a"))[0] == 403


async def test_a_stream_opens_with_what_is_allowed(db: psycopg.Connection, launch: Launcher) -> None:
    """What the token, the rule or the subscriptions do not allow is named, and left out."""
    db.execute(GRANTS)
    grant(db, "42", "subscribe", "a", "d", "other")
    for channel in "ab":
        db.execute("SELECT sse_pg.subscribe('42', %s)", (channel,))
    server = await launch(**TOKENS)
    limited = bearer(token("42", publish=["*"], subscribe=["a", "b", "c", "d"]))
    async with Client(server.url, limited) as client:
        async with client.stream("a,b,c,other", denied="skip") as stream:
            said = await stream.event()
            assert (said.event, said.json()) == ("sse-pg.denied", {"channels": ["b", "c", "other"]})
            assert said.id == stream.hello.id
            db.execute("SELECT sse_pg.publish(c, 'm', to_jsonb(c)) FROM unnest('{b,other,a}'::text[]) c")
            assert (await stream.event()).json() == "a"
        async with client.stream("a,d", userId="42", denied="skip") as stream:
            assert (await stream.event()).json() == {"channels": ["d"]}
        async with client.stream("a,d", denied="skip") as stream:  # nothing is denied, and nothing is said
            db.execute("SELECT sse_pg.publish('d', 'm', '1')")
            assert (await stream.event()).event == "m"
        for query, status in (
            ("channels=b,other&denied=skip", 403),
            ("channels=other&denied=skip", 403),
            ("channels=d&userId=42&denied=skip", 403),
            ("channels=a,b", 403),
            ("channels=a,b&denied=refuse", 403),
            ("channels=a&denied=yes", 422),
            ("userId=42&denied=skip", 422),
        ):
            answer, body = await client.get(f"/api/events/stream?{query}")
            assert (answer, "errors" in body) == (status, True), query


async def test_an_open_stream_goes_on_without_a_revoked_channel(db: psycopg.Connection, launch: Launcher) -> None:
    db.execute(GRANTS)
    grant(db, "42", "subscribe", "a", "b")
    server = await launch(**TOKENS)
    async with user(server.url) as client, client.stream("a,b", denied="skip") as stream:
        db.execute("SELECT sse_pg.publish('a', 'm', '\"early\"')")
        early = await stream.event()
        assert early.json() == "early"
        take(db, "42", "a")
        db.execute("SELECT sse_pg.publish('a', 'm', '\"too late\"'), sse_pg.publish('b', 'm', '\"still\"')")
        said = await stream.event()
        assert (said.event, said.json(), said.id) == ("sse-pg.denied", {"channels": ["a"]}, early.id)
        assert (await stream.event()).json() == "still"
        async with client.stream("a,b", last_event_id=early.id, denied="skip") as again:
            assert (await again.event()).json() == {"channels": ["a"]}
            assert (await again.event()).json() == "still"
        take(db, "42", "b")
        with pytest.raises(EOFError):
            await stream.event()
        assert (await client.get("/api/events/stream?channels=a,b&denied=skip"))[0] == 403


async def test_a_rule_that_breaks_denies_nothing_for_good(db: psycopg.Connection, launch: Launcher) -> None:
    """The stream ends, so that its client asks again."""
    server = await launch(**TOKENS)
    async with user(server.url) as client, client.stream("a,b", denied="skip") as stream:
        rule(db, "RAISE 'broken';")
        db.execute("SELECT sse_pg.revoke('42', 'a')")
        with pytest.raises(EOFError):
            await stream.event()


async def test_a_stream_of_a_user_loses_and_gains_channels(db: psycopg.Connection, launch: Launcher) -> None:
    db.execute(GRANTS)
    grant(db, "42", "subscribe", "a", "b")
    for channel in "abc":
        db.execute("SELECT sse_pg.subscribe('42', %s)", (channel,))
    server = await launch(**TOKENS)
    async with user(server.url) as client, client.stream(userId="42") as stream:
        take(db, "42", "a")
        db.execute("SELECT sse_pg.publish(c, 'm', to_jsonb(c)) FROM unnest('{a,b,c}'::text[]) c")
        assert (await stream.event()).json() == "b"
        grant(db, "42", "subscribe", "c")
        db.execute("SELECT sse_pg.publish(c, 'm', to_jsonb(c)) FROM unnest('{a,c}'::text[]) c")
        assert (await stream.event()).json() == "c"


async def test_an_answer_holds_until_it_is_revoked(db: psycopg.Connection, launch: Launcher) -> None:
    db.execute("CREATE SEQUENCE public.asked")
    rule(db, "PERFORM nextval('public.asked'); RETURN channel = 'a';")
    server = await launch(**TOKENS)
    async with user(server.url) as client:
        for _ in range(5):
            assert (await client.get("/api/events/history?channel=a"))[0] == 200
            assert (await client.get("/api/events/history?channel=b"))[0] == 403
        assert db.execute("SELECT last_value FROM public.asked").fetchone() == (2,)


async def test_a_rule_on_an_open_server_is_asked_about_the_user_that_is_named(
    db: psycopg.Connection, launch: Launcher
) -> None:
    rule(db, "RETURN user_id = '42' OR user_id IS NULL AND channel = 'open';")
    server = await launch()
    async with Client(server.url) as client:
        assert (await client.get("/api/events/history?channel=open"))[0] == 200
        assert (await client.get("/api/events/history?channel=a"))[0] == 403
        for name, status in (("42", 201), ("43", 403)):
            body = {"userId": name, "channel": "a"}
            assert (await client.post("/api/events/channels/subscribe", body))[0] == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("RAISE EXCEPTION 'broken';", 500),
        ("RETURN (SELECT 1/0 = 1);", 500),
        ("PERFORM pg_sleep(30); RETURN true;", 503),
        ("RETURN NULL;", 403),
    ],
)
async def test_a_rule_that_does_not_answer_allows_nothing(
    db: psycopg.Connection, launch: Launcher, body: str, status: int
) -> None:
    rule(db, body)
    db.execute("SELECT sse_pg.subscribe('42', 'a')")
    server = await launch(token_secret=SECRET, authorize_timeout=0.2)
    async with user(server.url) as client:
        for path in ("history?channel=a", "stream?channels=a", "stream?userId=42"):
            if (status, path) != (403, "stream?userId=42"):
                assert (await client.get(f"/api/events/{path}"))[0] == status, path
        assert (await client.post("/api/events/publish", {"channel": "a", "payload": 1}))[0] == status
        assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (0,)


async def test_the_reason_of_a_failure_comes_first_in_the_log(
    db: psycopg.Connection, launch: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    rule(db, "RAISE EXCEPTION 'broken';")
    server = await launch(token_secret=SECRET)
    async with user(server.url) as client:
        assert (await client.get("/api/events/history?channel=a"))[0] == 500
    assert "broken: sse_pg.authorize() failed" in caplog.messages[-1][:40]


async def test_a_rule_that_breaks_ends_the_streams_that_it_is_asked_about(
    db: psycopg.Connection, launch: Launcher
) -> None:
    db.execute(GRANTS)
    grant(db, "42", "subscribe", "a")
    db.execute("SELECT sse_pg.subscribe('42', 'a')")
    server = await launch(**TOKENS)
    async with user(server.url) as client, client.stream("a") as one, client.stream(userId="42") as two:
        rule(db, "RAISE EXCEPTION 'broken';")
        db.execute("SELECT sse_pg.revoke()")
        await one.ended()
        await two.ended()


async def test_nobody_is_asked_while_the_function_is_as_shipped(db: psycopg.Connection, launch: Launcher) -> None:
    server = await launch(**TOKENS)
    async with user(server.url) as client:
        await client.publish("a", 1)
        assert server.bus.authorizer.asks_nobody
        rule(db, "RETURN false;")
        db.execute("SELECT sse_pg.revoke()")
        async with Client(server.url) as other:
            await other.get("/healthz")
        await server.bus.tail.fresh()
        assert (await client.post("/api/events/publish", {"channel": "a", "payload": 1}))[0] == 403


async def test_revocations_are_not_kept_where_nothing_was_answered(db: psycopg.Connection, launch: Launcher) -> None:
    server = await launch(**TOKENS)
    for number in range(50):
        db.execute("SELECT sse_pg.revoke('42', %s)", (f"c{number}",))
    await server.bus.tail.fresh()
    assert not server.bus.authorizer._recent
    rule(db, "RETURN true;")
    db.execute("SELECT sse_pg.revoke()")
    await server.bus.tail.fresh()
    async with user(server.url) as client:
        await client.publish("a", 1)
        assert server.bus.authorizer._answers
        db.execute("SELECT sse_pg.revoke('42', 'a')")
        await server.bus.tail.fresh()
        assert len(server.bus.authorizer._recent) == 1


async def test_a_function_that_is_gone_allows_nothing(db: psycopg.Connection, launch: Launcher) -> None:
    db.execute("DROP FUNCTION sse_pg.authorize(text, text, text)")
    server = await launch(**TOKENS)
    async with user(server.url) as client:
        assert (await client.get("/api/events/history?channel=a"))[0] == 500


async def test_what_anybody_may_notify_harms_nobody(
    db: psycopg.Connection, launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch(**TOKENS)
    async with user(server.url) as client, client.stream("a") as stream:
        checked: list[object] = []
        monkeypatch.setattr(server.bus.authorizer, "revoked", lambda *digests: checked.append(digests))
        monkeypatch.setattr(server.bus.followers, "changed", checked.append)
        digest = hashlib.sha256(b"42").hexdigest()[:16]
        for text in (
            *(
                "revoke",
                "revoke ",
                "revoke 42",
                "revoke 42 a",
                "revoke 42 a b",
                "subscriptions 1 2",
                "nonsense",
                "x" * 7999,
            ),
            *(f"subscriptions {digest}", f"revoke {digest} {digest}", "subscriptions ", "", "\u20ac"),
        ):
            db.execute("SELECT pg_notify('sse_pg_control', %s)", (text,))
        await client.publish("a", "on")
        assert (await stream.event()).json() == "on"


def test_no_migration_touches_the_function_again(db: psycopg.Connection, database_url: str) -> None:
    rule(db, "RETURN false;")
    migrate(database_url)
    assert db.execute("SELECT sse_pg.authorize('u', 'publish', 'a')").fetchone() == (False,)
    migrations = (CHECKOUT / "sql" / "migrations").glob("*.sql")
    later = [path.name for path in migrations if "FUNCTION sse_pg.authorize(" in path.read_text("utf-8")]
    assert later == ["0001_initial.sql"]


async def test_the_example_of_the_page(db: psycopg.Connection, launch: Launcher) -> None:
    for statement in re.split(r";\s*(?:--[^\n]*)?\n(?!\s*(?:ELSE|END))", EXAMPLE):
        if statement.strip():
            db.execute(statement)  # type: ignore[arg-type]
    db.execute("INSERT INTO orders (id, item, customer) OVERRIDING SYSTEM VALUE VALUES (17, 'lamp', '42')")
    server = await launch(**TOKENS)
    async with (
        user(server.url) as owner,
        user(server.url, "43") as other,
        user(server.url, "shop") as shop,
        owner.stream("order:17") as stream,
    ):
        await shop.publish("order:17", "packed")
        assert (await stream.event()).json() == "packed"
        assert (await owner.post("/api/events/publish", {"channel": "order:17", "payload": 1}))[0] == 403
        assert (await other.get("/api/events/history?channel=order:17"))[0] == 403
        assert (await other.get("/api/events/history?channel=news"))[0] == 200
        assert (await other.get("/api/events/history?channel=order:x"))[0] == 403
        db.execute(MOVED)  # type: ignore[arg-type]
        await shop.publish("order:17", "moved")
        with pytest.raises(EOFError):
            await stream.event()
        assert (await other.get("/api/events/history?channel=order:17"))[0] == 200
