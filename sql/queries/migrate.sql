-- name: migration_limits
-- No time limit of the database or the role ends a migration: each part has a deadline of its own. PostgreSQL 15 and 16 do
-- not know transaction_timeout. plpgsql.extra_errors would refuse functions that are right.
SELECT set_config(s.name, s.value, true)
  FROM (VALUES ('statement_timeout', '0'), ('idle_in_transaction_session_timeout', '0'), ('transaction_timeout', '0'),
               ('plpgsql.extra_errors', 'none'), ('plpgsql.extra_warnings', 'none')) AS s(name, value)
 WHERE current_setting(s.name, true) IS NOT NULL

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

-- name: migration_is_standby
SELECT pg_is_in_recovery()

-- name: migration_table
SELECT number, name FROM sse_pg.migrations

-- name: migration_schema_version
SELECT sse_pg.schema_version()

-- name: migration_record
-- Notes again which migrations the schema has.
INSERT INTO sse_pg.migrations (number, name)
SELECT s.number, s.name FROM unnest(%(numbers)s::integer[], %(names)s::text[]) AS s(number, name)
 WHERE s.number <= sse_pg.schema_version()

-- name: migration_step_begin
-- While a step waits for a table, publishers wait behind it. So it waits only briefly, and is tried again. PostgreSQL
-- refuses to create a partitioned table if default_tablespace names the tablespace that the database has anyway. Later
-- partitions still go to the one that the database or the role sets.
SELECT set_config('lock_timeout', %s, true), set_config('default_tablespace', '', true)

-- name: migration_older_servers
-- The servers that are up and whose code does not know this migration.
SELECT name, pid, version FROM sse_pg.live_servers() WHERE migration < %s

-- name: migration_owner
-- Whether this role may grant and revoke the rights on the functions.
SELECT pg_has_role(p.proowner, 'USAGE') FROM pg_proc p WHERE p.oid = to_regprocedure('sse_pg.set_rights()')

-- name: migration_rights
SELECT sse_pg.set_rights()

-- name: migration_epoch
-- Makes the row of sse_pg.log again if it is missing, and begins an epoch if the log was restored, copied or moved here. A
-- log that no server has read yet stays as it is: nobody has a cursor of it, and it may be a template.
SELECT sse_pg.check_epoch() WHERE NOT EXISTS (SELECT FROM sse_pg.log WHERE identity = '')

-- name: migration_ungranted
-- The group roles of sql/roles.sql that may not use the schema, if everybody may call its functions, as after pg_restore
-- --no-acl. In another case the roles may be those of another database.
SELECT r.rolname FROM pg_roles r
 WHERE r.rolname IN ('sse_pg_publisher', 'sse_pg_subscriber', 'sse_pg_server')
   AND NOT has_schema_privilege(r.oid, 'sse_pg', 'USAGE')
   AND EXISTS (SELECT FROM pg_proc p WHERE p.oid = to_regprocedure('sse_pg.begin_epoch()') AND p.proacl IS NULL)
 ORDER BY 1

-- name: migration_applied
INSERT INTO sse_pg.migrations (number, name) VALUES (%s, %s)

-- name: migration_script_begin
-- The begin of what `sse-pg migrate --sql` prints. It runs in the transaction of another tool, which goes on afterwards,
-- so the settings come back at the end. PostgreSQL refuses to create a partitioned table if default_tablespace names the
-- tablespace that the database has anyway.
SELECT pg_advisory_xact_lock(hashtextextended('sse_pg migrate', 0));
SELECT set_config('sse_pg.search_path', current_setting('search_path'), true),
       set_config('sse_pg.default_tablespace', current_setting('default_tablespace'), true),
       set_config('search_path', 'pg_catalog, pg_temp', true),
       set_config('default_tablespace', '', true);

-- name: migration_script_note
-- Notes the step as applied.
INSERT INTO sse_pg.migrations (number, name) VALUES (0, 'NAME');

-- name: migration_script_end
SELECT sse_pg.set_rights();
SELECT set_config('search_path', current_setting('sse_pg.search_path', true), true),
       set_config('default_tablespace', current_setting('sse_pg.default_tablespace', true), true);
