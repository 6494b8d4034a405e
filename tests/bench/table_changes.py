"""A table whose changes are published, against the usual audit trigger: an UPDATE of many rows, and many of one row."""

from __future__ import annotations

import time

import psycopg

from bench.stack import Stack, cpu_seconds
from bench.table import Result, Rounds

ROWS = 100_000
SINGLE = 3_000
TABLE = f"""
CREATE TABLE orders (id bigint PRIMARY KEY, customer integer NOT NULL, state text NOT NULL, amount numeric(10, 2) NOT NULL,
                     note text, changed_at timestamptz NOT NULL DEFAULT now());
INSERT INTO orders SELECT g, g % 1000, 'placed', g / 100.0, repeat('a note ', 5), now() FROM generate_series(1, {ROWS}) g;
"""
AUDIT = """
CREATE TABLE audit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(),
                    by name NOT NULL DEFAULT current_user, table_name text NOT NULL, operation text NOT NULL,
                    old_row jsonb, new_row jsonb);
"""
BY_ROW = f"""{TABLE}{AUDIT}
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit (table_name, operation, old_row, new_row)
    VALUES (TG_TABLE_NAME, TG_OP, CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
            CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION note();
"""
BY_STATEMENT = f"""{TABLE}{AUDIT}
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit (table_name, operation, old_row, new_row)
    SELECT TG_TABLE_NAME, TG_OP, to_jsonb(o), to_jsonb(n) FROM new_rows n FULL JOIN old_rows o USING (id);
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER UPDATE ON orders REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION note();
"""
SETUPS = {
    "plain": TABLE,
    "audit_rows": BY_ROW,
    "audit_statements": BY_STATEMENT,
    "published": f"{TABLE} SELECT sse_pg.publish_changes('orders', 'orders')",
    "published_by_customer": f"{TABLE} SELECT sse_pg.publish_changes('orders', 'customer.{{customer}}', NULL, "
    "'new.state <> ''draft''')",
}
LABELS = {
    "plain": "the table alone",
    "audit_rows": "a row-level trigger that inserts old and new row as jsonb into an audit table",
    "audit_statements": "the same as a statement-level trigger",
    "published": "publish_changes('orders', 'orders')",
    "published_by_customer": "publish_changes() with a channel for each customer, and a condition",
}
MANY = "UPDATE orders SET state = %s, changed_at = now()"
ONE = "UPDATE orders SET state = %s, changed_at = now() WHERE id = %s"


def run(rounds: int = 3) -> Result:
    """Measure each way in turns: the processor time of the backend, and the time until the commit is answered."""
    result = Result(
        "tables", f"An UPDATE of {ROWS:,} rows, and {SINGLE:,} of one row, whose changes are kept or published"
    )
    found = Rounds()
    with Stack({"max_wal_size": "8GB", "autovacuum": "off"}) as stack:
        for name, statement in SETUPS.items():
            stack.copy_database(name, statement)
        for number in range(rounds):
            for name in SETUPS if number % 2 == 0 else reversed(SETUPS):
                _measure(stack, found, name, number)
    audit = "audit_rows"
    for what, unit, factor in (("many", "ms", 1e3), ("one", "µs", 1e6 / SINGLE)):
        for name, label in LABELS.items():
            result.add(
                f"{'one row' if what == 'one' else f'{ROWS:,} rows'}: {label}",
                f"{found.median(f'{name} {what} cpu') * factor:,.0f} {unit} of processor time, "
                f"{found.median(f'{name} {what} wall') * factor:,.0f} {unit}",
            )
    for name in ("published", "published_by_customer"):
        for against in (audit, "audit_statements"):
            ratio = found.ratio(f"{name} many wall", f"{against} many wall")
            result.add(
                f"{ROWS:,} rows, {name} to {against}",
                f"{ratio:.2f}; processor time {found.ratio(f'{name} many cpu', f'{against} many cpu'):.2f}",
                "at most 2" if against == audit else "",
                ratio <= 2 if against == audit else None,
            )
    result.data = {"rounds": dict(found.values)}
    return result


def _measure(stack: Stack, found: Rounds, name: str, number: int) -> None:
    with psycopg.connect(stack.database(name), autocommit=True) as conn:
        conn.execute("VACUUM orders")
        conn.execute("CHECKPOINT")
        conn.execute(ONE, ["warm", 1])
        for what in ("many", "one"):
            began, used = time.perf_counter(), cpu_seconds(conn.info.backend_pid)
            if what == "many":
                conn.execute(MANY, [f"round {number}"])
            else:
                for order in range(1, SINGLE + 1):
                    conn.execute(ONE, [f"again {number}", order])
            found.add(f"{name} {what} wall", time.perf_counter() - began)
            found.add(f"{name} {what} cpu", cpu_seconds(conn.info.backend_pid) - used)
        conn.execute("TRUNCATE audit" if name.startswith("audit") else "SELECT 1")
