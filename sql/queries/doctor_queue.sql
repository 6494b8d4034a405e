-- How full the notification queue is, and whose transactions are open: who listens takes nothing in while one is. The
-- queue is the cluster's, so sessions of every database count.
SELECT pg_notification_queue_usage() AS used, a.pid, a.usename::text AS role, a.datname::text AS database,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age,
       pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all,
       format('SELECT pg_terminate_backend(%s)', a.pid) AS mend,
       format('GRANT pg_read_all_stats TO %I', current_user) AS mend_rights
  FROM (SELECT) one
  LEFT JOIN pg_stat_activity a ON a.xact_start IS NOT NULL AND a.backend_type = 'client backend'
       AND a.pid <> pg_backend_pid()
 ORDER BY a.xact_start LIMIT 3
