-- What the server and this session are.
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer / 10000 AS major,
       pg_is_in_recovery() AS replica, getdatabaseencoding()::text AS encoding,
       current_user::text AS role, current_database()::text AS database,
       current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit,
       s.setting AS read_only,
       CASE s.source WHEN 'database' THEN format('ALTER DATABASE %I RESET default_transaction_read_only', current_database())
                     WHEN 'user' THEN format('ALTER ROLE %I RESET default_transaction_read_only', current_user)
                     ELSE '' END AS mend_read_only
  FROM pg_settings s WHERE s.name = 'default_transaction_read_only'
