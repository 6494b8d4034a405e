-- name: migration_lock
-- Allows one migration at a time. The lock is taken before the schema and its lock_class() exist, so its key is the hash of
-- a name. Any session can hold the lock, so the wait is short; the program then reports who holds it, and tries again.
SELECT set_config('lock_timeout', '0', true)
  FROM (SELECT pg_advisory_xact_lock(hashtextextended('sse_pg migrate', 0)) FROM set_config('lock_timeout', %s, true)
        OFFSET 0) taken

-- name: migration_lock_holders
SELECT l.pid, coalesce(a.usename::text, 'an unknown role') FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 CROSS JOIN (SELECT hashtextextended('sse_pg migrate', 0)) AS k(key)
 WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
   AND l.classid::bigint = (k.key >> 32) & 4294967295 AND l.objid::bigint = k.key & 4294967295
   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())

-- name: migration_exists
SELECT to_regclass('sse_pg.migrations')

-- name: migration_table
SELECT number, name FROM sse_pg.migrations

-- name: migration_note
-- The statement that notes these migrations as applied.
SELECT format('INSERT INTO sse_pg.migrations (number, name) VALUES %%s', string_agg(format('(%%s, %%L)', s.number, s.name), ', '))
       AS statement
  FROM unnest(%(numbers)s::integer[], %(names)s::text[]) AS s(number, name)

-- name: migration_step_begin
-- While a step waits for a table, publishers wait behind it. So it waits only briefly, and is tried again. PostgreSQL
-- refuses to create a partitioned table if default_tablespace names the tablespace that the database has anyway. Later
-- partitions still go to the one that the database or the role sets.
SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', '0', true),
       set_config('default_tablespace', '', true)

-- name: migration_older_servers
-- The servers that are up and whose code does not know this migration.
SELECT name, pid, version FROM sse_pg.live_servers() WHERE migration < %s

-- name: migration_owner
-- Whether this role may grant and revoke the rights on the functions.
SELECT pg_has_role(p.proowner, 'USAGE') FROM pg_proc p WHERE p.oid = to_regprocedure('sse_pg.set_rights()')

-- name: migration_rights
SELECT sse_pg.set_rights()

-- name: migration_applied
INSERT INTO sse_pg.migrations (number, name) VALUES (%s, %s)
