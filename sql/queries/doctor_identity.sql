-- Whether log_identity(), which runs with its owner's rights, can read the parts that tell a restore and a failover.
SELECT has_function_privilege(p.proowner, 'pg_catalog.pg_control_system()', 'EXECUTE') AS cluster,
       has_function_privilege(p.proowner, 'pg_catalog.pg_walfile_name(pg_lsn)', 'EXECUTE')
           AND has_function_privilege(p.proowner, 'pg_catalog.pg_current_wal_lsn()', 'EXECUTE') AS timeline,
       pg_get_userbyid(p.proowner)::text AS owner,
       format('GRANT EXECUTE ON FUNCTION pg_control_system(), pg_walfile_name(pg_lsn), pg_current_wal_lsn() TO %I',
              pg_get_userbyid(p.proowner)) AS mend
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = 'sse_pg' AND p.proname = 'log_identity'
