-- Over how many seconds the newest events that a ring of that size holds were published; NULL where all fit.
SELECT extract(epoch FROM clock_timestamp() - e.created_at)::float8
  FROM sse_pg.events e WHERE e.id <= sse_pg.last_id() - %(events)s ORDER BY e.id DESC LIMIT 1
