-- name: doctor_begin
-- The time limits of a check hold for its own transaction only: a pooler may give the connection to another client.
SELECT set_config('statement_timeout', '10s', true), set_config('lock_timeout', '2s', true)

-- name: doctor_server
-- What the server and this session are.
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer / 10000 AS major,
       pg_is_in_recovery() AS replica, getdatabaseencoding()::text AS encoding,
       current_user::text AS role, current_database()::text AS database,
       current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit,
       s.setting AS read_only,
       CASE s.source WHEN 'database' THEN format('ALTER DATABASE %I RESET default_transaction_read_only', current_database())
                     WHEN 'user' THEN format('ALTER ROLE %I RESET default_transaction_read_only', current_user)
                     ELSE '' END AS fix_read_only
  FROM pg_settings s WHERE s.name = 'default_transaction_read_only'

-- name: doctor_connections
-- How many connections the server allows for ordinary roles, and the limits of this role and this database.
SELECT current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
           - coalesce(current_setting('reserved_connections', true), '0')::integer AS allowed,
       (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid IS NOT NULL) AS used,
       (SELECT nullif(r.rolconnlimit, -1) FROM pg_roles r WHERE r.rolname = current_user) AS role_limit,
       (SELECT nullif(d.datconnlimit, -1) FROM pg_database d WHERE d.datname = current_database()) AS database_limit,
       'ALTER ROLE ' || quote_ident(current_user) || ' CONNECTION LIMIT ' || %(needed)s::integer AS fix_role,
       'ALTER DATABASE ' || quote_ident(current_database()) || ' CONNECTION LIMIT ' || %(needed)s::integer AS fix_database

-- name: doctor_clock
SELECT extract(epoch FROM clock_timestamp())::float8

-- name: doctor_schema
-- From the catalogs, so that a role without USAGE can ask too.
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = 'sse_pg' AND c.relname = 'migrations'),
       coalesce((SELECT has_schema_privilege(n.oid, 'USAGE') FROM pg_namespace n WHERE n.nspname = 'sse_pg'), false)

-- name: doctor_rights
-- The rights that a server needs, as sql/roles.sql grants them to sse_pg_server, and this role lacks, each with the
-- statement that grants it. From the catalogs by oid, because looking up a name needs USAGE.
WITH needed(kind, what, columns, may) AS (VALUES
    ('table', 'migrations', '{}'::text[], 'SELECT'),
    ('table', 'events', '{}', 'SELECT'),
    ('table', 'log', '{}', 'SELECT'),
    ('table', 'epochs', '{}', 'SELECT'),
    ('table', 'subscriptions', '{}', 'SELECT'),
    ('table', 'servers', '{}', 'SELECT'),
    ('table', 'servers', '{}', 'DELETE'),
    ('table', 'log', '{settled_to,open_first,open_last}', 'UPDATE'),
    ('table', 'servers', '{name,pid,version,migration}', 'INSERT'),
    ('table', 'servers', '{active_connections,position,read_to,updated_at}', 'UPDATE'),
    ('function', 'publish', '{}', 'EXECUTE'),
    ('function', 'publish_many', '{}', 'EXECUTE'),
    ('function', 'position', '{}', 'EXECUTE'),
    ('function', 'visible_position', '{}', 'EXECUTE'),
    ('function', 'publishers', '{}', 'EXECUTE'),
    ('function', 'last_id', '{}', 'EXECUTE'),
    ('function', 'check_epoch', '{}', 'EXECUTE'),
    ('function', 'expect_log', '{}', 'EXECUTE'),
    ('function', 'subscribe', '{}', 'EXECUTE'),
    ('function', 'unsubscribe', '{}', 'EXECUTE'),
    ('function', 'authorize', '{}', 'EXECUTE'),
    ('function', 'live_servers', '{}', 'EXECUTE'),
    ('function', 'partitions', '{}', 'EXECUTE'),
    ('function', 'make_partitions', '{}', 'EXECUTE'),
    ('function', 'purge', '{}', 'EXECUTE')),
lacking(may, what) AS (
    SELECT w.may || coalesce(' (' || nullif(array_to_string(w.columns, ', '), '') || ')', ''), 'sse_pg.' || w.what
      FROM needed w
      JOIN pg_namespace n ON n.nspname = 'sse_pg'
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.what
     WHERE w.kind = 'table'
       AND CASE WHEN w.columns = '{}' THEN NOT has_table_privilege(c.oid, w.may)
                ELSE EXISTS (SELECT FROM unnest(w.columns) k WHERE NOT has_column_privilege(c.oid, k, w.may)) END
    UNION ALL
    SELECT w.may, format('FUNCTION sse_pg.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid))
      FROM needed w
      JOIN pg_namespace n ON n.nspname = 'sse_pg'
      JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = w.what
     WHERE w.kind = 'function' AND NOT has_function_privilege(p.oid, w.may)
    UNION ALL
    SELECT 'USAGE', 'SCHEMA sse_pg' FROM pg_namespace n
     WHERE n.nspname = 'sse_pg' AND NOT has_schema_privilege(n.oid, 'USAGE'))
SELECT l.may || ' on ' || regexp_replace(l.what, '^(SCHEMA|FUNCTION) |\(.*', '', 'g') AS what,
       format('GRANT %s ON %s TO %I', l.may, l.what, current_user) AS fix
  FROM lacking l ORDER BY l.what, l.may

-- name: doctor_open_functions
-- What everybody may call although it reads or changes something; see set_rights().
SELECT p.oid::regprocedure::text AS what, 'SELECT sse_pg.set_rights()' AS fix
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = 'sse_pg' AND NOT (p.provolatile = 'i' AND NOT p.prosecdef)
   AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0)
 ORDER BY 1

-- name: doctor_log
-- Whether the log has its row of facts.
SELECT EXISTS (SELECT FROM sse_pg.log) AS there, 'SELECT sse_pg.check_epoch()' AS fix

-- name: doctor_policies
-- The tables whose row level security applies to this role, or to the owner, with whose rights the functions run.
SELECT c.oid::regclass::text AS which, format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', c.oid::regclass) AS fix
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_roles o ON o.oid = c.relowner
 WHERE n.nspname = 'sse_pg' AND c.relrowsecurity
   AND (row_security_active(c.oid) OR (c.relforcerowsecurity AND NOT o.rolsuper AND NOT o.rolbypassrls))
 ORDER BY 1

-- name: doctor_identity
-- Whether log_identity(), which runs with its owner's rights, can read what changes with a restore and a failover.
SELECT has_function_privilege(p.proowner, 'pg_catalog.pg_control_system()', 'EXECUTE') AS cluster,
       has_function_privilege(p.proowner, 'pg_catalog.pg_walfile_name(pg_lsn)', 'EXECUTE')
           AND has_function_privilege(p.proowner, 'pg_catalog.pg_current_wal_lsn()', 'EXECUTE') AS timeline,
       pg_get_userbyid(p.proowner)::text AS owner,
       format('GRANT EXECUTE ON FUNCTION pg_control_system(), pg_walfile_name(pg_lsn), pg_current_wal_lsn() TO %I',
              pg_get_userbyid(p.proowner)) AS fix
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = 'sse_pg' AND p.proname = 'log_identity'

-- name: doctor_triggers
-- The triggers of the bus that do not fire, each with the statement that makes it fire again. The definitions are those
-- of sql/schema.sql.
WITH needed(on_table, name, definition) AS (VALUES
    ('events', 'announce', 'BEFORE INSERT ON sse_pg.events FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.announce()'),
    ('events', 'close_window', 'AFTER INSERT ON sse_pg.events FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.close_window()'),
    ('subscriptions', 'added', 'AFTER INSERT ON sse_pg.subscriptions REFERENCING NEW TABLE AS changed '
        'FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed()'),
    ('subscriptions', 'removed', 'AFTER DELETE ON sse_pg.subscriptions REFERENCING OLD TABLE AS changed '
        'FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed()'),
    ('subscriptions', 'moved_to', 'AFTER UPDATE ON sse_pg.subscriptions REFERENCING NEW TABLE AS changed '
        'FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed()'),
    ('subscriptions', 'moved_from', 'AFTER UPDATE ON sse_pg.subscriptions REFERENCING OLD TABLE AS changed '
        'FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed()'),
    ('subscriptions', 'emptied', 'AFTER TRUNCATE ON sse_pg.subscriptions '
        'FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.subscriptions_changed()'))
SELECT w.name || ' on sse_pg.' || w.on_table AS which,
       CASE WHEN t.oid IS NULL THEN 'is missing' WHEN t.tgenabled = 'D' THEN 'is disabled'
            WHEN t.tgenabled = 'R' THEN 'fires only if session_replication_role is replica'
            ELSE 'does not fire if session_replication_role is replica' END AS how,
       CASE WHEN t.oid IS NULL THEN format('CREATE TRIGGER %I %s; ', w.name, w.definition) ELSE '' END
           || format('ALTER TABLE sse_pg.%I ENABLE ALWAYS TRIGGER %I', w.on_table, w.name) AS fix
  FROM needed w
  JOIN pg_namespace n ON n.nspname = 'sse_pg'
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.on_table
  LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = w.name AND NOT t.tgisinternal
 WHERE t.oid IS NULL OR t.tgenabled <> 'A'
 ORDER BY 1

-- name: doctor_sequence
-- How the ids are drawn, and whether the sequence is behind the table.
SELECT s.seqcache AS cache, s.seqincrement AS increment, s.seqcycle AS cycle, a.attidentity::text AS identity,
       sse_pg.last_id() AS last, coalesce((SELECT max(e.id) FROM sse_pg.events e), 0) AS highest,
       'ALTER SEQUENCE sse_pg.events_id_seq CACHE 1 INCREMENT 1 NO CYCLE' AS fix_sequence,
       'ALTER TABLE sse_pg.events ALTER COLUMN id SET GENERATED ALWAYS' AS fix_identity,
       'SELECT setval(''sse_pg.events_id_seq'', max(id)) FROM sse_pg.events' AS fix_last
  FROM pg_sequence s
  JOIN pg_class q ON q.oid = s.seqrelid AND q.relname = 'events_id_seq'
  JOIN pg_namespace n ON n.oid = q.relnamespace AND n.nspname = 'sse_pg'
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'events'
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'id'

-- name: doctor_payload
-- The constraint that bounds a payload in the table.
SELECT pg_get_constraintdef(k.oid)
  FROM pg_constraint k
  JOIN pg_class c ON c.oid = k.conrelid AND c.relname = 'events'
  JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'sse_pg'
 WHERE k.conname = 'events_payload'

-- name: doctor_publishers
-- Open transactions that have published, the oldest first. The age is NULL if this role may not see it.
SELECT DISTINCT l.pid, x.gid, coalesce(a.usename, x.owner)::text AS role, a.application_name AS program, a.state,
       extract(epoch FROM clock_timestamp() - coalesce(x.prepared, a.xact_start))::float8 AS age,
       CASE WHEN x.gid IS NULL THEN format('SELECT pg_terminate_backend(%s)', l.pid)
            ELSE format('ROLLBACK PREPARED %L', x.gid) END AS fix
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN pg_locks t ON l.pid IS NULL AND t.pid IS NULL AND t.locktype = 'transactionid'
       AND t.virtualtransaction = l.virtualtransaction
  LEFT JOIN pg_prepared_xacts x ON x.transaction = t.transactionid
 WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
   AND l.classid IN (sse_pg.lock_class('first_low'), sse_pg.lock_class('window_low'))
   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
   AND l.pid IS DISTINCT FROM pg_backend_pid()
 ORDER BY age DESC NULLS FIRST

-- name: doctor_queue
-- How full the notification queue is, and whose transactions are open: a session reads no notifications during one. The
-- cluster has one queue, so sessions of every database count.
SELECT pg_notification_queue_usage() AS used, a.pid, a.usename::text AS role, a.datname::text AS database,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age,
       pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all,
       format('SELECT pg_terminate_backend(%s)', a.pid) AS fix,
       format('GRANT pg_read_all_stats TO %I', current_user) AS fix_rights
  FROM (SELECT) one
  LEFT JOIN pg_stat_activity a ON a.xact_start IS NOT NULL AND a.backend_type = 'client backend'
       AND a.pid <> pg_backend_pid()
 ORDER BY a.xact_start LIMIT 3

-- name: doctor_retention
-- How much is kept in the log, and whether partitions are created and dropped. `kept` counts ids without the jumps
-- where epochs begin. `oldest` is the age in seconds of the newest event of the oldest partition that is full.
WITH facts AS MATERIALIZED (
    SELECT sse_pg.last_id() AS last, l.purged_to FROM sse_pg.log l),
parts AS MATERIALIZED (
    SELECT count(*) AS count, min(p.last_id) AS first_end, coalesce(max(p.last_id), 0) AS top FROM sse_pg.partitions() p)
SELECT f.last, p.count AS partitions, greatest(p.top - f.last, 0) AS room,
       greatest(f.last - f.purged_to - (SELECT coalesce(sum(e.starts_at - greatest(e.settled_to, f.purged_to)), 0)
                                          FROM sse_pg.epochs e WHERE e.starts_at > f.purged_to), 0)::bigint AS kept,
       EXISTS (SELECT FROM sse_pg.events e WHERE e.id > greatest(p.top, f.purged_to)) AS in_default,
       (SELECT extract(epoch FROM clock_timestamp() - n.created_at)::float8
          FROM (SELECT e.created_at FROM sse_pg.events e
                 WHERE e.id <= p.first_end AND p.first_end < f.last ORDER BY e.id DESC LIMIT 1) n) AS oldest,
       'SELECT sse_pg.make_partitions()' AS fix_partitions
  FROM facts f CROSS JOIN parts p

-- name: doctor_ring
-- The age in seconds of the newest event that a ring of this size has dropped; no row if all events fit.
SELECT extract(epoch FROM clock_timestamp() - e.created_at)::float8
  FROM sse_pg.events e WHERE e.id <= sse_pg.last_id() - %(events)s ORDER BY e.id DESC LIMIT 1

-- name: doctor_listen
LISTEN sse_pg_doctor

-- name: doctor_notify
SELECT pg_notify('sse_pg_doctor', %s)

-- name: doctor_unlisten
UNLISTEN sse_pg_doctor
