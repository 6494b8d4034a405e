-- How many connections the server allows to roles that are no superuser, and what this role and database are limited to.
SELECT current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
           - coalesce(current_setting('reserved_connections', true), '0')::integer AS allowed,
       (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid IS NOT NULL) AS used,
       (SELECT nullif(r.rolconnlimit, -1) FROM pg_roles r WHERE r.rolname = current_user) AS role_limit,
       (SELECT nullif(d.datconnlimit, -1) FROM pg_database d WHERE d.datname = current_database()) AS database_limit,
       'ALTER ROLE ' || quote_ident(current_user) || ' CONNECTION LIMIT ' || %(needed)s::integer AS mend_role,
       'ALTER DATABASE ' || quote_ident(current_database()) || ' CONNECTION LIMIT ' || %(needed)s::integer AS mend_database
