-- page.sql from the newest down.
SELECT log.purged_to, e.id, e.channel, e.event_type, e.payload::text, e.created_at
  FROM sse_pg.log
  LEFT JOIN LATERAL (
      SELECT e.*
        FROM unnest(%(channels)s::text[]) AS c(channel)
       CROSS JOIN unnest(%(first)s::bigint[], %(last)s::bigint[]) AS r(first, last)
       CROSS JOIN LATERAL (
           SELECT * FROM sse_pg.events e
            WHERE (e.channel, e.id) >= (c.channel, r.first) AND (e.channel, e.id) <= (c.channel, r.last)
              AND e.id BETWEEN %(least)s AND %(most)s
              AND (%(event_type)s::text IS NULL OR e.event_type = %(event_type)s)
            ORDER BY e.channel DESC, e.id DESC LIMIT %(limit)s) e
       ORDER BY e.id DESC LIMIT %(limit)s) e ON true
 ORDER BY e.id DESC
