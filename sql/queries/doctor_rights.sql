-- What this role lacks of what a server does, as sql/roles.sql grants it to sse_pg_server, each with the statement that
-- grants it. From the catalogs by oid: a name that may not be looked up would be an error.
WITH needed(kind, what, columns, may) AS (VALUES
    ('table', 'migrations', '{}'::text[], 'SELECT'),
    ('table', 'events', '{}', 'SELECT'),
    ('table', 'log', '{}', 'SELECT'),
    ('table', 'epochs', '{}', 'SELECT'),
    ('table', 'subscriptions', '{}', 'SELECT'),
    ('table', 'servers', '{}', 'SELECT'),
    ('table', 'servers', '{}', 'DELETE'),
    ('table', 'log', '{settled_to,open_first,open_last}', 'UPDATE'),
    ('table', 'servers', '{name,pid,version}', 'INSERT'),
    ('table', 'servers', '{active_connections,position,updated_at}', 'UPDATE'),
    ('function', 'publish', '{}', 'EXECUTE'),
    ('function', 'publish_many', '{}', 'EXECUTE'),
    ('function', 'position', '{}', 'EXECUTE'),
    ('function', 'visible_position', '{}', 'EXECUTE'),
    ('function', 'publishers', '{}', 'EXECUTE'),
    ('function', 'last_id', '{}', 'EXECUTE'),
    ('function', 'check_epoch', '{}', 'EXECUTE'),
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
       format('GRANT %s ON %s TO %I', l.may, l.what, current_user) AS mend
  FROM lacking l ORDER BY l.what, l.may
