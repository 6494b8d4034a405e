-- name: authorize
-- One answer a question, in order. NULL is a no.
SELECT coalesce(sse_pg.authorize(q.user_id, q.action, q.channel), false)
  FROM unnest(%(users)s::text[], %(actions)s::text[], %(channels)s::text[])
       WITH ORDINALITY AS q(user_id, action, channel, place)
 ORDER BY q.place

-- name: authorize_timeout
SELECT set_config('statement_timeout', %s, true)

-- name: authorize_shipped
-- Whether authorize() allows everything, as shipped; then nobody has to be asked.
SELECT coalesce((SELECT l.lanname = 'sql' AND p.prosrc ~* '^\s*SELECT\s+true\s*$'
                   FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
                  WHERE p.oid = to_regprocedure('sse_pg.authorize(text,text,text)')), false)
