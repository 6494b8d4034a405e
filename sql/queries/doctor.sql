-- name: doctor_begin
-- The time limits of a check hold for its own transaction only: a pooler may give the connection to another client.
SELECT set_config('statement_timeout', '10s', true), set_config('lock_timeout', '2s', true)

-- name: doctor_server
-- Facts about the server and this session.
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

-- name: doctor_writable
-- Whether this server accepts writes. When it started tells it from another one, also if they are copies of each other.
SELECT pg_postmaster_start_time()::text AS started,
       NOT pg_is_in_recovery() AND s.setting = 'off' AS accepts_writes
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
-- The rights that a server needs (those that sql/roles.sql grants to sse_pg_server) and this role lacks, each with the
-- statement that grants it. From the catalogs by oid, because looking up a name needs USAGE.
WITH needed(kind, what, columns, may) AS (VALUES
    ('table', 'migrations', '{}'::text[], 'SELECT'),
    ('table', 'events', '{}', 'SELECT'),
    ('table', 'log', '{}', 'SELECT'),
    ('table', 'epochs', '{}', 'SELECT'),
    ('table', 'subscriptions', '{}', 'SELECT'),
    ('table', 'servers', '{}', 'SELECT'),
    ('table', 'published_tables', '{}', 'SELECT'),
    ('table', 'expired_channels', '{}', 'SELECT'),
    ('table', 'deletions', '{}', 'SELECT'),
    ('table', 'retention', '{}', 'SELECT'),
    ('table', 'stream_questions', '{}', 'SELECT'),
    ('table', 'stream_answers', '{}', 'SELECT'),
    ('table', 'stream_answers', '{}', 'INSERT'),
    ('table', 'servers', '{}', 'DELETE'),
    ('table', 'log', '{settled_to,open_first,open_last}', 'UPDATE'),
    ('table', 'servers', '{name,pid,version,migration,alive_until}', 'INSERT'),
    ('table', 'servers', '{active_connections,position,read_to,updated_at,alive_until}', 'UPDATE'),
    ('function', 'publish', '{}', 'EXECUTE'),
    ('function', 'publish_many', '{}', 'EXECUTE'),
    ('function', 'finish', '{}', 'EXECUTE'),
    ('function', 'last_events', '{}', 'EXECUTE'),
    ('function', 'position', '{}', 'EXECUTE'),
    ('function', 'visible_position', '{}', 'EXECUTE'),
    ('function', 'publishers', '{}', 'EXECUTE'),
    ('function', 'last_id', '{}', 'EXECUTE'),
    ('function', 'notifications_since', '{}', 'EXECUTE'),
    ('function', 'read_marked', '{}', 'EXECUTE'),
    ('function', 'messages_from', '{}', 'EXECUTE'),
    ('function', 'write_mark', '{}', 'EXECUTE'),
    ('function', 'copy_identity', '{}', 'EXECUTE'),
    ('function', 'copying_subscription', '{}', 'EXECUTE'),
    ('function', 'check_epoch', '{}', 'EXECUTE'),
    ('function', 'confirm_epochs', '{}', 'EXECUTE'),
    ('function', 'expect_log', '{}', 'EXECUTE'),
    ('function', 'subscribe', '{}', 'EXECUTE'),
    ('function', 'unsubscribe', '{}', 'EXECUTE'),
    ('function', 'authorize', '{}', 'EXECUTE'),
    ('function', 'disconnect', '{}', 'EXECUTE'),
    ('function', 'ask_for_streams', '{}', 'EXECUTE'),
    ('function', 'open_streams', '{}', 'EXECUTE'),
    ('function', 'live_servers', '{}', 'EXECUTE'),
    ('function', 'consumer_states', '{}', 'EXECUTE'),
    ('function', 'read_above', '{}', 'EXECUTE'),
    ('function', 'read_open', '{}', 'EXECUTE'),
    ('function', 'read_page', '{}', 'EXECUTE'),
    ('function', 'read_page_desc', '{}', 'EXECUTE'),
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
-- The functions that every role may call although they read or change something; see set_rights().
SELECT p.oid::regprocedure::text AS what, 'SELECT sse_pg.set_rights()' AS fix
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = 'sse_pg' AND NOT (p.provolatile = 'i' AND NOT p.prosecdef)
   AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0)
 ORDER BY 1

-- name: doctor_log
-- Whether the log has its row of facts.
SELECT EXISTS (SELECT FROM sse_pg.log) AS there, 'SELECT sse_pg.check_epoch()' AS fix

-- name: doctor_moved
-- Whether a subscription copies events into the log, and whether the log is another one than a server noted last.
SELECT s.subname AS subscription, 'DROP SUBSCRIPTION ' || quote_ident(s.subname) AS fix_subscription,
       CASE WHEN pg_is_in_recovery() THEN false
            ELSE l.identity <> '' AND l.identity <> sse_pg.expect_log(NULL) END AS is_another,
       'SELECT sse_pg.check_epoch()' AS fix
  FROM sse_pg.log l
  LEFT JOIN pg_subscription s ON s.subenabled AND EXISTS (
      SELECT FROM pg_subscription_rel r
        LEFT JOIN pg_inherits i ON i.inhrelid = r.srrelid
       WHERE r.srsubid = s.oid AND 'sse_pg.events'::regclass IN (r.srrelid, i.inhparent))
 ORDER BY 1 LIMIT 1

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
    ('events', 'emptied', 'AFTER TRUNCATE ON sse_pg.events FOR EACH STATEMENT EXECUTE FUNCTION sse_pg.events_emptied()'),
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
-- How full the notification queue is, and the oldest open transactions: a session reads no notifications during its
-- transaction. The cluster has one queue, so sessions of every database count.
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

-- name: doctor_consumers
-- The named consumers, the one with the most ids above the oldest event that it lacks first. The age is in seconds.
SELECT s.name, s.lag, s.ids_behind, extract(epoch FROM clock_timestamp() - s.oldest_at)::float8 AS age,
       format('SELECT sse_pg.drop_consumer(%L)', s.name) AS fix
  FROM sse_pg.consumer_states() s ORDER BY s.ids_behind DESC, s.name

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

-- name: doctor_functions
-- Functions of the schema that have changed since they were created: another role owns them than the schema, they run with
-- their owner's rights but set no search_path, or a role may call them that must not.
WITH ours AS (
    SELECT p.oid::regprocedure AS signature, p.proname, p.proowner, p.proacl, p.proconfig, p.prosecdef, n.nspowner
      FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'sse_pg')
SELECT format('%s belongs to %s, and the schema to %s', o.signature, pg_get_userbyid(o.proowner),
              pg_get_userbyid(o.nspowner)) AS what,
       format('ALTER FUNCTION %s OWNER TO %I', o.signature, pg_get_userbyid(o.nspowner)) AS fix
  FROM ours o WHERE o.proowner <> o.nspowner
 UNION ALL
SELECT format('%s runs with the rights of its owner, but with the search_path of its caller', o.signature),
       format('ALTER FUNCTION %s SET search_path = pg_catalog, pg_temp', o.signature)
  FROM ours o
 WHERE o.prosecdef AND NOT EXISTS (SELECT FROM unnest(o.proconfig) c WHERE c LIKE 'search\_path=%')
 UNION ALL
SELECT format('%s may be called by %s', o.signature, a.grantee::regrole),
       format('REVOKE ALL ON FUNCTION %s FROM %s', o.signature, a.grantee::regrole)
  FROM ours o CROSS JOIN LATERAL aclexplode(o.proacl) a
 WHERE o.proname IN ('begin_epoch', 'log_identity', 'set_rights') AND a.grantee NOT IN (0, o.proowner)
 ORDER BY 1

-- name: doctor_published
-- The tables whose changes are published, those with a problem first.
SELECT p.source::text AS source, p.problem FROM sse_pg.published_tables p ORDER BY p.problem IS NULL, 1

-- name: doctor_user_triggers
-- Triggers on sse_pg.events that do not belong to the bus, except for those of foreign keys.
SELECT t.tgname AS name, t.tgfoid::regprocedure::text AS function,
       (t.tgtype::integer & 7) = 7 AS before_insert     -- of a row
  FROM pg_trigger t
  JOIN pg_class c ON c.oid = t.tgrelid AND c.relname = 'events'
  JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'sse_pg'
 WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgname NOT IN ('announce', 'close_window', 'emptied')
 ORDER BY 1

-- name: doctor_user_rules
-- Rules on sse_pg.events. The bus has none.
SELECT r.rulename AS name, format('DROP RULE %I ON sse_pg.events', r.rulename) AS fix
  FROM pg_rewrite r
  JOIN pg_class c ON c.oid = r.ev_class AND c.relname = 'events'
  JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'sse_pg'
 WHERE r.ev_enabled <> 'D'
 ORDER BY 1

-- name: doctor_event_triggers
-- Event triggers that fire when maintenance creates, attaches and drops partitions, and whose functions set no
-- search_path: maintenance runs with pg_catalog alone, so an unqualified name in them is not found.
SELECT e.evtname AS name, e.evtfoid::regprocedure::text AS function,
       format('ALTER FUNCTION %s SET search_path = %I, pg_temp', e.evtfoid::regprocedure, n.nspname) AS fix
  FROM pg_event_trigger e
  JOIN pg_proc p ON p.oid = e.evtfoid
  JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE e.evtenabled <> 'D' AND e.evtevent IN ('ddl_command_start', 'ddl_command_end', 'sql_drop', 'table_rewrite')
   AND (e.evttags IS NULL OR e.evttags && ARRAY['CREATE TABLE', 'ALTER TABLE', 'DROP TABLE'])
   AND NOT EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c LIKE 'search\_path=%')
   AND EXISTS (SELECT FROM pg_language l WHERE l.oid = p.prolang AND l.lanname NOT IN ('c', 'internal'))
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = e.oid AND d.deptype = 'e')
 ORDER BY 1

-- name: doctor_collations
-- Columns of indexes in the schema that are sorted by a collation of the operating system or ICU. The default collation
-- is the database's.
SELECT DISTINCT format('%s (%s) by %s', i.indrelid::regclass, coalesce(a.attname, 'an expression'), k.collname) AS what,
       CASE WHEN a.attname IS NULL OR t.relispartition THEN ''
            ELSE format('ALTER TABLE %s ALTER COLUMN %I TYPE %s COLLATE "C"', i.indrelid::regclass, a.attname,
                        format_type(a.atttypid, a.atttypmod)) END AS fix
  FROM pg_index i
  JOIN pg_class t ON t.oid = i.indrelid
  JOIN pg_namespace n ON n.oid = t.relnamespace AND n.nspname = 'sse_pg'
 CROSS JOIN LATERAL generate_series(0, i.indnkeyatts - 1) AS g(place)
  JOIN pg_collation k ON k.oid = i.indcollation[g.place]
  LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[g.place] AND a.attnum > 0
 WHERE NOT t.relispartition
   AND CASE WHEN k.collprovider <> 'd' THEN k.collprovider = 'i'
                 OR (k.collprovider = 'c' AND k.collcollate NOT IN ('C', 'POSIX'))
            ELSE (SELECT d.datlocprovider = 'i' OR (d.datlocprovider = 'c' AND d.datcollate NOT IN ('C', 'POSIX'))
                    FROM pg_database d WHERE d.datname = current_database()) END
 ORDER BY 1

-- name: doctor_inherited
-- Settings of this database and this role that change what the bus or its publishers do. Those that a server sets anew on
-- each of its connections are left out.
SELECT split_part(c.setting, '=', 1) AS name, c.setting,
       CASE WHEN s.setrole = 0 THEN format('database %s', current_database())
            ELSE format('role %s', current_user) END AS source,
       CASE WHEN s.setrole = 0 THEN format('ALTER DATABASE %I RESET %s', current_database(), split_part(c.setting, '=', 1))
            WHEN s.setdatabase = 0 THEN format('ALTER ROLE %I RESET %s', current_user, split_part(c.setting, '=', 1))
            ELSE format('ALTER ROLE %I IN DATABASE %I RESET %s', current_user, current_database(),
                        split_part(c.setting, '=', 1)) END AS fix
  FROM pg_db_role_setting s
 CROSS JOIN LATERAL unnest(s.setconfig) AS c(setting)
 WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
   AND s.setrole IN (0, (SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user))
   AND (split_part(c.setting, '=', 1) IN ('role', 'session_replication_role', 'plpgsql.variable_conflict',
                                          'row_security', 'default_tablespace', 'temp_tablespaces')
        OR c.setting LIKE 'sse\_pg.%')
 ORDER BY 2

-- name: doctor_locks
-- The sessions that hold advisory locks of the bus but are neither servers nor publishers. A server holds the lock of its
-- row in sse_pg.servers; a publisher has a transaction id, or has just begun its first statement. Maintenance and migrations
-- hold their locks for one transaction.
WITH held AS MATERIALIZED (
    SELECT k.pid, k.virtualtransaction, k.mode, k.objid::bigint AS key, c.name AS class
      FROM pg_locks k
      JOIN (VALUES ('tail'), ('server'), ('maintenance'), ('first_low'), ('first_high'), ('window_low'),
                   ('window_high'), ('window_open')) AS c(name) ON k.classid = sse_pg.lock_class(c.name)
     WHERE k.locktype = 'advisory' AND k.objsubid = 2 AND k.granted AND k.pid <> pg_backend_pid()
       AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    UNION ALL
    SELECT k.pid, k.virtualtransaction, k.mode, 0, 'migration'
      FROM pg_locks k, hashtextextended('sse_pg migrate', 0) AS h(key)
     WHERE k.locktype = 'advisory' AND k.objsubid = 1 AND k.granted AND k.pid <> pg_backend_pid()
       AND k.classid::bigint = (h.key >> 32) & 4294967295 AND k.objid::bigint = h.key & 4294967295
       AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())),
facts AS (
    SELECT h.*, a.usename::text AS role, a.application_name AS program,
           coalesce(a.state = 'active' AND a.query_start > clock_timestamp() - interval '2 seconds', false) AS passing,
           extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age
      FROM held h LEFT JOIN pg_stat_activity a ON a.pid = h.pid)
SELECT f.pid, f.role, f.program, array_agg(DISTINCT f.class ORDER BY f.class) AS classes,
       bool_or(f.mode = 'ExclusiveLock') AS exclusive, format('SELECT pg_terminate_backend(%%s)', f.pid) AS fix
  FROM facts f
 WHERE NOT f.passing
   AND CASE
       WHEN f.class IN ('tail', 'server') THEN NOT EXISTS (
           SELECT FROM held s JOIN sse_pg.servers v ON v.id = s.key WHERE s.class = 'server' AND s.pid = f.pid)
       WHEN f.class IN ('maintenance', 'migration') THEN f.age IS NULL OR f.age >= %(old_s)s
       ELSE NOT EXISTS (SELECT FROM pg_locks t WHERE t.locktype = 'transactionid' AND t.pid = f.pid AND t.granted
                           AND t.virtualtransaction = f.virtualtransaction)
            AND (f.age IS NULL OR f.age >= %(old_s)s) END
 GROUP BY f.pid, f.role, f.program
 ORDER BY f.pid

-- name: doctor_kept
-- The channels with their own retention, those that are most overdue first.
SELECT r.pattern, extract(epoch FROM r.late)::float8 AS late FROM sse_pg.retention r ORDER BY r.late DESC NULLS LAST

-- name: doctor_standby
-- What a primary and its standby say about the log.
SELECT sse_pg.copy_identity() AS identity, pg_is_in_recovery() AS is_standby, l.settled_to,
       extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS seconds
  FROM sse_pg.log l

-- name: doctor_questions
-- What the doctor asks the access rule: about a user and a channel that nobody has, and about the newest subscription.
SELECT 'sse-pg.doctor' AS user_id, 'sse-pg.doctor' AS channel
UNION ALL
(SELECT user_id, channel FROM sse_pg.subscriptions ORDER BY created_at DESC LIMIT 1)
