"""publish_changes(): what each kind of statement and table publishes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

Changes = Callable[..., list[tuple[str, str, dict[str, Any]]]]
"""Run statements; return what they published, as (channel, type, payload)."""


@pytest.fixture
def changes(db: psycopg.Connection) -> Changes:
    read = 0

    def run(*statements: str) -> list[tuple[str, str, dict[str, Any]]]:
        nonlocal read
        for statement in statements:
            db.execute(statement)  # type: ignore[arg-type]
        rows = db.execute(
            "SELECT id, channel, event_type, payload FROM sse_pg.events WHERE id > %s ORDER BY id", [read]
        ).fetchall()
        read = rows[-1][0] if rows else read
        return [row[1:] for row in rows]

    return run


@pytest.fixture
def orders(db: psycopg.Connection) -> None:
    db.execute(
        "CREATE TABLE orders (id integer PRIMARY KEY, item text, state text NOT NULL DEFAULT 'placed',"
        " customer integer)"
    )


def publish(db: psycopg.Connection, source: str, channel: str, **more: Any) -> None:
    """Call publish_changes() with named arguments."""
    names = "".join(f", {name} => %({name})s" for name in more)
    db.execute(
        f"SELECT sse_pg.publish_changes(%(source)s::regclass, %(channel)s{names})",  # type: ignore[arg-type]
        {"source": source, "channel": channel, **more},
    )


def problem(db: psycopg.Connection, source: str) -> str | None:
    row = db.execute("SELECT problem FROM sse_pg.published_tables WHERE source = %s::regclass", [source]).fetchone()
    assert row
    return row[0]


def lamp(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "item": "lamp", "state": "placed", "customer": None, **more}


@pytest.mark.usefixtures("orders")
def test_each_operation(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "orders")
    assert changes("INSERT INTO orders (id, item) VALUES (1, 'lamp'), (2, 'lamp')") == [
        ("orders", "INSERT", {"table": "orders", "new": lamp(1)}),
        ("orders", "INSERT", {"table": "orders", "new": lamp(2)}),
    ]
    assert changes("UPDATE orders SET state = 'paid' WHERE id = 1") == [
        ("orders", "UPDATE", {"table": "orders", "new": lamp(1, state="paid"), "old": lamp(1)})
    ]
    assert changes("DELETE FROM orders WHERE id = 2") == [("orders", "DELETE", {"table": "orders", "old": lamp(2)})]
    assert changes("TRUNCATE orders") == [("orders", "TRUNCATE", {"table": "orders"})]
    assert changes("UPDATE orders SET state = 'paid'", "DELETE FROM orders") == []


@pytest.mark.usefixtures("orders")
def test_a_statement_is_published_once_and_with_its_transaction(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "orders")
    with db.transaction(force_rollback=True):
        db.execute("INSERT INTO orders (id) VALUES (1)")
    assert changes() == []
    db.execute("LISTEN sse_pg")
    assert len(changes("INSERT INTO orders (id) SELECT generate_series(1, 500)")) == 500
    assert len(list(db.notifies(timeout=0))) == 1
    none = (
        "UPDATE orders SET id = id WHERE false",
        "DELETE FROM orders WHERE false",
        "INSERT INTO orders (id) SELECT 1 LIMIT 0",
    )
    assert changes(*none) == []
    assert list(db.notifies(timeout=0)) == [], "a statement that changes no row does not ring"


@pytest.mark.usefixtures("orders")
def test_upsert_merge_and_copy(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "orders", columns=["id", "state"])
    with db.cursor().copy("COPY orders (id) FROM STDIN") as copy:
        copy.write_row((1,))
    assert changes() == [("orders", "INSERT", {"table": "orders", "new": {"id": 1, "state": "placed"}})]
    upsert = "INSERT INTO orders (id) VALUES (1), (2) ON CONFLICT (id) DO UPDATE SET state = 'again'"
    assert sorted(kind + str(payload["new"]["id"]) for _, kind, payload in changes(upsert)) == ["INSERT2", "UPDATE1"]
    merge = (
        "MERGE INTO orders USING (VALUES (1), (2), (3)) AS s (id) ON orders.id = s.id"
        " WHEN MATCHED AND s.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET state = 'merged'"
        " WHEN NOT MATCHED THEN INSERT (id) VALUES (s.id)"
    )
    assert sorted(kind for _, kind, _ in changes(merge)) == ["DELETE", "INSERT", "UPDATE"]


@pytest.mark.usefixtures("orders")
def test_only_the_chosen_operations(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "orders", operations=["insert", "DELETE"])
    assert [kind for _, kind, _ in changes(
        "INSERT INTO orders (id) VALUES (1)", "UPDATE orders SET item = 'x'", "DELETE FROM orders", "TRUNCATE orders"
    )] == ["INSERT", "DELETE"]  # fmt: skip
    publish(db, "orders", "orders", operations=["TRUNCATE"])
    assert [kind for _, kind, _ in changes("INSERT INTO orders (id) VALUES (1)", "TRUNCATE orders")] == ["TRUNCATE"]
    for wrong in ([], ["SELECT"], ["INSERT", None]):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            publish(db, "orders", "orders", operations=wrong)


@pytest.mark.usefixtures("orders")
def test_a_row_enters_and_leaves_the_condition(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "orders", condition="new.state <> 'draft'", columns=["id", "state"])
    assert changes("INSERT INTO orders (id, state) VALUES (1, 'draft'), (2, 'placed')") == [
        ("orders", "INSERT", {"table": "orders", "new": {"id": 2, "state": "placed"}})
    ]
    assert changes("UPDATE orders SET item = 'x' WHERE id = 1") == []
    assert changes("UPDATE orders SET state = 'placed' WHERE id = 1") == [
        ("orders", "INSERT", {"table": "orders", "new": {"id": 1, "state": "placed"}})
    ]
    assert changes("UPDATE orders SET state = 'draft' WHERE id = 2") == [
        ("orders", "DELETE", {"table": "orders", "old": {"id": 2, "state": "placed"}})
    ]
    assert changes("DELETE FROM orders WHERE id = 2") == []


@pytest.mark.parametrize(
    "condition",
    [
        "true) OR (true", "true); DROP TABLE orders; SELECT (true", "true; DROP TABLE orders", "true /*", "'", "$$",
        "old.id = 1", "new.id", "new.nothing", "count(*) > 1", "true THEN true WHEN false", "true -- \n) OR (true",
        "is_fine(new.id)", "",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("orders")
def test_a_condition_that_is_not_one(db: psycopg.Connection, condition: str) -> None:
    db.execute("CREATE FUNCTION is_fine(integer) RETURNS boolean LANGUAGE sql AS 'SELECT true'")
    with pytest.raises(psycopg.Error, match="cannot be used") as refused:
        publish(db, "orders", "orders", condition=condition)
    assert "one row, which is called new" in str(refused.value.diag.message_hint)
    assert db.execute("SELECT count(*) FROM orders").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM sse_pg.published_tables").fetchone() == (0,)


@pytest.mark.usefixtures("orders")
def test_a_condition_may_ask_other_tables(db: psycopg.Connection, changes: Changes) -> None:
    db.execute("CREATE TABLE loud (item text)")
    db.execute("INSERT INTO loud VALUES ('horn 100%')")
    publish(
        db, "orders", "orders", condition="EXISTS (SELECT FROM public.loud l WHERE l.item = new.item) -- % $1 it's fine"
    )
    assert [payload["new"]["id"] for _, _, payload in changes(
        "INSERT INTO orders (id, item) VALUES (1, 'lamp'), (2, 'horn 100%')"
    )] == [2]  # fmt: skip


@pytest.mark.usefixtures("orders")
def test_a_row_moves_to_another_channel(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "customer.{customer}", columns=["id"])
    assert changes("INSERT INTO orders (id, customer) VALUES (1, 7), (2, 7), (3, NULL)") == [
        ("customer.7", "INSERT", {"table": "orders", "new": {"id": 1}}),
        ("customer.7", "INSERT", {"table": "orders", "new": {"id": 2}}),
        ("customer.%null", "INSERT", {"table": "orders", "new": {"id": 3}}),
    ]
    moved = changes("UPDATE orders SET customer = CASE id WHEN 2 THEN 7 ELSE 8 END")
    assert sorted(moved[:2], key=str) == [
        ("customer.%null", "DELETE", {"table": "orders", "old": {"id": 3}}),
        ("customer.7", "DELETE", {"table": "orders", "old": {"id": 1}}),
    ]
    assert sorted(moved[2:], key=str) == [
        ("customer.7", "UPDATE", {"table": "orders", "new": {"id": 2}, "old": {"id": 2}}),
        ("customer.8", "INSERT", {"table": "orders", "new": {"id": 1}}),
        ("customer.8", "INSERT", {"table": "orders", "new": {"id": 3}}),
    ]
    assert sorted(changes("TRUNCATE orders"), key=str) == [
        ("customer.7", "TRUNCATE", {"table": "orders"}),
        ("customer.8", "TRUNCATE", {"table": "orders"}),
    ]


CHANNELS = [
    ("room.{name}", "a", "room.a"),
    ("room.{name}", "a.b", "room.a.b"),
    ("room.{name}", None, "room.%null"),
    ("room.{name}", "%null", "room.%25null"),
    ("room.{name}", "", "room."),
    ("{name}", "", "%empty"),
    ("{name}", "50% off, *now*", "50%25%20off%2C%20%2Anow%2A"),
    ("{name}", "zu\u00a0Hause", "zu%C2%A0Hause"),
    ("{name}", "\u00e4\u3000", "\u00e4%E3%80%80"),
    ("{{{name}}}", "a", "{a}"),
    ("{{name}}", "a", "{name}"),
    ("{Big One}{name}", "b", "trueb"),
    ("{at}", "", "2026-01-02T03:04:05"),
]


@pytest.mark.parametrize(("channel", "name", "filled"), CHANNELS)
def test_every_value_has_a_channel(
    db: psycopg.Connection, changes: Changes, channel: str, name: str | None, filled: str
) -> None:
    db.execute(
        'CREATE TABLE rooms (id integer PRIMARY KEY, name text, "Big One" boolean DEFAULT true,'
        " at timestamp DEFAULT '2026-01-02 03:04:05')"
    )
    publish(db, "rooms", channel)
    db.execute("SET DateStyle = German")
    db.execute("INSERT INTO rooms (id, name) VALUES (1, %s)", [name])
    assert [found for found, _, _ in changes()] == [filled]


def test_long_values_have_different_channels(db: psycopg.Connection, changes: Changes) -> None:
    db.execute("CREATE TABLE rooms (id integer PRIMARY KEY, name text)")
    publish(db, "rooms", "room.{name}")
    db.execute("INSERT INTO rooms VALUES (1, %s), (2, %s), (3, %s)", ["x" * 300, "x" * 301, " " * 5000])
    names = [name for name, _, _ in changes()]
    assert [len(name) for name in names] == [255, 255, 255]
    assert len(set(names)) == 3
    moved = changes("UPDATE rooms SET id = id + 10")
    assert sorted(name for name, _, _ in moved) == sorted([*names, *names])


@pytest.mark.parametrize("channel", ["a b", "", "{id", "id}", "{nothing}", "a,b", "{}", "x" * 256])
@pytest.mark.usefixtures("orders")
def test_a_channel_that_is_none(db: psycopg.Connection, channel: str) -> None:
    with pytest.raises((psycopg.errors.DataError, psycopg.errors.CheckViolation, psycopg.errors.UndefinedColumn)):
        publish(db, "orders", channel)


@pytest.mark.usefixtures("orders")
def test_a_changed_key_is_a_delete_and_an_insert(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "orders", columns=["id", "item"])
    changes("INSERT INTO orders (id, item) VALUES (1, 'a'), (2, 'b')")
    assert changes("UPDATE orders SET id = 9 WHERE id = 1") == [
        ("orders", "DELETE", {"table": "orders", "old": {"id": 1, "item": "a"}}),
        ("orders", "INSERT", {"table": "orders", "new": {"id": 9, "item": "a"}}),
    ]


def test_keys_of_several_columns_and_of_types_with_an_equality_of_their_own(
    db: psycopg.Connection, changes: Changes
) -> None:
    """The key meets as its index compares it: numeric 1.0 is 1, and an operator in the search_path does not matter."""
    db.execute("CREATE TABLE t (a numeric, b varchar(9), c text, PRIMARY KEY (b, a) INCLUDE (c))")
    publish(db, "t", "t")
    changes("INSERT INTO t VALUES (1.0, 'x', 'c')")
    assert changes("UPDATE t SET a = 1, c = 'd'") == [
        ("t", "UPDATE", {"table": "t", "new": {"a": 1, "b": "x", "c": "d"}, "old": {"a": 1, "b": "x", "c": "c"}})
    ]


def test_a_table_without_a_key(db: psycopg.Connection, changes: Changes) -> None:
    said: list[str] = []
    db.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
    db.execute('CREATE SCHEMA "My Shop"')
    db.execute('CREATE TABLE "My Shop"."Wish list" (new integer, old text, r text, "It\'s" text)')
    publish(db, '"My Shop"."Wish list"', "wishes", condition="new.new > 0")
    assert len(said) == 1
    assert "has no primary key" in said[0]
    row = {"old": None, "r": None, "It's": "a"}
    name = "My Shop.Wish list"
    changes('INSERT INTO "My Shop"."Wish list" (new, "It\'s") VALUES (1, \'a\')')
    assert changes('UPDATE "My Shop"."Wish list" SET new = 2') == [
        ("wishes", "UPDATE", {"table": name, "new": {"new": 2, **row}})
    ]
    assert changes('DELETE FROM "My Shop"."Wish list"') == [
        ("wishes", "DELETE", {"table": name, "old": {"new": 2, **row}})
    ]


LARGE = [
    ("text", "repeat('x', 1100000)"),
    ("text", "repeat('x', 300000000)"),
    ("bytea", "decode(repeat('ab', 700000), 'hex')"),
    ("numeric", "1e1000"),
    ("numeric", "1e-1000"),
    ("numeric(900, 2)", "1e800"),
    ("jsonb", """'{"a": 1e1000}'"""),
    ("numeric[]", "ARRAY[1e1000]"),
    ("json", """'{"a": "\\u0000"}'"""),
    ("json", "'1e999999'"),
    ("text[]", "ARRAY[repeat('x', 1100000)]"),
]


@pytest.mark.parametrize(("kind", "value"), LARGE)
def test_a_row_that_is_too_large_is_its_key(db: psycopg.Connection, changes: Changes, kind: str, value: str) -> None:
    db.execute(f"CREATE TABLE t (id integer PRIMARY KEY, v {kind})")  # type: ignore[arg-type]
    publish(db, "t", "t.{id}")
    assert changes(f"INSERT INTO t VALUES (1, {value})") == [
        ("t.1", "INSERT", {"table": "t", "new": {"id": 1}, "truncated": True})
    ]
    assert changes("UPDATE t SET v = NULL") == [
        ("t.1", "UPDATE", {"table": "t", "new": {"id": 1}, "old": {"id": 1}, "truncated": True})
    ]
    assert changes(f"UPDATE t SET id = 2, v = {value}") == [
        ("t.1", "DELETE", {"table": "t", "old": {"id": 1, "v": None}}),
        ("t.2", "INSERT", {"table": "t", "new": {"id": 2}, "truncated": True}),
    ]
    assert changes("DELETE FROM t") == [("t.2", "DELETE", {"table": "t", "old": {"id": 2}, "truncated": True})]


SMALL = [
    ("text", "repeat('0', 500)"),
    ("numeric", "'NaN'"),
    ("numeric", "123456.789"),
    ("float8", "1e308"),
    ("jsonb", """'{"a": [1.50, null]}'"""),
    ("json", """'{"a": 1}'"""),
    ("int4range", "'[1,5)'"),
    ("timestamptz", "'2026-01-01 00:00:00+02'"),
    ("interval", "'1 day'"),
    ("bytea", "'a'"),
]


@pytest.mark.parametrize(("kind", "value"), SMALL)
def test_values_are_as_to_jsonb_writes_them(db: psycopg.Connection, changes: Changes, kind: str, value: str) -> None:
    """Whatever the session that writes has set."""
    db.execute(f"CREATE TABLE t (id integer PRIMARY KEY, v {kind})")  # type: ignore[arg-type]
    publish(db, "t", "t")
    db.execute("SET TimeZone = 'UTC'")
    expected = db.execute(f"SELECT to_jsonb(x) FROM (SELECT 1 AS id, {value}::{kind} AS v) x").fetchone()  # type: ignore[arg-type]
    for setting in ("TimeZone = 'Asia/Tokyo'", "IntervalStyle = iso_8601", "bytea_output = escape", "DateStyle = SQL"):
        db.execute(f"SET {setting}")  # type: ignore[arg-type]
    ((_, _, payload),) = changes(f"INSERT INTO t VALUES (1, {value})")
    assert expected == (payload["new"],)


def test_a_key_that_is_too_large_itself(db: psycopg.Connection, changes: Changes) -> None:
    db.execute("CREATE TABLE t (id text PRIMARY KEY)")
    db.execute("ALTER TABLE sse_pg.events DROP CONSTRAINT events_payload")
    db.execute(
        "ALTER TABLE sse_pg.events ADD CONSTRAINT events_payload CHECK (sse_pg.payload_fits(payload, headers, 1000))"
    )
    publish(db, "t", "t")
    assert changes("INSERT INTO t VALUES (repeat('x', 1500))") == [("t", "INSERT", {"table": "t", "truncated": True})]


def test_generated_and_dropped_columns(db: psycopg.Connection, changes: Changes) -> None:
    kinds = ["STORED", "VIRTUAL"] if db.info.server_version >= 180000 else ["STORED"]
    for kind in kinds:
        db.execute(f"CREATE TABLE {kind} (gone integer, id integer PRIMARY KEY, late text)")  # type: ignore[arg-type]
        db.execute(f"ALTER TABLE {kind} DROP COLUMN gone")  # type: ignore[arg-type]
        db.execute(f"ALTER TABLE {kind} ADD twice integer GENERATED ALWAYS AS (id * 2) {kind}")  # type: ignore[arg-type]
        publish(db, kind, "t.{twice}", condition="new.twice > 2")
        assert changes(f"INSERT INTO {kind} VALUES (1), (2)") == [
            ("t.4", "INSERT", {"table": kind.lower(), "new": {"id": 2, "late": None, "twice": 4}})
        ]
        assert [name for name, _, _ in changes(f"TRUNCATE {kind}")] == ["t.4"]


@pytest.mark.usefixtures("orders")
def test_the_table_changes_afterwards(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "orders.{customer}", condition="new.state <> 'draft' AND id > 0")
    db.execute("ALTER TABLE orders ADD note text DEFAULT 'n'")
    db.execute("ALTER TABLE orders DROP item")
    new = {"id": 1, "state": "placed", "customer": 7, "note": "n"}
    assert changes("INSERT INTO orders (id, customer) VALUES (1, 7)") == [
        ("orders.7", "INSERT", {"table": "orders", "new": new})
    ]
    for used in ("id", "state", "customer"):
        with pytest.raises(psycopg.errors.DependentObjectsStillExist):
            db.execute(f"ALTER TABLE orders DROP {used}")  # type: ignore[arg-type]
    db.execute("ALTER TABLE orders RENAME TO sales")
    db.execute("ALTER TABLE sales RENAME id TO number")
    db.execute("ALTER TABLE sales RENAME state TO status")
    db.execute("ALTER TABLE sales RENAME customer TO buyer")
    new = {"number": 1, "status": "placed", "buyer": 7, "note": "n"}
    for _ in range(2):  # by the statement that is made anew, and by the function that it was asked for again
        assert changes("UPDATE sales SET status = 'paid'") == [
            ("orders.7", "UPDATE", {"table": "sales", "new": {**new, "status": "paid"}, "old": new})
        ]
        assert [kind for _, kind, _ in changes("UPDATE sales SET status = 'draft'")] == ["DELETE"]
        assert changes("DELETE FROM sales", "INSERT INTO sales (number, buyer, status) VALUES (1, 7, 'draft')") == []
        assert [kind for _, kind, _ in changes("UPDATE sales SET status = 'placed'", "TRUNCATE sales")] == [
            "INSERT",
            "TRUNCATE",
        ]
        changes("INSERT INTO sales (number, buyer, status) VALUES (1, 7, 'placed')")
        assert problem(db, "sales") is None
        publish(db, "sales", "orders.{buyer}", condition="new.status <> 'draft' AND number > 0")
    db.execute("ALTER TABLE sales DROP status CASCADE")
    assert "status" in str(problem(db, "sales"))
    with pytest.raises(psycopg.errors.UndefinedColumn, match=r"status.*no longer exists"):
        db.execute("DELETE FROM sales")
    assert db.execute("SELECT sse_pg.stop_publishing('sales')").fetchone() == (True,)
    assert changes("DELETE FROM sales") == []


@pytest.mark.usefixtures("orders")
def test_a_later_call_replaces_an_earlier_one(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "a", columns=["id"], condition="new.id > 1", operations=["INSERT", "UPDATE"])
    publish(db, "orders", "b", operations=["INSERT"])
    assert db.execute(
        "SELECT source::text, channel, columns, condition, operations, key, owner, problem FROM sse_pg.published_tables"
    ).fetchall() == [("orders", "b", None, None, ["INSERT"], ["id"], "postgres", None)]
    assert [(name, kind) for name, kind, _ in changes("INSERT INTO orders (id) VALUES (1)", "DELETE FROM orders")] == [
        ("b", "INSERT")
    ]
    assert db.execute("SELECT count(*) FROM pg_proc WHERE proname LIKE 'sse_pg_orders%'").fetchone() == (1,)


@pytest.mark.usefixtures("orders")
def test_nothing_is_left(db: psycopg.Connection, changes: Changes) -> None:
    before = db.execute("SELECT count(*) FROM pg_proc").fetchone()
    publish(db, "orders", "orders", condition="new.id > 0")
    assert db.execute("SELECT sse_pg.stop_publishing('orders')").fetchone() == (True,)
    assert db.execute("SELECT sse_pg.stop_publishing('orders')").fetchone() == (False,)
    assert db.execute("SELECT count(*) FROM pg_proc").fetchone() == before
    assert db.execute("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'orders'::regclass").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM pg_views WHERE viewname LIKE 'sse_pg%'").fetchone() == (0,)
    assert changes("INSERT INTO orders (id) VALUES (1)") == []
    publish(db, "orders", "orders")
    db.execute("DROP TABLE orders")
    assert db.execute("SELECT count(*) FROM sse_pg.published_tables").fetchone() == (0,)
    db.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    publish(db, "orders", "orders")
    assert db.execute("SELECT count(*) FROM pg_proc WHERE proname LIKE 'sse_pg_orders%'").fetchone() == (1,)


@pytest.mark.usefixtures("orders")
def test_a_new_table_takes_the_name_of_an_old_one(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "old")
    db.execute("ALTER TABLE orders RENAME TO old_orders")
    db.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    publish(db, "orders", "new")
    found = changes("INSERT INTO orders VALUES (1)", "INSERT INTO old_orders (id) VALUES (1)")
    assert [name for name, _, _ in found] == ["new", "old"]


REFUSED = [
    ("CREATE VIEW thing AS SELECT 1 AS a", "is a view"),
    ("CREATE MATERIALIZED VIEW thing AS SELECT 1 AS a", "is a materialized view"),
    ("CREATE TEMP TABLE thing (a integer)", "is a temporary table"),
    ("CREATE UNLOGGED TABLE thing (a integer)", "is unlogged"),
    ("CREATE SEQUENCE thing", "is not a table"),
    ("CREATE TABLE above (a integer); CREATE TABLE thing () INHERITS (above)", "inherits"),
    ("CREATE TABLE thing (a integer); CREATE TABLE below () INHERITS (thing)", "is inherited from"),
    (
        "CREATE TABLE above (a integer) PARTITION BY LIST (a); CREATE TABLE thing PARTITION OF above DEFAULT",
        "publish the changes of public.above",
    ),
    (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
        " CREATE FOREIGN TABLE thing (a integer) SERVER s",
        "is a foreign table",
    ),
    (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
        " CREATE TABLE thing (a integer) PARTITION BY LIST (a);"
        " CREATE FOREIGN TABLE far PARTITION OF thing DEFAULT SERVER s",
        "a partition that is a foreign table",
    ),
]


@pytest.mark.parametrize(("statements", "why"), REFUSED)
def test_what_cannot_be_published(db: psycopg.Connection, statements: str, why: str) -> None:
    for statement in statements.split("; "):
        db.execute(statement)  # type: ignore[arg-type]
    with pytest.raises(psycopg.errors.WrongObjectType, match=why):
        publish(db, "thing", "a")


def test_the_tables_of_the_bus_are_not_published(db: psycopg.Connection) -> None:
    for table in ("sse_pg.events", "sse_pg.subscriptions", "pg_class"):
        with pytest.raises(psycopg.errors.WrongObjectType, match="belongs to the bus or to PostgreSQL"):
            publish(db, table, "a")
    with pytest.raises(psycopg.errors.NullValueNotAllowed):
        db.execute("SELECT sse_pg.publish_changes(NULL, 'a')")
    with pytest.raises(psycopg.errors.UndefinedTable):
        publish(db, "999999", "a")


@pytest.fixture
def parts(db: psycopg.Connection) -> None:
    """A partitioned table whose partitions have other columns in another order, and partitions of their own."""
    for statement in (
        "CREATE TABLE days (id integer, day integer, item text, PRIMARY KEY (id, day)) PARTITION BY LIST (day)",
        "CREATE TABLE day1 PARTITION OF days FOR VALUES IN (1)",
        "CREATE TABLE day2 (item text, gone integer, day integer NOT NULL, id integer NOT NULL)",
        "ALTER TABLE day2 DROP gone",
        "ALTER TABLE days ATTACH PARTITION day2 FOR VALUES IN (2)",
        "CREATE TABLE later PARTITION OF days DEFAULT PARTITION BY LIST (day)",
        "CREATE TABLE day3 PARTITION OF later FOR VALUES IN (3)",
    ):
        db.execute(statement)


def rows(found: list[tuple[str, str, dict[str, Any]]]) -> list[tuple[str, int, int]]:
    """The type of each event, with id and day of its row."""
    for _, _, payload in found:
        assert payload["table"] == "days"
    picked = [(kind, payload.get("new") or payload.get("old") or {"id": 0, "day": 0}) for _, kind, payload in found]
    return [(kind, row["id"], row["day"]) for kind, row in picked]


@pytest.mark.usefixtures("parts")
def test_partitions(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "days", "days")
    assert rows(changes("INSERT INTO days VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')")) == [
        ("INSERT", 1, 1), ("INSERT", 2, 2), ("INSERT", 3, 3)
    ]  # fmt: skip
    assert rows(changes("UPDATE days SET day = 2 WHERE id = 1")) == [("DELETE", 1, 1), ("INSERT", 1, 2)]
    assert rows(changes("UPDATE day2 SET item = 'x' WHERE id = 1")) == [("UPDATE", 1, 2)]
    assert rows(changes("INSERT INTO day3 VALUES (4, 3, 'd')")) == [("INSERT", 4, 3)]
    assert rows(changes("DELETE FROM later WHERE id = 4")) == [("DELETE", 4, 3)]
    assert rows(changes("TRUNCATE later")) == [("DELETE", 3, 3)]
    assert sorted(rows(changes("TRUNCATE day2"))) == [("DELETE", 1, 2), ("DELETE", 2, 2)]
    assert rows(changes("INSERT INTO days VALUES (1, 1, 'a')", "TRUNCATE days")) == [
        ("INSERT", 1, 1),
        ("TRUNCATE", 0, 0),
    ]
    with db.transaction():
        assert rows(changes("TRUNCATE days", "INSERT INTO days VALUES (1, 1, 'a')", "TRUNCATE day1")) == [
            ("TRUNCATE", 0, 0), ("INSERT", 1, 1), ("DELETE", 1, 1)
        ]  # fmt: skip


@pytest.mark.usefixtures("parts")
def test_partitions_come_and_go(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "days", "days")
    assert problem(db, "days") is None
    db.execute("CREATE TABLE day4 PARTITION OF later FOR VALUES IN (4)")
    assert "insert on day4" in str(problem(db, "days"))
    assert rows(changes("INSERT INTO days VALUES (4, 4, 'd')")) == [("INSERT", 4, 4)]
    publish(db, "days", "days")
    assert problem(db, "days") is None
    assert rows(changes("INSERT INTO day4 VALUES (5, 4, 'd')")) == [("INSERT", 5, 4)]
    db.execute("ALTER TABLE days DETACH PARTITION day1")
    assert changes("INSERT INTO day1 VALUES (1, 1, 'a')", "TRUNCATE day1") == []
    assert db.execute("SELECT sse_pg.stop_publishing('day2')").fetchone() == (False,)
    assert db.execute("SELECT sse_pg.stop_publishing('days')").fetchone() == (True,)
    assert changes("INSERT INTO days VALUES (1, 2, 'a')", "INSERT INTO day4 VALUES (6, 4, 'd')") == []


def last(found: list[tuple[str, str, dict[str, Any]]], key: str = "id") -> dict[Any, Any]:
    """What one who follows has at the end, by key."""
    state: dict[Any, Any] = {}
    for _, kind, payload in found:
        if kind == "DELETE":
            state.pop(payload["old"][key], None)
        else:
            state[payload["new"][key]] = payload["new"]
    return state


def table(db: psycopg.Connection, name: str) -> dict[Any, Any]:
    return {row["id"]: row for (row,) in db.execute(f"SELECT to_jsonb(t) FROM {name} t").fetchall()}  # type: ignore[arg-type]


TRIGGERS = [
    ("INSERT", "UPDATE t SET v = v + 100 WHERE id = new.id AND v < 100"),
    ("INSERT", "DELETE FROM t WHERE id = new.id AND v = 2"),
    ("INSERT", "UPDATE t SET v = v + 1 WHERE id < new.id"),
    ("UPDATE", "UPDATE t SET v = v + 100 WHERE id = new.id AND v < 100"),
    ("UPDATE", "DELETE FROM t WHERE id = new.id AND v = 12"),
    ("UPDATE", "UPDATE t SET id = id + 50 WHERE id = new.id AND id < 50"),
    ("DELETE", "INSERT INTO t VALUES (old.id, old.v + 1)"),
]


@pytest.mark.parametrize(("operation", "statement"), TRIGGERS)
def test_triggers_that_change_the_table_in_the_middle(
    db: psycopg.Connection, changes: Changes, operation: str, statement: str
) -> None:
    db.execute("CREATE TABLE t (id integer PRIMARY KEY, v integer)")
    publish(db, "t", "t")
    db.execute(f"CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {statement}; RETURN NULL; END'")  # type: ignore[arg-type]
    db.execute(f"CREATE TRIGGER again AFTER {operation} ON t FOR EACH ROW EXECUTE FUNCTION again()")  # type: ignore[arg-type]
    found = changes(
        "INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)",
        "BEGIN",
        "UPDATE t SET v = v + 10",
        "INSERT INTO t VALUES (4, 4) ON CONFLICT (id) DO UPDATE SET v = 40",
        "COMMIT",
        "DELETE FROM t WHERE id = 3",
    )
    assert table(db, "t") == {row["id"]: row for row in last(found).values()}


@pytest.mark.parametrize(("operation", "statement"), [("INSERT", "new.v := new.v + 1"), ("UPDATE", "new.v := 0")])
def test_triggers_that_change_the_row_before(
    db: psycopg.Connection, changes: Changes, operation: str, statement: str
) -> None:
    db.execute("CREATE TABLE t (id integer PRIMARY KEY, v integer)")
    publish(db, "t", "t")
    db.execute(f"CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {statement}; RETURN new; END'")  # type: ignore[arg-type]
    db.execute(f"CREATE TRIGGER again BEFORE {operation} ON t FOR EACH ROW EXECUTE FUNCTION again()")  # type: ignore[arg-type]
    found = changes("INSERT INTO t VALUES (1, 1)", "UPDATE t SET v = v + 10")
    assert table(db, "t") == last(found)


def test_foreign_keys_that_change_rows(db: psycopg.Connection, changes: Changes) -> None:
    for statement in (
        "CREATE TABLE people (id integer PRIMARY KEY)",
        "CREATE TABLE letters (id integer PRIMARY KEY,"
        " sender integer REFERENCES people ON UPDATE CASCADE ON DELETE SET NULL,"
        " receiver integer REFERENCES people ON UPDATE CASCADE ON DELETE SET NULL)",
        "CREATE TABLE tree (id integer PRIMARY KEY,"
        " parent integer REFERENCES tree ON UPDATE CASCADE ON DELETE CASCADE)",
        "INSERT INTO people VALUES (1), (2)",
    ):
        db.execute(statement)
    publish(db, "letters", "letters")
    found = changes("INSERT INTO letters VALUES (1, 1, 1), (2, 1, 2)", "UPDATE people SET id = 10 WHERE id = 1")
    assert [kind for _, kind, _ in found] == ["INSERT", "INSERT", "UPDATE", "UPDATE"], "one event for each row"
    assert found[2][2]["old"] == {"id": 1, "sender": 1, "receiver": 1}
    found += changes("DELETE FROM people WHERE id = 10")
    assert table(db, "letters") == last(found)
    publish(db, "tree", "tree")
    found = changes("INSERT INTO tree VALUES (1, 1), (2, 1), (3, 2)", "UPDATE tree SET id = 10 WHERE id = 1")
    assert table(db, "tree") == last(found)
    assert [kind for _, kind, _ in changes("DELETE FROM tree WHERE id = 10")] == ["DELETE"] * 3


@pytest.mark.usefixtures("orders")
def test_triggers_that_are_switched_off(db: psycopg.Connection, changes: Changes) -> None:
    publish(db, "orders", "orders")
    db.execute("ALTER TABLE orders DISABLE TRIGGER USER")
    assert "insert on orders" in str(problem(db, "orders"))
    db.execute("ALTER TABLE orders ENABLE TRIGGER USER")  # also the one that is there because of its columns
    assert problem(db, "orders") is None
    assert [kind for _, kind, _ in changes("INSERT INTO orders (id) VALUES (1)", "UPDATE orders SET id = 2")] == [
        "INSERT",
        "DELETE",
        "INSERT",
    ]
    with db.transaction():
        db.execute("SET LOCAL session_replication_role = replica")
        db.execute("DELETE FROM orders")
    assert changes() == [], "as for every trigger that is not ALWAYS"


@pytest.mark.usefixtures("orders")
def test_names_of_the_payload_are_json(db: psycopg.Connection, changes: Changes) -> None:
    """A column can be called anything, and its value too."""
    db.execute('ALTER TABLE orders ADD "a""b\\c%s{}" text')
    publish(db, "orders", "orders", columns=["id", 'a"b\\c%s{}'], condition='new."a""b\\c%s{}" <> \'\\\'')
    db.execute("SET standard_conforming_strings = on")
    db.execute('INSERT INTO orders (id, "a""b\\c%%s{}") VALUES (1, %s)', ['"}, {\n%s'])
    ((_, _, payload),) = changes()
    assert payload == {"table": "orders", "new": {"id": 1, 'a"b\\c%s{}': '"}, {\n%s'}}
    assert json.dumps(payload)


def test_columns_of_every_type_can_be_added_later(db: psycopg.Connection, changes: Changes) -> None:
    db.execute("CREATE TABLE t (id integer PRIMARY KEY)")
    publish(db, "t", "t")
    db.execute("CREATE DOMAIN document AS json")
    short = {"table": "t", "new": {"id": 1}, "truncated": True}
    for kind, value in (*LARGE, ("document", """'"\\u0000"'""")):
        db.execute(f"ALTER TABLE t ADD v {kind}")  # type: ignore[arg-type]
        assert changes(f"INSERT INTO t VALUES (1, {value})") == [("t", "INSERT", short)]
        changes("DELETE FROM t", "ALTER TABLE t DROP v")


def test_one_statement_that_deletes_and_inserts_a_key(db: psycopg.Connection, changes: Changes) -> None:
    db.execute("CREATE TABLE t (id integer PRIMARY KEY, v integer)")
    publish(db, "t", "t")
    found = changes("INSERT INTO t VALUES (1, 1)")
    merge = (
        "MERGE INTO t USING (SELECT * FROM (VALUES (1, 'first'), (1, 'then')) AS s (id, what) ORDER BY what) AS s"
        " ON t.id = s.id AND s.what = 'first' WHEN MATCHED THEN {} WHEN NOT MATCHED THEN INSERT VALUES (s.id, 9)"
    )
    for statement in (
        "WITH gone AS (DELETE FROM t WHERE id = 1 RETURNING v) INSERT INTO t SELECT 1, v + 1 FROM gone",
        "WITH moved AS (UPDATE t SET id = 7 WHERE id = 1 RETURNING v) INSERT INTO t SELECT 1, v + 1 FROM moved",
        merge.format("DELETE"),
        merge.format("UPDATE SET id = 2"),
    ):
        found += changes(statement)
        assert table(db, "t") == last(found), statement
