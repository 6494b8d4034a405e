-- name: authorize
-- Returns one answer for each question, in order. NULL means no.
SELECT coalesce(sse_pg.authorize(q.user_id, q.action, q.channel), false)
  FROM unnest(%(users)s::text[], %(actions)s::text[], %(channels)s::text[])
       WITH ORDINALITY AS q(user_id, action, channel, place)
 ORDER BY q.place

-- name: authorize_timeout
SELECT set_config('statement_timeout', %s, true)

-- name: authorize_shipped
-- Whether authorize() still allows everything, as shipped; then the server does not ask it.
SELECT coalesce((SELECT l.lanname = 'sql' AND p.prosrc ~* '^\s*SELECT\s+true\s*$'
                   FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
                  WHERE p.oid = to_regprocedure('sse_pg.authorize(text,text,text)')), false)
