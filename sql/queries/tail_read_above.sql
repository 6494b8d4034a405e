-- tail_read.sql where nothing is open: the usual case.
SELECT e.id, e.channel, e.event_type, e.payload::text, e.created_at
  FROM sse_pg.events e
 WHERE e.id > %(seen)s ORDER BY e.id LIMIT %(limit)s
