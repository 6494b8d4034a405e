-- A page of stored events: of these channels, within these ranges of ids, descending. Always a row, with purged_to, so
-- that what was purged and what is there come from one snapshot.
SELECT log.purged_to, e.id, e.channel, e.event_type, e.payload::text, e.created_at
  FROM sse_pg.log
  LEFT JOIN LATERAL (
      SELECT e.*
        FROM unnest(%(channels)s::text[]) AS c(channel)
       CROSS JOIN unnest(%(first)s::bigint[], %(last)s::bigint[]) AS r(first, last)
       CROSS JOIN LATERAL (
           SELECT * FROM sse_pg.events e
            WHERE e.channel = c.channel AND e.id BETWEEN r.first AND r.last
              AND (%(event_type)s::text IS NULL OR e.event_type = %(event_type)s)
            ORDER BY e.id DESC LIMIT %(limit)s) e
       ORDER BY e.id DESC LIMIT %(limit)s) e ON true
 ORDER BY e.id DESC
