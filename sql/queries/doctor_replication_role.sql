-- Where session_replication_role keeps triggers from firing: for a role, a database, or (both empty) this session.
SELECT s.setrole::regrole::text AS role, d.datname::text AS database,
       concat_ws(' ', 'ALTER', 'ROLE ' || CASE WHEN s.setrole = 0 THEN 'ALL' ELSE s.setrole::regrole::text END,
                 'IN DATABASE ' || quote_ident(d.datname), 'RESET session_replication_role') AS mend
  FROM pg_db_role_setting s
  LEFT JOIN pg_database d ON d.oid = s.setdatabase
 WHERE (s.setdatabase = 0 OR d.datname = current_database()) AND s.setrole <> 0
   AND EXISTS (SELECT FROM unnest(s.setconfig) c WHERE c = 'session_replication_role=replica')
UNION ALL
SELECT NULL, d.datname, format('ALTER DATABASE %I RESET session_replication_role', d.datname)
  FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
 WHERE d.datname = current_database() AND s.setrole = 0
   AND EXISTS (SELECT FROM unnest(s.setconfig) c WHERE c = 'session_replication_role=replica')
UNION ALL
SELECT NULL, NULL, NULL WHERE current_setting('session_replication_role') = 'replica'
