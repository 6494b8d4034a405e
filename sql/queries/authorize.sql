-- One answer a question, in order. NULL is a no.
SELECT coalesce(sse_pg.authorize(q.user_id, q.action, q.channel), false)
  FROM unnest(%(users)s::text[], %(actions)s::text[], %(channels)s::text[])
       WITH ORDINALITY AS q(user_id, action, channel, place)
 ORDER BY q.place
