-- Transactions that have published and are not over, the oldest first. Since when is NULL where this role may not see it.
SELECT DISTINCT l.pid, x.gid, coalesce(a.usename, x.owner)::text AS role, a.application_name AS program, a.state,
       extract(epoch FROM clock_timestamp() - coalesce(x.prepared, a.xact_start))::float8 AS age,
       CASE WHEN x.gid IS NULL THEN format('SELECT pg_terminate_backend(%s)', l.pid)
            ELSE format('ROLLBACK PREPARED %L', x.gid) END AS mend
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN pg_locks t ON l.pid IS NULL AND t.pid IS NULL AND t.locktype = 'transactionid'
       AND t.virtualtransaction = l.virtualtransaction
  LEFT JOIN pg_prepared_xacts x ON x.transaction = t.transactionid
 WHERE l.locktype = 'advisory' AND l.classid IN (1936941617, 1936941623) AND l.objsubid = 2 AND l.granted
   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
   AND l.pid IS DISTINCT FROM pg_backend_pid()
 ORDER BY age DESC NULLS FIRST
