-- Whether authorize() allows everything, as shipped; then nobody has to be asked.
SELECT coalesce((SELECT l.lanname = 'sql' AND p.prosrc ~* '^\s*SELECT\s+true\s*$'
                   FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
                  WHERE p.oid = to_regprocedure('sse_pg.authorize(text,text,text)')), false)
