-- name: migration_lock
-- One migration at a time. Held before the schema and its lock_class() exist, so the key is made from a name.
SELECT pg_advisory_xact_lock(hashtextextended('sse_pg migrate', 0))

-- name: migration_exists
SELECT to_regclass('sse_pg.migrations')

-- name: migration_table
SELECT number FROM sse_pg.migrations

-- name: migration_applied
INSERT INTO sse_pg.migrations (number, name) VALUES (%s, %s)
